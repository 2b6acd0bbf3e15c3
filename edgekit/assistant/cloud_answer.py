"""Reading what a cloud address answers: pieces of text, with a limit to size, lines and time."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

import httpx

from edgekit.assistant.redaction import Redactor
from edgekit.errors import MissingRuntimeError

LARGEST_ERROR = 64 << 10  # bytes read of an error's body
LONGEST_WORDS = 200  # characters of a server's own words that are shown


@dataclass(frozen=True)
class AnswerLimits:
    """What an answer may take: seconds, and bytes as they come."""

    connect_seconds: float = 15.0
    silence_seconds: float = 90.0  # between two pieces; a large model may think for long
    total_seconds: float = 900.0
    total_bytes: int = 8 << 20
    line_bytes: int = 1 << 20


async def answer_texts(
    response: httpx.Response, host: str, limits: AnswerLimits, clock: Callable[[], float]
) -> AsyncIterator[str]:
    """The text of a successful response, streamed or whole.

    Raises:
        MissingRuntimeError: it is too large or slow, ends in the middle, tells of an error, or
            is not what the interface promises.
    """
    if response.headers.get("content-encoding", "identity") != "identity":
        raise _failed(host, "answered compressed, which was not asked for")
    chunks = _bounded(response, host, limits, clock)
    if response.headers.get("content-type", "").startswith("application/json"):
        body = b"".join([chunk async for chunk in chunks])
        yield _whole_text(_json(body, host), host)
        return
    finished = False
    async for line in _lines(chunks, host, limits.line_bytes):
        if not line.startswith(b"data:"):
            continue
        data = line[5:].strip()
        if data == b"[DONE]":
            return
        event = _json(data, host)
        if event.get("error"):
            raise _failed(host, f"broke off: {server_words(event)}")
        text, ended = _delta(event)
        finished = finished or ended
        if text:
            yield text
    if not finished:
        raise _failed(host, "ended in the middle of the answer")


async def error_of(response: httpx.Response, host: str, key: str) -> MissingRuntimeError:
    """One sentence for a response that is no success; the key is never part of it."""
    if response.is_redirect:
        target = httpx.URL(response.headers.get("location", "")).host
        return _failed(host, f"redirects{f' to {target}' if target else ''}, which is not followed")
    body = b""
    async for chunk in response.aiter_raw():
        body += chunk
        if len(body) > LARGEST_ERROR:
            break
    try:
        words = server_words(json.loads(body[:LARGEST_ERROR]))
    except (ValueError, RecursionError):
        words = ""
    if key:
        words = words.replace(key, "…")
    words = Redactor([words]).redact(words)  # servers repeat keys, cut and with stars
    return _failed(host, f"answered {response.status_code}{f': {words}' if words else ''}")


def server_words(value: Any) -> str:
    """The message of an error in OpenAI's form, without control characters, cut."""
    error = value.get("error") if isinstance(value, dict) else None
    message = error.get("message") if isinstance(error, dict) else error
    if not isinstance(message, str):
        return ""
    words = " ".join(re.sub(r"[\x00-\x1f\x7f-\x9f]", " ", message).split())
    return words if len(words) <= LONGEST_WORDS else words[: LONGEST_WORDS - 1] + "…"


async def _bounded(
    response: httpx.Response, host: str, limits: AnswerLimits, clock: Callable[[], float]
) -> AsyncIterator[bytes]:
    deadline, size = clock() + limits.total_seconds, 0
    async for chunk in response.aiter_raw():
        size += len(chunk)
        if size > limits.total_bytes:
            raise _failed(host, f"sent more than {limits.total_bytes} bytes")
        if clock() > deadline:
            raise _failed(host, f"was not done after {limits.total_seconds:g} s")
        yield chunk


async def _lines(chunks: AsyncIterator[bytes], host: str, longest: int) -> AsyncIterator[bytes]:
    begun: list[bytes] = []
    size = 0
    async for chunk in chunks:
        *whole, rest = chunk.replace(b"\r", b"\n").split(b"\n")
        for line in whole:
            yield b"".join([*begun, line])
            begun, size = [], 0
        if rest:
            begun.append(rest)
            size += len(rest)
        if size > longest:
            raise _failed(host, f"sent a line of more than {longest} bytes")
    if begun:
        yield b"".join(begun)


def _json(data: bytes, host: str) -> dict[str, Any]:
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise _failed(host, "answered something that is not JSON") from error
    if not isinstance(value, dict):
        raise _failed(host, "answered something that is no JSON object")
    return value


def _delta(event: dict[str, Any]) -> tuple[str, bool]:
    """Text of a streamed event, and whether it says that the answer is over."""
    match event.get("choices"):
        case [{**choice}, *_]:
            delta = choice.get("delta")
            text = delta.get("content") if isinstance(delta, dict) else None
            return text if isinstance(text, str) else "", bool(choice.get("finish_reason"))
    return "", False


def _whole_text(value: dict[str, Any], host: str) -> str:
    match value:
        case {"choices": [{"message": {"content": str(text)}}, *_]}:
            return text
    raise _failed(host, "answered something that is no chat completion")


def _failed(host: str, what: str) -> MissingRuntimeError:
    return MissingRuntimeError(f"{host} {what}; try again, or look at the cloud settings")
