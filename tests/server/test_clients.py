"""Real clients against a real server on a real, tiny engine with random weights.

The weights know nothing, so free text is noise; what has a form comes out right all the same,
because the grammar leaves nothing else. Every client is asked whole and streaming, with tools and
with structured output, as far as it can.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import pytest
from serving import DEADLINE, TOKEN, Running, service_of, serving

from edgekit.runtimes.load_batching import load_batch_engine
from edgekit.server.service import Model

ASK: Any = [{"role": "user", "content": "What is the weather in Rome?"}]
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"city": {"enum": ["Paris", "Rome"]}, "sunny": {"type": "boolean"}},
    "required": ["city", "sunny"],
    "additionalProperties": False,
}
WEATHER = {"name": "weather", "description": "The weather of a city.", "parameters": SCHEMA}
TOOL: Any = {"type": "function", "function": WEATHER}
FORCED: Any = {"type": "function", "function": {"name": "weather"}}
FORMAT: Any = {
    "type": "json_schema",
    "json_schema": {"name": "weather", "schema": SCHEMA, "strict": True},
}


@pytest.fixture(scope="module")
def running(variant: Callable[..., Path]) -> Iterator[Running]:
    directory = variant("llama", max_position_embeddings=2048)
    model = Model("tiny", "1.0", architecture="llama")
    service = service_of(
        lambda: load_batch_engine(directory, "openvino-cpu", max_running=4), model=model
    )
    with serving(service) as running:
        assert running.scheduler.state == "ok", running.scheduler.error
        yield running


def fits(value: Any) -> bool:
    """Whether a value is of the schema."""
    return set(value) == {"city", "sunny"} and value["city"] in ("Paris", "Rome")


@pytest.fixture
def openai_client(running: Running) -> Any:
    openai = pytest.importorskip("openai")
    return openai.OpenAI(base_url=f"{running.url}/v1", api_key=TOKEN, max_retries=0)


def test_openai_chat(openai_client: Any) -> None:
    answer = openai_client.chat.completions.create(
        model="tiny", messages=ASK, max_completion_tokens=8, seed=1, logprobs=True, top_logprobs=2
    )
    assert answer.usage.completion_tokens <= 8 and answer.choices[0].finish_reason
    assert answer.choices[0].logprobs.content[0].top_logprobs[0].logprob <= 0
    stream = openai_client.chat.completions.create(
        model="tiny", messages=ASK, max_tokens=8, stream=True,
        stream_options={"include_usage": True},
    )  # fmt: skip
    chunks = list(stream)
    assert chunks[-1].choices == [] and chunks[-1].usage.completion_tokens <= 8
    assert chunks[-2].choices[0].finish_reason in ("stop", "length")


def test_openai_tools(openai_client: Any) -> None:
    asked: Any = {"model": "tiny", "messages": ASK, "tools": [TOOL], "max_tokens": 200}
    for choice in (FORCED, "required"):
        answer = openai_client.chat.completions.create(**asked, tool_choice=choice)
        call = answer.choices[0].message.tool_calls[0]
        assert call.function.name == "weather" and fits(json.loads(call.function.arguments))
    with openai_client.chat.completions.stream(**asked, tool_choice=FORCED) as stream:
        final = stream.get_final_completion().choices[0]
    assert final.finish_reason == "tool_calls"
    assert fits(json.loads(final.message.tool_calls[0].function.arguments))


def test_openai_structured_output(openai_client: Any) -> None:
    from pydantic import BaseModel

    class Weather(BaseModel):
        city: Literal["Paris", "Rome"]
        sunny: bool

    asked: Any = {"model": "tiny", "messages": ASK, "max_tokens": 200}
    whole = openai_client.chat.completions.create(**asked, response_format=FORMAT)
    assert fits(json.loads(whole.choices[0].message.content))
    parsed = openai_client.chat.completions.parse(**asked, response_format=Weather)
    assert parsed.choices[0].message.parsed.city in ("Paris", "Rome")
    with openai_client.chat.completions.stream(**asked, response_format=Weather) as stream:
        final = stream.get_final_completion()
    assert isinstance(final.choices[0].message.parsed, Weather)


def test_openai_completions_models_and_responses(openai_client: Any) -> None:
    text = openai_client.completions.create(model="tiny", prompt="The quick", max_tokens=4)
    assert text.usage.completion_tokens <= 4
    streamed = openai_client.completions.create(
        model="tiny", prompt="The quick", max_tokens=4, stream=True
    )
    assert [c.choices[0].finish_reason for c in streamed][-1] in ("stop", "length")
    assert [m.id for m in openai_client.models.list()] == ["tiny"]
    assert openai_client.models.retrieve("tiny").id == "tiny"
    flat: Any = {"type": "function", **WEATHER, "strict": True}
    response = openai_client.responses.create(
        model="tiny", input="Rome?", tools=[flat], tool_choice="required", max_output_tokens=200
    )
    call = next(item for item in response.output if item.type == "function_call")
    assert fits(json.loads(call.arguments))
    form: Any = {"format": {"type": "json_schema", "name": "w", "schema": SCHEMA, "strict": True}}
    with openai_client.responses.stream(
        model="tiny", input="Rome?", text=form, max_output_tokens=200
    ) as stream:
        kinds = {event.type for event in stream}
        final = stream.get_final_response()
    assert {"response.created", "response.output_text.delta", "response.completed"} <= kinds
    assert fits(json.loads(final.output_text)) and final.usage.total_tokens > 0


def test_openai_errors(openai_client: Any) -> None:
    import openai

    with pytest.raises(openai.NotFoundError, match="gpt-9"):
        openai_client.chat.completions.create(model="gpt-9", messages=ASK)
    with pytest.raises(openai.BadRequestError) as wrong:
        openai_client.chat.completions.create(model="tiny", messages=ASK, n=2)
    assert wrong.value.param == "n"
    with pytest.raises(openai.AuthenticationError):
        openai_client.with_options(api_key="wrong").models.list()


def test_anthropic(running: Running) -> None:
    anthropic = pytest.importorskip("anthropic")
    client = anthropic.Anthropic(base_url=running.url, api_key=TOKEN, max_retries=0)
    tools: Any = [{"name": "weather", "description": "d", "input_schema": SCHEMA}]
    choice: Any = {"type": "tool", "name": "weather"}
    asked: Any = {"model": "tiny", "messages": ASK, "max_tokens": 200}
    short = client.messages.create(**{**asked, "max_tokens": 6})
    assert short.usage.output_tokens <= 6 and short.content[0].type == "text"
    called = client.messages.create(**asked, tools=tools, tool_choice=choice)
    assert called.stop_reason == "tool_use" and fits(called.content[-1].input)
    with client.messages.stream(**asked, tools=tools, tool_choice=choice) as stream:
        final = stream.get_final_message()
    assert fits(final.content[-1].input) and final.usage.output_tokens > 0
    form: Any = {"format": {"type": "json_schema", "schema": SCHEMA}}
    assert fits(json.loads(client.messages.create(**asked, output_config=form).content[0].text))
    counted = client.messages.count_tokens(model="tiny", messages=ASK)
    assert counted.input_tokens == short.usage.input_tokens + short.usage.cache_read_input_tokens
    bearer = anthropic.Anthropic(base_url=running.url, auth_token=TOKEN, max_retries=0)
    assert [m.id for m in bearer.models.list()] == ["tiny"]
    with pytest.raises(anthropic.NotFoundError):
        client.messages.create(**{**asked, "model": "claude-9"})


def test_ollama(running: Running) -> None:
    ollama = pytest.importorskip("ollama")
    client = ollama.Client(host=running.url, headers={"Authorization": f"Bearer {TOKEN}"})
    short: Any = {"num_predict": 6, "temperature": 0.5}
    whole = client.chat(model="tiny", messages=ASK, options=short)
    assert whole.done and whole.eval_count <= 6
    parts = list(client.chat(model="tiny", messages=ASK, options=short, stream=True))
    assert parts[-1].done and not any(p.done for p in parts[:-1])
    formed = client.chat(model="tiny", messages=ASK, format=SCHEMA, options={"num_predict": 200})
    assert fits(json.loads(formed.message.content))
    client.chat(model="tiny", messages=ASK, tools=[TOOL], options=short)
    text = client.generate(model="tiny", prompt="The quick", options=short)
    assert text.eval_count <= 6
    assert list(client.generate(model="tiny", prompt="The", options=short, stream=True))[-1].done
    assert [m.model for m in client.list().models] == ["tiny"]
    assert [m.model for m in client.ps().models] == ["tiny"]
    assert client.show("tiny").details.family == "llama"
    with pytest.raises(ollama.ResponseError) as refused:
        client.pull("evil")
    assert refused.value.status_code == 501


def test_litellm(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")
    litellm = pytest.importorskip("litellm")
    litellm.telemetry = False
    asked: Any = {
        "model": "openai/tiny", "api_base": f"{running.url}/v1", "api_key": TOKEN, "messages": ASK,
        "max_tokens": 200, "num_retries": 0,
    }  # fmt: skip
    whole = litellm.completion(**{**asked, "max_tokens": 6})
    assert whole.usage.completion_tokens <= 6
    called = litellm.completion(**asked, tools=[TOOL], tool_choice=FORCED)
    assert fits(json.loads(called.choices[0].message.tool_calls[0].function.arguments))
    formed = litellm.completion(**asked, response_format=FORMAT)
    assert fits(json.loads(formed.choices[0].message.content))
    streamed = litellm.completion(
        **asked, tools=[TOOL], tool_choice=FORCED, stream=True,
        stream_options={"include_usage": True},
    )  # fmt: skip
    rebuilt = litellm.stream_chunk_builder(list(streamed))
    assert fits(json.loads(rebuilt.choices[0].message.tool_calls[0].function.arguments))
    assert rebuilt.usage.completion_tokens > 0


def test_langchain(running: Running) -> None:
    chat = pytest.importorskip("langchain_openai").ChatOpenAI
    model = chat(model="tiny", base_url=f"{running.url}/v1", api_key=TOKEN, max_tokens=200,
                 max_retries=0, stream_usage=True)  # fmt: skip
    for method in ("function_calling", "json_schema"):
        structured = model.with_structured_output(
            {"title": "weather", "description": "w", **SCHEMA}, method=method
        )
        assert fits(structured.invoke("Rome?")), method
    bound = model.bind_tools([TOOL], tool_choice="weather")
    assert fits(bound.invoke("Rome?").tool_calls[0]["args"])
    whole: Any = None
    for chunk in bound.stream("Rome?"):
        whole = chunk if whole is None else whole + chunk
    assert fits(whole.tool_calls[0]["args"]) and whole.usage_metadata["output_tokens"] > 0
    answers = asyncio.run(model.bind(max_tokens=5).abatch(["one", "two", "three"]))
    assert all(a.response_metadata["finish_reason"] for a in answers)


@pytest.mark.skipif(
    "EDGEKIT_NODE_MODULES" not in os.environ or shutil.which("node") is None,
    reason="needs node, and EDGEKIT_NODE_MODULES with the openai package",
)
def test_node_openai(running: Running) -> None:
    environment = {
        **os.environ,
        "BASE_URL": f"{running.url}/v1",
        "TOKEN": TOKEN,
        "SCHEMA": json.dumps(SCHEMA),
    }
    script = Path(__file__).with_name("node_client.cjs")
    done = subprocess.run(
        ["node", str(script)], env=environment, capture_output=True, text=True, timeout=DEADLINE
    )
    assert done.stdout.strip() == "ok", done.stderr
