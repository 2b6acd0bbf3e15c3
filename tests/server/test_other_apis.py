"""Embeddings, responses, and the APIs of Anthropic and Ollama, on a scripted engine."""

from __future__ import annotations

import base64
import json

import httpx
import numpy as np
import pytest
from lab import CALLS, SCHEMA, THINKS, TOOL, USER, Lab

CHAT = "/v1/chat/completions"


def test_embeddings_are_floats_or_base64_and_may_be_shorter(lab: Lab) -> None:
    body = {"input": ["abc", "de"], "model": "tiny-embedder"}
    plain = lab.post("/v1/embeddings", **body)
    rows = [np.array(d["embedding"]) for d in plain["data"]]
    assert plain["usage"] == {"prompt_tokens": 2, "total_tokens": 2}
    packed = lab.post("/v1/embeddings", **body, encoding_format="base64")["data"]
    for row, item in zip(rows, packed, strict=True):
        back = np.frombuffer(base64.b64decode(item["embedding"]), "<f4")
        assert np.array_equal(back, row.astype(np.float32))
    short = lab.post("/v1/embeddings", **body, dimensions=2)["data"][0]["embedding"]
    assert short == pytest.approx(list(rows[0][:2] / np.linalg.norm(rows[0][:2])), rel=1e-6)
    query = lab.post("/v1/embeddings", input="abc", input_type="query")["data"][0]["embedding"]
    assert query != pytest.approx(list(rows[0]))
    assert lab.refused("/v1/embeddings", input="a " * 9).status_code == 400
    assert lab.refused("/v1/embeddings", input=[1, 2]).status_code == 400
    assert lab.refused("/v1/embeddings", input="", model="tiny-embedder").status_code == 400
    assert lab.refused("/v1/embeddings", input="a", model="tiny").status_code == 404
    assert lab.refused("/v1/embeddings", input="a", dimensions=4).status_code == 400


def test_a_response_has_its_items_and_its_stream_ends_with_the_same(lab: Lab) -> None:
    lab.answer = THINKS
    whole = lab.post("/v1/responses", input="hi", instructions="Be kind.")
    assert [item["type"] for item in whole["output"]] == ["reasoning", "message"]
    assert whole["output"][1]["content"][0]["text"] == "Hello there."
    assert "Be kind." in lab.prompt
    events = lab.chunks("/v1/responses", input="hi")
    assert [e["sequence_number"] for e in events] == list(range(len(events)))
    assert events[0]["type"] == "response.created" and events[-1]["type"] == "response.completed"
    texts = [e["delta"] for e in events if e["type"] == "response.output_text.delta"]
    assert "".join(texts) == "Hello there."
    last = events[-1]["response"]["output"]
    assert [i["content"][0]["text"] for i in last] == ["hm", "Hello there."]


def test_a_response_calls_functions_and_takes_their_results(lab: Lab) -> None:
    lab.answer = CALLS
    flat = {"type": "function", "name": "weather", "parameters": SCHEMA}
    whole = lab.post("/v1/responses", input="hi", tools=[flat], tool_choice="required")
    (call,) = whole["output"]
    assert call["type"] == "function_call" and json.loads(call["arguments"]) == {"city": "Paris"}
    kinds = [e["type"] for e in lab.chunks("/v1/responses", input="hi", tools=[flat])]
    assert "response.function_call_arguments.delta" in kinds
    assert kinds.index("response.function_call_arguments.done") < len(kinds) - 1
    lab.answer = "ok"
    items = [
        {"role": "user", "content": [{"type": "input_text", "text": "Where?"}]},
        {"type": "function_call", "call_id": "c", "name": "weather", "arguments": '{"city": "X"}'},
        {"type": "function_call_output", "call_id": "c", "output": "sun"},
    ]
    lab.post("/v1/responses", input=items, tools=[flat])
    assert '"arguments": {"city": "X"}' in lab.prompt and "tool\nsun" in lab.prompt


def test_responses_say_what_they_do_not_do(lab: Lab) -> None:
    stored = lab.refused("/v1/responses", input="hi", previous_response_id="resp_1")
    assert "not stored" in stored.json()["error"]["message"]
    search = lab.refused("/v1/responses", input="hi", tools=[{"type": "web_search"}])
    assert "'web_search' is not here" in search.json()["error"]["message"]
    lab.answer = "long answer"
    cut = lab.post("/v1/responses", input="hi", max_output_tokens=4)
    assert cut["status"] == "incomplete"
    assert cut["incomplete_details"] == {"reason": "max_output_tokens"}


MESSAGES = "/v1/messages"


def test_anthropics_blocks_are_thoughts_only_where_asked_for(lab: Lab) -> None:
    lab.answer = THINKS
    plain = lab.post(MESSAGES, messages=USER, max_tokens=100)
    assert [b["type"] for b in plain["content"]] == ["text"]
    thinking = {"type": "enabled", "budget_tokens": 1024}
    whole = lab.post(MESSAGES, messages=USER, max_tokens=100, thinking=thinking)
    assert [b["type"] for b in whole["content"]] == ["thinking", "text"]
    events = lab.chunks(MESSAGES, messages=USER, max_tokens=100, thinking=thinking)
    assert [e["type"] for e in events if "delta" not in e["type"]] == [
        "message_start", "content_block_start", "content_block_stop", "content_block_start",
        "content_block_stop", "message_stop",
    ]  # fmt: skip
    text = "".join(e["delta"].get("text", "") for e in events if e["type"] == "content_block_delta")
    assert text == "Hello there."


