"""Talking to the model's process: a chat request out, pieces of an answer back."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import httpx

from edgekit.assistant.model_process import Endpoint, engine_failed
from edgekit.assistant.refusals import RefusalError

CONNECT_SECONDS = 10.0
COUNT_SECONDS = 60.0
QUEUE_MARK = ": edgekit.queue_position "
LONGEST_LINE = 8 << 20  # characters of one event
CODES = {  # what the server says, as the interface knows it
    "context_length_exceeded": "context_full",
    "model_not_loaded": "engine_loading",
    "loading": "engine_loading",
    "queue_full": "queue_full",
}


@dataclass(frozen=True)
class CallPiece:
    """A piece of a tool call: the first of each ``index`` has the name."""

    index: int
    name: str
    arguments: str


@dataclass(frozen=True)
class Piece:
    """What one event of the stream brought."""

    text: str = ""
    thinking: str = ""
    calls: tuple[CallPiece, ...] = ()
    logprobs: tuple[float, ...] = ()
    finish: str = ""
    queue: int | None = None
    usage: Mapping[str, Any] | None = None
    extras: Mapping[str, Any] | None = None


class ModelClient:
    """A connection to the model's process for one answer; use it in ``async with``."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._http = httpx.AsyncClient(
            base_url=endpoint.url,
            headers={"Authorization": f"Bearer {endpoint.token}"},
            trust_env=False,  # no proxy stands between two processes of one machine
            # a long prompt on a slow processor is silent for minutes; a person can stop it
            timeout=httpx.Timeout(None, connect=CONNECT_SECONDS),
        )

    async def __aenter__(self) -> ModelClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._http.aclose()

    async def stream(self, request: Mapping[str, Any]) -> AsyncIterator[Piece]:
        """Pieces of the answer to a chat request; closing the iterator stops the model.

        Raises:
            RefusalError: the model refused, failed or went away.
        """
        body = {**request, "stream": True, "stream_options": {"include_usage": True}}
        try:
            async with self._http.stream("POST", "/v1/chat/completions", json=body) as answer:
                if answer.status_code != 200:
                    raise _refusal(answer.status_code, await answer.aread())
                finished = False
                async for line in answer.aiter_lines():
                    if line.startswith(QUEUE_MARK):
                        yield Piece(queue=_number(line[len(QUEUE_MARK) :]))
                    elif line.startswith("data:"):
                        data = line[5:].strip()
                        if data == "[DONE]":
                            finished = True
                        elif data:
                            yield _piece(data)
                if not finished:
                    raise _gone()
        except httpx.TransportError as error:
            raise _gone() from error

    async def complete(self, request: Mapping[str, Any]) -> str:
        """The whole text of an answer, without its thoughts."""
        parts = [piece.text async for piece in self.stream(request)]
        return "".join(parts)

    async def count(
        self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]] = ()
    ) -> int | None:
        """Tokens of the rendered conversation; None where the server does not say.

        Raises:
            RefusalError: the model went away.
        """
        try:
            answer = await self._http.post(
                "/v1/messages/count_tokens",
                json=anthropic_form(self._endpoint.model, messages, tools),
                timeout=COUNT_SECONDS,
            )
            value = answer.json()
        except httpx.TransportError as error:
            raise _gone() from error
        except ValueError:
            return None
        count = value.get("input_tokens") if isinstance(value, dict) else None
        return count if isinstance(count, int) else None


def anthropic_form(
    model: str, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """A conversation of OpenAI's form in Anthropic's, which has a way to count tokens."""
    system = "\n\n".join(str(m["content"]) for m in messages if m["role"] == "system")
    turns: list[dict[str, Any]] = []
    for message in messages:
        if message["role"] == "system":
            continue
        if message["role"] == "tool":
            block = {
                "type": "tool_result",
                "tool_use_id": message["tool_call_id"],
                "content": message["content"],
            }
            turns.append({"role": "user", "content": [block]})
            continue
        blocks: list[dict[str, Any]] = []
        if message.get("content"):
            blocks.append({"type": "text", "text": message["content"]})
        for call in message.get("tool_calls", ()):
            function = call["function"]
            blocks.append(
                {"type": "tool_use", "id": call["id"], "name": function["name"],
                 "input": json.loads(function["arguments"])}
            )  # fmt: skip
        turns.append({"role": message["role"], "content": blocks})
    body: dict[str, Any] = {"model": model, "messages": turns, "max_tokens": 1}
    if system:
        body["system"] = system
    if tools:
        body["tools"] = [
            {"name": f["name"], "description": f.get("description", ""),
             "input_schema": f.get("parameters", {"type": "object"})}
            for f in (t["function"] for t in tools)
        ]  # fmt: skip
    return body


def _piece(data: str) -> Piece:
    """One event of the stream.

    Raises:
        RefusalError: it tells a failure, or cannot be read.
    """
    try:
        if len(data) > LONGEST_LINE:
            raise ValueError("too long")
        value = json.loads(data)
        if "error" in value:
            raise _told(value["error"])
        choices = value.get("choices") or []
        if not choices:
            return Piece(usage=value.get("usage"))
        choice = choices[0]
        delta = choice.get("delta") or {}
        shown = (choice.get("logprobs") or {}).get("content") or ()
        return Piece(
            text=delta.get("content") or "",
            thinking=delta.get("reasoning_content") or "",
            calls=tuple(map(_call, delta.get("tool_calls") or ())),
            logprobs=tuple(float(token["logprob"]) for token in shown),
            finish=choice.get("finish_reason") or "",
            usage=value.get("usage"),
            extras=value.get("edgekit"),
        )
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise engine_failed("the model's process answered what cannot be read; retry") from None


def _call(value: Mapping[str, Any]) -> CallPiece:
    function = value.get("function") or {}
    return CallPiece(
        int(value.get("index", 0)), function.get("name") or "", function.get("arguments") or ""
    )


def _refusal(status: int, body: bytes) -> RefusalError:
    """An answer that is not a stream."""
    try:
        return _told(json.loads(body)["error"], status)
    except (ValueError, KeyError, TypeError):
        return engine_failed(f"the model's process refused the question ({status}); try again")


def _told(error: Any, status: int = 503) -> RefusalError:
    if not isinstance(error, dict):
        return engine_failed(str(error)[:500])
    said = str(error.get("code") or "engine_failed")
    message = str(error.get("message") or "the model failed; try again")[:1000]
    return RefusalError(status, CODES.get(said, said), message)


def _gone() -> RefusalError:
    return engine_failed(
        "the model's process ended in the middle of the answer; it is started again, then retry"
    )


def _number(text: str) -> int | None:
    return int(text) if text.strip().isdigit() else None
