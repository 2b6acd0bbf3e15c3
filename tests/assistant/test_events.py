"""Logs that can be read again, the bus of the pages, and streams that break the rules."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from edgekit.assistant.events import Bus, Log
from edgekit.assistant.model_client import ModelClient, anthropic_form
from edgekit.assistant.model_process import Endpoint
from edgekit.assistant.refusals import RefusalError


async def names(events: AsyncIterator[bytes]) -> list[str]:
    lines = [line for event in [e async for e in events] for line in event.decode().splitlines()]
    return [line for line in lines if not line.startswith("data: ")]


def test_a_reader_gets_what_was_and_what_comes_until_the_end() -> None:
    async def work() -> None:
        log = Log()
        log.add("a", 1)
        reading = asyncio.create_task(names(log.read()))
        late = asyncio.create_task(names(log.read(1)))
        await asyncio.sleep(0)
        log.add("b", {"text": "line\nline"})
        log.close()
        log.add("c", 3)
        assert await reading == ["id: 0", "event: a", "", "id: 1", "event: b", ""]
        assert await late == ["id: 1", "event: b", ""]
        assert await names(log.read(7)) == []

    asyncio.run(work())


def test_a_later_reader_is_spared_what_was_replaced() -> None:
    async def work() -> None:
        log = Log()
        for number in range(1000):
            log.add("block", {"index": 0, "html": "x" * number}, replaces="block 0")
        log.add("done", {})
        log.close()
        assert await names(log.read()) == ["id: 999", "event: block", "", "id: 1000",
                                           "event: done", ""]  # fmt: skip

    asyncio.run(work())


def test_a_slow_page_is_told_the_newest_of_each_state() -> None:
    async def work() -> None:
        bus, told = Bus(), list[str]()
        page = bus.listen(("state", lambda: 0))
        told.append((await anext(page)).decode())
        for number in range(5):
            bus.publish("state", lambda number=number: number)  # type: ignore[misc]
        bus.publish("documents", lambda: "d")
        told += [(await anext(page)).decode() for _ in range(2)]
        assert bus.pages == 1
        bus.close()
        assert [e async for e in page] == [] and bus.pages == 0
        assert told == ["event: state\ndata: 0\n\n", "event: state\ndata: 4\n\n",
                        'event: documents\ndata: "d"\n\n']  # fmt: skip

    asyncio.run(work())


def client(body: bytes, status: int = 200) -> ModelClient:
    """A client whose server answers ``body``."""
    made = ModelClient(Endpoint("http://127.0.0.1:1", "token", "m"))
    made._http = httpx.AsyncClient(
        base_url="http://127.0.0.1:1",
        transport=httpx.MockTransport(lambda _: httpx.Response(status, content=body)),
    )
    return made


async def pieces(body: bytes, status: int = 200) -> list[Any]:
    async with client(body, status) as model:
        return [piece async for piece in model.stream({"messages": []})]


DONE = b"data: [DONE]\n\n"


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b"", 200, "engine_failed"),
        (b'data: {"choices": [{"delta": {"content": "half"}}]}\n\n', 200, "engine_failed"),
        (b"data: {not json\n\n" + DONE, 200, "engine_failed"),
        (b"data: []\n\n" + DONE, 200, "engine_failed"),
        (b'data: {"choices": 7}\n\n' + DONE, 200, "engine_failed"),
        (b'data: {"choices": [{"delta": {"tool_calls": [{"index": "x"}]}}]}\n\n' + DONE, 200,
         "engine_failed"),
        (b"data: " + b"[" * 100_000 + b"\n\n" + DONE, 200, "engine_failed"),
        (b'data: {"error": {"code": "context_length_exceeded", "message": "m"}}\n\n' + DONE, 200,
         "context_full"),
        (b"<html>", 502, "engine_failed"),
        (b'{"error": "x"}', 503, "engine_failed"),
        (b'{"error": {"code": "queue_full", "message": "busy"}}', 429, "queue_full"),
    ],
)  # fmt: skip
def test_streams_that_break_off_or_break_the_rules_are_failures(
    body: bytes, status: int, code: str
) -> None:
    with pytest.raises(RefusalError) as refused:
        asyncio.run(pieces(body, status))
    assert refused.value.code == code


def test_a_stream_is_read_whole() -> None:
    events: list[Any] = [
        {"choices": [{"delta": {"role": "assistant", "content": ""}}]},
        {"choices": [{"delta": {"reasoning_content": "hm"}}]},
        {"choices": [{"delta": {"content": "hi"}, "logprobs": {"content": [{"logprob": -1}]}}]},
        {"choices": [{"delta": {"tool_calls": [{"index": 0, "function": {"name": "f"}}]}}]},
        {"choices": [{"delta": {}, "finish_reason": "stop"}], "edgekit": {"device": "CPU"}},
        {"choices": [], "usage": {"prompt_tokens": 3}},
    ]
    body = b": edgekit.queue_position 2\n\n: a comment\n\n"
    body += b"".join(f"data: {json.dumps(e)}\n\n".encode() for e in events) + DONE
    found = asyncio.run(pieces(body))
    assert found[0].queue == 2
    assert "".join(p.text for p in found) == "hi" and found[2].thinking == "hm"
    assert found[3].logprobs == (-1.0,) and found[4].calls[0].name == "f"
    assert found[5].finish == "stop" and found[5].extras == {"device": "CPU"}
    assert found[6].usage == {"prompt_tokens": 3}


def test_a_conversation_with_calls_is_counted_in_the_other_form() -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
    form = anthropic_form(
        "m",
        [
            {"role": "system", "content": "s"},
            {"role": "user", "content": "u"},
            {"role": "assistant", "content": "", "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "c1", "content": "r"},
        ],
        [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}],
    )
    assert form["system"] == "s" and [m["role"] for m in form["messages"]] == [
        "user", "assistant", "user",
    ]  # fmt: skip
    assert form["messages"][1]["content"] == [
        {"type": "tool_use", "id": "c1", "name": "f", "input": {"a": 1}}
    ]
    assert form["messages"][2]["content"][0]["tool_use_id"] == "c1"
    assert form["tools"][0]["input_schema"] == {"type": "object"}
