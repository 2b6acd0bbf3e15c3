"""OpenAI's chat and completions on a scripted engine: what each field does."""

from __future__ import annotations

import json
from typing import Any

import pytest
from lab import ADD, CALLS, SCHEMA, THINKS, TOOL, USER, Lab
from serving import until

from edgekit.runtimes.batching import Tag

CHAT = "/v1/chat/completions"


def test_chat_separates_thought_and_answer_whole_and_streamed(lab: Lab) -> None:
    lab.answer = THINKS
    message = lab.post(CHAT, messages=USER)["choices"][0]["message"]
    assert message["content"] == "Hello there." and message["reasoning_content"] == "hm"
    deltas = [c["choices"][0]["delta"] for c in lab.chunks(CHAT, messages=USER)]
    assert deltas[0] == {"role": "assistant", "content": ""}
    assert "".join(d.get("content", "") for d in deltas) == "Hello there."
    assert "".join(d.get("reasoning_content", "") for d in deltas) == "hm"


def test_a_stream_ends_with_its_reason_edgekits_own_field_usage_and_done(lab: Lab) -> None:
    options = {"include_usage": True}
    text = lab.http.post(
        CHAT, json={"messages": USER, "stream": True, "stream_options": options}
    ).text
    assert text.endswith("data: [DONE]\n\n")
    chunks = lab.chunks(CHAT, messages=USER, stream_options=options)
    last, usage = chunks[-2:]
    assert last["choices"][0]["finish_reason"] == "stop" and last["edgekit"]["device"] == "CPU"
    assert usage["choices"] == [] and usage["usage"]["completion_tokens"] == 3
    assert all(c["usage"] is None for c in chunks[:-1])
    assert "usage" not in lab.chunks(CHAT, messages=USER)[-1]


def test_a_streamed_call_tells_id_and_name_once_and_then_its_arguments(lab: Lab) -> None:
    lab.answer = CALLS
    chunks = lab.chunks(CHAT, messages=USER, tools=[TOOL])
    calls = [d["tool_calls"][0] for c in chunks if "tool_calls" in (d := c["choices"][0]["delta"])]
    assert calls[0]["id"] and calls[0]["function"] == {"name": "weather", "arguments": ""}
    assert all(set(c) == {"index", "function"} and "name" not in c["function"] for c in calls[1:])
    assert all(c["index"] == 0 for c in calls)
    arguments = "".join(c["function"]["arguments"] for c in calls)
    assert json.loads(arguments) == {"city": "Paris"}
    assert chunks[-1]["choices"][0]["finish_reason"] == "tool_calls"


def test_a_whole_answer_has_its_calls_beside_its_words(lab: Lab) -> None:
    lab.answer = CALLS
    choice = lab.post(CHAT, messages=USER, tools=[TOOL])["choices"][0]
    assert choice["message"]["content"] == "I look." and choice["finish_reason"] == "tool_calls"
    (call,) = choice["message"]["tool_calls"]
    assert call["function"] == {"name": "weather", "arguments": '{"city": "Paris"}'}


@pytest.mark.parametrize(
    ("choice", "names", "required", "single"),
    [
        (None, ["weather", "add"], False, False),
        ("auto", ["weather", "add"], False, False),
        ("required", ["weather", "add"], True, False),
        ({"type": "function", "function": {"name": "add"}}, ["add"], True, True),
    ],
)
def test_tool_choice_decides_the_grammar(
    lab: Lab, choice: Any, names: list[str], required: bool, single: bool
) -> None:
    lab.post(CHAT, messages=USER, tools=[TOOL, ADD], tool_choice=choice)
    grammar = lab.job.grammar
    assert grammar is not None and grammar.schema is None
    assert [n in t.begin for n, t in zip(names, grammar.tags, strict=True)]
    assert (grammar.required, grammar.single) == (required, single)
    assert "weather" in lab.prompt


def test_no_tools_are_offered_where_none_may_be_called(lab: Lab) -> None:
    lab.post(CHAT, messages=USER, tools=[TOOL], tool_choice="none")
    assert lab.job.grammar is None and "weather" not in lab.prompt


def test_without_parallel_calls_an_answer_ends_with_its_first(lab: Lab) -> None:
    lab.answer = CALLS + CALLS
    both = lab.post(CHAT, messages=USER, tools=[TOOL])["choices"][0]["message"]
    one = lab.post(CHAT, messages=USER, tools=[TOOL], parallel_tool_calls=False)
    assert len(both["tool_calls"]) == 2
    assert len(one["choices"][0]["message"]["tool_calls"]) == 1
    until(lambda: not lab.engine.running, "the end of the run")