def test_anthropics_tools_stop_texts_and_counts(lab: Lab) -> None:
    lab.answer = CALLS
    tool = {"name": "weather", "input_schema": SCHEMA}
    whole = lab.post(MESSAGES, messages=USER, max_tokens=200, tools=[tool],
                     tool_choice={"type": "tool", "name": "weather"})  # fmt: skip
    assert whole["stop_reason"] == "tool_use"
    assert whole["content"][-1]["input"] == {"city": "Paris"}
    assert lab.job.grammar is not None and lab.job.grammar.required
    result = [
        *USER,
        {"role": "assistant", "content": whole["content"]},
        {"role": "user", "content": [
            {"type": "tool_result", "tool_use_id": whole["content"][-1]["id"], "content": "rain"},
            {"type": "text", "text": "Well?"}]},
    ]  # fmt: skip
    lab.answer = "one two"
    said = lab.post(MESSAGES, messages=result, max_tokens=50, tools=[tool], stop_sequences=[" tw"])
    assert said["stop_reason"] == "stop_sequence" and said["stop_sequence"] == " tw"
    assert said["content"] == [{"type": "text", "text": "one"}]
    assert "tool\nrain<|im_end|>\n<|im_start|>user\nWell?" in lab.prompt
    counted = lab.post(f"{MESSAGES}/count_tokens", messages=result, tools=[tool])
    assert counted["input_tokens"] == len(lab.job.prompt)


def test_anthropics_errors_have_anthropics_form(lab: Lab) -> None:
    error = lab.refused(MESSAGES, messages=USER).json()
    assert error["type"] == "error" and error["error"]["type"] == "invalid_request_error"
    image = [
        {"role": "user", "content": [{"type": "image", "source": {"type": "url", "url": "x"}}]}
    ]
    seen = lab.refused(MESSAGES, messages=image, max_tokens=5).json()
    assert "'image' is not supported" in seen["error"]["message"]
    unsigned = httpx.post(f"{lab.running.url}{MESSAGES}", json={})
    assert unsigned.json()["error"]["type"] == "authentication_error"


def test_ollama_answers_in_lines_with_calls_as_objects(lab: Lab) -> None:
    lab.answer = CALLS
    body = {"model": "tiny:latest", "messages": USER, "tools": [TOOL]}
    lines = [json.loads(line) for line in lab.http.post("/api/chat", json=body).text.splitlines()]
    assert [line["done"] for line in lines] == [False] * (len(lines) - 1) + [True]
    (called,) = [line["message"]["tool_calls"] for line in lines if "tool_calls" in line["message"]]
    assert called[0]["function"]["arguments"] == {"city": "Paris"}
    assert "".join(line["message"]["content"] for line in lines) == "I look."
    whole = lab.post("/api/chat", **body, stream=False)
    assert whole["message"]["tool_calls"][0]["function"]["name"] == "weather"
    assert whole["eval_count"] > 0 and whole["done_reason"] == "stop"


def test_ollamas_options_format_and_raw_prompts(lab: Lab) -> None:
    lab.answer = "{}"
    options = {"temperature": 0.1, "num_predict": 3, "num_ctx": 99, "repeat_penalty": 1.3}
    lab.post("/api/chat", model="tiny", messages=USER, stream=False, format=SCHEMA, options=options)
    assert lab.job.grammar is not None and lab.job.grammar.schema == SCHEMA
    assert (lab.job.sampling.max_tokens, lab.job.sampling.repetition_penalty) == (3, 1.3)
    lab.post("/api/generate", model="tiny", prompt="x", system="Be kind.", stream=False,
             format="json")  # fmt: skip
    assert "Be kind." in lab.prompt
    lab.post("/api/generate", model="tiny", prompt="just this", raw=True, stream=False)
    assert lab.prompt == "just this"
    assert lab.post("/api/generate", model="tiny")["done_reason"] == "load"


def test_ollamas_lists_and_vectors(lab: Lab) -> None:
    assert lab.http.get("/api/tags").json()["models"][0]["model"] == "tiny"
    assert lab.http.get("/api/ps").json()["models"][0]["context_length"] == 512
    assert lab.post("/api/show", model="tiny")["details"]["family"] == "llama"
    rows = lab.post("/api/embed", model="tiny-embedder", input=["abc", "a " * 20])["embeddings"]
    assert len(rows) == 2 and len(rows[0]) == 3
    refused = lab.refused("/api/embed", model="tiny-embedder", input="a " * 20, truncate=False)
    assert isinstance(refused.json()["error"], str)


def test_health_tells_strangers_the_state_alone(lab: Lab) -> None:
    assert httpx.get(f"{lab.running.url}/health").json() == {"status": "ok"}
    assert lab.http.get("/health").json()["device"] == "CPU"


def test_metrics_count_answers_tokens_and_refusals(lab: Lab) -> None:
    lab.post(CHAT, messages=USER)
    httpx.get(f"{lab.running.url}/v1/models")
    page = lab.http.get("/metrics").text
    values = dict(line.rsplit(" ", 1) for line in page.splitlines() if not line.startswith("#"))
    assert float(values['edgekit_answers_total{outcome="finished"}']) >= 1
    assert float(values['edgekit_tokens_total{kind="generated"}']) >= 3
    assert float(values['edgekit_http_responses_total{path="/v1/models",status="401"}']) >= 1
    buckets = [float(v) for k, v in values.items() if k.startswith("edgekit_answer_seconds_b")]
    assert buckets == sorted(buckets)
    assert buckets[-1] == float(values["edgekit_answer_seconds_count"])
