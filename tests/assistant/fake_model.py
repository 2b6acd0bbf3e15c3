"""A model's process without a model: answers what a script says, and misbehaves as told.

``python fake_model.py STATE_FILE SCRIPT_FILE`` speaks as much of ``edgekit serve`` as the assistant
uses. The script is JSON and read again for every request:

    {"context_length": 4096, "load_seconds": 0, "load_error": "",
     "replies": [{"when": "weather", "text": "Sunny.", ...}, ...]}

The first reply whose ``when`` stands in the last message (of any role; no ``when`` stands in all)
is played; without one the last message is repeated. What a reply may have:

* ``text``, ``thinking``: the answer and the thoughts, sent in pieces of ``piece`` characters (4);
* ``pause``: seconds between pieces (0); ``hold``: a path: the stream waits before its third piece
  until that file exists;
* ``calls``: ``[{"name": ..., "arguments": {...} or "raw text"}]``, tool calls at the end;
* ``die``: True ends the process after the third piece, as a crash of a runtime does;
* ``refuse``: ``{"status": 429, "code": ..., "message": ...}`` instead of a stream;
* ``error``: a sentence that ends the stream in the middle; ``queue``: a position told first;
* ``logprob``: the log-probability of every piece; ``finish``: the reason told at the end.

Every request body is appended to ``requests.jsonl`` beside the script. A token is a character.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from edgekit.local.listen import LocalServer, bind, stop_with_parent
from edgekit.local.private import new_token, write_private_json

MODEL = "fake"


class FakeModel:
    """The application."""

    def __init__(self, script: Path, token: str) -> None:
        self._script, self._token = script, token
        self._began = time.monotonic()

    def app(self) -> Starlette:
        return Starlette(
            routes=[
                Route("/health", self.health),
                Route("/v1/chat/completions", self.chat, methods=["POST"]),
                Route("/v1/messages/count_tokens", self.count, methods=["POST"]),
            ]
        )

    async def health(self, request: Request) -> Response:
        script = self.script()
        if time.monotonic() - self._began < script.get("load_seconds", 0):
            return JSONResponse({"status": "loading"})
        if script.get("load_error"):
            return JSONResponse({"status": "failed", "error": script["load_error"]})
        context = script.get("context_length", 4096)
        engine = {"device": "CPU", "runtime": "openvino", "context_length": context}
        return JSONResponse({"status": "ok", **engine})

    async def count(self, request: Request) -> Response:
        body = await request.json()
        return JSONResponse(
            {"input_tokens": len(_texts(body["messages"]) + body.get("system", ""))}
        )

    async def chat(self, request: Request) -> Response:
        assert request.headers["authorization"] == f"Bearer {self._token}"
        body = await request.json()
        with self._script.with_name("requests.jsonl").open("a") as file:
            file.write(json.dumps(body) + "\n")
        reply = self._reply(body)
        if "refuse" in reply:
            refusal = reply["refuse"]
            return JSONResponse({"error": refusal}, refusal["status"])
        return StreamingResponse(_play(reply, body), media_type="text/event-stream")

    def script(self) -> dict[str, Any]:
        return dict(json.loads(self._script.read_text()))

    def _reply(self, body: dict[str, Any]) -> dict[str, Any]:
        last = body["messages"][-1]["content"] or ""
        replies = self.script().get("replies", [])
        return next((r for r in replies if r.get("when", "") in last), {"text": last})


async def _play(reply: dict[str, Any], body: dict[str, Any]) -> AsyncIterator[bytes]:
    if "queue" in reply:
        yield f": edgekit.queue_position {reply['queue']}\n\n".encode()
    pieces = [("reasoning_content", p) for p in _cut(reply.get("thinking", ""), reply)]
    pieces += [("content", p) for p in _cut(reply.get("text", ""), reply)]
    shown = None
    if "logprob" in reply and body.get("logprobs"):
        shown = {"content": [{"token": "x", "logprob": reply["logprob"]}]}
    for number, (kind, piece) in enumerate(pieces):
        if number == 3 and reply.get("die"):
            os._exit(139)
        while number == 2 and "hold" in reply and not Path(reply["hold"]).exists():
            await asyncio.sleep(0.01)
        yield _chunk({kind: piece}, logprobs=shown)
        await asyncio.sleep(reply.get("pause", 0))
    if "error" in reply:
        yield _event({"error": {"code": "engine_failed", "message": reply["error"]}})
        yield b"data: [DONE]\n\n"
        return
    for index, call in enumerate(reply.get("calls", ())):
        arguments = call["arguments"]
        text = arguments if isinstance(arguments, str) else json.dumps(arguments)
        head = {"name": call["name"], "arguments": ""}
        yield _chunk({"tool_calls": [{"index": index, "id": f"c{index}", "function": head}]})
        yield _chunk({"tool_calls": [{"index": index, "function": {"arguments": text}}]})
    finish = reply.get("finish") or ("tool_calls" if reply.get("calls") else "stop")
    extras = {"device": "CPU", "runtime": "openvino", "tokens_per_second": 20.0,
              "time_to_first_token": 0.25}  # fmt: skip
    yield _chunk({}, finish, edgekit=extras)
    usage = {"prompt_tokens": len(_texts(body["messages"])), "completion_tokens": len(pieces)}
    yield _event({"choices": [], "usage": usage})
    yield b"data: [DONE]\n\n"


def _cut(text: str, reply: dict[str, Any]) -> list[str]:
    size = reply.get("piece", 4)
    return [text[i : i + size] for i in range(0, len(text), size)]


def _chunk(delta: dict[str, Any], finish: str | None = None, **more: Any) -> bytes:
    logprobs = more.pop("logprobs", None)
    choice = {"index": 0, "delta": delta, "finish_reason": finish, "logprobs": logprobs}
    return _event({"choices": [choice], **more})


def _event(value: dict[str, Any]) -> bytes:
    return f"data: {json.dumps(value)}\n\n".encode()


def _texts(messages: list[dict[str, Any]]) -> str:
    found = []
    for message in messages:
        content = message["content"]
        blocks = content if isinstance(content, list) else [{"text": content}]
        found += [str(b.get("text") or b.get("content") or "") for b in blocks]
    return "".join(found)


def main(state_file: Path, script: Path) -> None:
    token = new_token()
    listener = bind()
    server = LocalServer(FakeModel(script, token).app(), listener, grace=0)
    stop_with_parent(lambda: os._exit(0))
    state = {"url": listener.url, "token": token, "admin_token": "", "pid": os.getpid()}
    write_private_json(state_file, {**state, "model": MODEL})
    server.serve_until_stopped()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
