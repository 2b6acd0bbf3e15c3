"""The whole way on a real (tiny, random) model: `edgekit serve` below the assistant."""

from __future__ import annotations

import stat
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from harness import Running, make_pack, running, wait

from edgekit.assistant.model_client import ModelClient


@pytest.fixture(scope="module")
def assistant(
    tmp_path_factory: pytest.TempPathFactory, variant: Callable[..., Path]
) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("assistant")
    pack = make_pack(variant("llama"), folder / "pack")
    with running(folder, pack=pack, real=True) as started:
        started.http.put("/api/settings", json={"max_tokens": 24, "temperature": 0})
        yield started


def test_the_interface_is_there_before_the_model_and_the_first_question_waits_for_it(
    assistant: Running,
) -> None:
    assert assistant.http.get("/").status_code == 200
    found = assistant.ask(assistant.conversation(), "What is the capital of France?")
    done = found[-1][1]["message"]
    assert found[-1][0] == "done" and done["state"] == "complete", found[-1]
    state = assistant.wait_ready()["engine"]
    assert state["target"] == done["origin"]["target"] == "openvino-cpu"
    assert state["pack"]["name"] == "tiny" and state["context_length"] > 0
    assert done["stats"]["completion_tokens"] > 0 and done["stats"]["prompt_tokens"] > 5
    wait(lambda: assistant.state()["engine"]["reasons"])
    reasons = {r["target"]: r["code"] for r in assistant.state()["engine"]["reasons"]}
    assert reasons["openvino-cpu"] == "chosen" and reasons["onnx-cpu"] == "later"


def test_tokens_are_counted_as_the_model_counts_them(assistant: Running) -> None:
    async def count(messages: list[dict[str, Any]]) -> tuple[int | None, int]:
        async with assistant.assistant.engine.lease() as endpoint, ModelClient(endpoint) as client:
            counted = await client.count(messages)
            request = {"messages": messages, "max_tokens": 1}
            usage = [p.usage async for p in client.stream(request) if p.usage]
        return counted, usage[0]["prompt_tokens"]

    messages = [
        {"role": "system", "content": "你好 be kind"},
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": "c"},
    ]
    counted, used = on_loop(assistant, count(messages))
    assert counted == used and counted > len(messages)


def test_another_device_answers_when_it_is_asked_for(assistant: Running) -> None:
    conversation = assistant.conversation()
    first = assistant.ask(conversation, "hello")[-1][1]["message"]
    found = assistant.ask(conversation, "", regenerate=first["id"], target="onnx-cpu")
    again = found[-1][1]["message"]
    assert again["origin"]["target"] == "onnx-cpu" and again["parent_id"] == first["parent_id"]
    found = assistant.ask(conversation, "", regenerate=first["id"], target="openvino-npu")
    assert found[-1][0] == "error" and found[-1][1]["code"] == "engine_failed"
    # what cannot be used changes nothing
    assert assistant.wait_ready()["engine"]["target"] == "onnx-cpu"


def test_a_killed_model_comes_back_and_the_conversation_goes_on(assistant: Running) -> None:
    conversation = assistant.conversation()
    first = assistant.ask(conversation, "hello")[-1][1]["message"]
    assistant.kill_model()
    wait(lambda: assistant.state()["engine"]["state"] != "ready")
    found = assistant.ask(conversation, "and now?", parent_id=first["id"])
    assert found[-1][0] == "done" and found[-1][1]["message"]["parent_id"]


def test_a_long_conversation_on_a_small_context_is_compacted_and_goes_on(
    assistant: Running,
) -> None:
    conversation, parent, compacted = assistant.conversation(), None, []
    context = assistant.wait_ready()["engine"]["context_length"]
    for number in range(4):
        text = f"{number} " + "the quick brown fox " * (context // 16)
        found = assistant.ask(conversation, text, parent_id=parent)
        assert found[-1][0] == "done", found[-1]
        parent = found[-1][1]["message"]["id"]
        compacted += [data for name, data in found if name == "compacted"]
    assert compacted and compacted[0]["summarised"] >= 2


def test_other_programs_are_let_in_only_while_a_person_wants_it(assistant: Running) -> None:
    assert assistant.wait_ready()["engine"]["endpoint"] is None
    assistant.http.put("/api/settings", json={"endpoint_enabled": True})

    def offered() -> Any:
        engine = assistant.state()["engine"]
        return engine["state"] == "ready" and engine["endpoint"]

    endpoint = wait(offered)
    token = Path(endpoint["token_file"])
    assert stat.S_IMODE(token.stat().st_mode) == 0o600
    head = {"authorization": f"Bearer {token.read_text().strip()}"}
    url = f"{endpoint['url']}/models"
    assert httpx.get(url, headers=head, trust_env=False).json()["data"][0]["id"] == "tiny"
    assert httpx.get(url, trust_env=False).status_code == 401
    assistant.http.put("/api/settings", json={"endpoint_enabled": False})
    assert not token.exists()
    wait(lambda: assistant.state()["engine"]["state"] == "ready")
    assert assistant.state()["engine"]["endpoint"] is None

    def refuses() -> bool:  # the process that knew the token ends once nobody reads from it
        try:
            return httpx.get(url, headers=head, trust_env=False).status_code == 401
        except httpx.TransportError:
            return True

    wait(refuses)


def on_loop(assistant: Running, work: Any) -> Any:
    """Run a coroutine in the assistant's own loop."""
    import asyncio

    done: list[Any] = []
    finished = threading.Event()

    async def run() -> None:
        try:
            done.append(await work)
        finally:
            finished.set()

    thread_loop = assistant.assistant.engine._task.get_loop()  # type: ignore[union-attr]
    asyncio.run_coroutine_threadsafe(run(), thread_loop)
    assert finished.wait(60)
    return done[0]