def test_a_schema_binds_the_answer_and_with_tools_it_is_one_of_two(lab: Lab) -> None:
    wanted = {"type": "json_schema", "json_schema": {"name": "c", "schema": SCHEMA}}
    lab.post(CHAT, messages=USER, response_format=wanted)
    assert lab.job.grammar is not None and lab.job.grammar.schema == SCHEMA
    lab.post(CHAT, messages=USER, response_format={"type": "json_object"})
    assert lab.job.grammar is not None and lab.job.grammar.schema == {"type": "object"}
    lab.post(CHAT, messages=USER, response_format=wanted, tools=[TOOL])
    grammar = lab.job.grammar
    assert grammar is not None and grammar.required and grammar.single
    assert grammar.tags[-1] == Tag("", SCHEMA, "") and len(grammar.tags) == 2


def test_numbers_reach_the_engine_and_penalties_are_not_doubled(lab: Lab) -> None:
    lab.post(CHAT, messages=USER, temperature=0, top_p=0.5, seed=7, max_completion_tokens=9,
             stop=["x", "y"])  # fmt: skip
    sampling = lab.job.sampling
    assert (sampling.temperature, sampling.top_p, sampling.seed) == (0, 0.5, 7)
    assert sampling.max_tokens == 9 and sampling.stop == ("x", "y")
    assert sampling.repetition_penalty == 1.1
    lab.post(CHAT, messages=USER, presence_penalty=0.5, frequency_penalty=-1)
    sampling = lab.job.sampling
    assert (sampling.presence_penalty, sampling.frequency_penalty) == (0.5, -1)
    assert sampling.repetition_penalty == 1.0
    lab.post(CHAT, messages=USER, tools=[TOOL])
    assert lab.job.sampling.repetition_penalty == 1.0


def test_an_answer_at_its_limit_says_so_and_a_stop_text_is_not_part_of_it(lab: Lab) -> None:
    lab.answer = "one two three"
    cut = lab.post(CHAT, messages=USER, max_tokens=5)["choices"][0]
    assert cut["message"]["content"] == "one t" and cut["finish_reason"] == "length"
    stopped = lab.post(CHAT, messages=USER, stop=" thr")["choices"][0]
    assert stopped["message"]["content"] == "one two" and stopped["finish_reason"] == "stop"


def test_logprobs_belong_to_the_words_that_are_shown(lab: Lab) -> None:
    lab.answer = THINKS
    body = {"messages": USER, "logprobs": True, "top_logprobs": 2}
    whole = lab.post(CHAT, **body)["choices"][0]["logprobs"]["content"]
    assert "".join(t["token"] for t in whole) == "Hello there."
    assert whole[0]["logprob"] == -0.5 and whole[0]["bytes"] == [72]
    assert [t["logprob"] for t in whole[0]["top_logprobs"]] == [-0.5, -1.5]
    streamed = [
        token
        for c in lab.chunks(CHAT, **body)
        if c["choices"][0]["logprobs"]
        for token in c["choices"][0]["logprobs"]["content"]
    ]
    assert streamed == whole
    assert lab.post(CHAT, messages=USER)["choices"][0]["logprobs"] is None


def test_unknown_fields_are_ignored_and_named(lab: Lab) -> None:
    answer = lab.post(CHAT, messages=USER, logit_bias={"1": 2}, metadata={"a": "b"}, zzz=1)
    assert answer["edgekit"]["warnings"] == [
        "logit_bias is not known here and was ignored",
        "zzz is not known here and was ignored",
    ]
    assert "warnings" not in lab.post(CHAT, messages=USER, user="me")["edgekit"]


def test_calls_of_the_past_reach_the_template_as_objects(lab: Lab) -> None:
    call = {
        "id": "c1",
        "type": "function",
        "function": {"name": "weather", "arguments": '{"city": "Paris"}'},
    }
    messages = [
        *USER,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": [{"type": "text", "text": "rain"}]},
    ]
    lab.post(CHAT, messages=messages, tools=[TOOL])
    assert (
        '<tool_call>{"name": "weather", "arguments": {"city": "Paris"}}</tool_call>' in lab.prompt
    )
    assert "<|im_start|>tool\nrain<|im_end|>" in lab.prompt


@pytest.mark.parametrize(
    ("body", "param", "words"),
    [
        ({"messages": USER, "n": 2}, "n", "one answer"),
        ({"messages": []}, "messages", "at least 1"),
        ({"messages": USER, "top_logprobs": 3}, "top_logprobs", "needs logprobs"),
        ({"messages": USER, "tool_choice": "required"}, "tool_choice", "needs tools"),
        ({"messages": USER, "tools": [TOOL], "tool_choice": {"type": "function", "function":
          {"name": "other"}}}, "tool_choice", "'other'"),
        ({"messages": USER, "response_format": {"type": "json_schema"}},
         "response_format.json_schema.schema", "missing"),
        ({"messages": [{"role": "user", "content": [{"type": "input_audio"}]}]},
         "messages.0.content.0", "not supported"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages.0.tool_call_id", "missing"),
        ({"messages": USER, "max_tokens": "5"}, "max_tokens", "valid integer"),
        ({"messages": USER, "stream": 1}, "stream", "boolean"),
    ],
)  # fmt: skip
def test_a_wrong_field_is_named_in_openais_form(
    lab: Lab, body: dict[str, Any], param: str, words: str
) -> None:
    answer = lab.refused(CHAT, **body)
    error = answer.json()["error"]
    assert answer.status_code == 400 and error["type"] == "invalid_request_error"
    assert error["param"] == param and words in error["message"]


def test_another_model_is_not_found_and_a_long_prompt_does_not_fit(lab: Lab) -> None:
    other = lab.refused(CHAT, messages=USER, model="gpt-9")
    assert other.status_code == 404 and other.json()["error"]["code"] == "model_not_found"
    long = lab.refused(CHAT, messages=[{"role": "user", "content": "x" * 600}])
    assert long.json()["error"]["code"] == "context_length_exceeded"
    assert lab.http.get("/v1/models/tiny").json()["id"] == "tiny"
    assert lab.http.get("/v1/models/other").status_code == 404


def test_completions_continue_texts_and_tokens_in_order(lab: Lab) -> None:
    lab.answer = "zzz"
    one = lab.post("/v1/completions", prompt="ab", echo=True)["choices"]
    assert [c["text"] for c in one] == ["abzzz"]
    tokens = lab.engine.tokenizer.encode("cd")
    many = lab.post("/v1/completions", prompt=[tokens, tokens[:1]], echo=True)["choices"]
    assert [(c["index"], c["text"]) for c in many] == [(0, "cdzzz"), (1, "czzz")]
    assert lab.job.sampling.max_tokens == 16
    scored = lab.post("/v1/completions", prompt="ab", logprobs=1)["choices"][0]["logprobs"]
    assert scored["tokens"] == ["z", "z", "z"] and scored["text_offset"] == [0, 1, 2]
    assert scored["top_logprobs"][0] == {"z": -0.5}


def test_streamed_completions_come_one_after_the_other(lab: Lab) -> None:
    lab.answer = "zz"
    chunks = lab.chunks(
        "/v1/completions", prompt=["a", "b"], echo=True, stream_options={"include_usage": True}
    )
    said = [(c["choices"][0]["index"], c["choices"][0]["text"]) for c in chunks[:-1]]
    assert [i for i, _ in said] == sorted(i for i, _ in said)
    assert "".join(t for i, t in said if i == 1) == "bzz"
    assert chunks[-1]["usage"]["prompt_tokens"] == 2


def test_a_gap_is_filled_only_by_a_model_that_knows_how(lab: Lab) -> None:
    refused = lab.refused("/v1/completions", prompt="def f(", suffix="return 1")
    assert "cannot fill gaps" in refused.json()["error"]["message"]


def test_a_forced_call_that_is_cut_off_leaves_no_words(lab: Lab) -> None:
    lab.answer = CALLS.removeprefix("I look.\n") + "\n<tool_call>\n{"
    asked = {"messages": USER, "tools": [TOOL], "tool_choice": "required"}
    message = lab.post(CHAT, **asked)["choices"][0]["message"]
    assert message["content"] is None and len(message["tool_calls"]) == 1
    cut = lab.post(CHAT, **asked, max_tokens=20)["choices"][0]
    assert cut["message"]["content"] == "" and cut["finish_reason"] == "length"
