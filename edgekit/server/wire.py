"""Bodies in and out: JSON that cannot surprise, event streams, and clients that go away."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncGenerator, Coroutine, Mapping
from contextlib import aclosing
from typing import Any, NoReturn, TypeVar

from pydantic import ValidationError
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Send

from edgekit.server.errors import ApiError, bad_request
from edgekit.server.fields import Body
from edgekit.server.limits import LIMITS

UNION_TAG = re.compile(r"^(str|int|bool|dict|[A-Z]\w+)$|[\[\]()-]")  # not the name of a field
HALF = re.compile(rb"\\u[dD][89a-fA-F]")  # half of a character beyond the first 65,536
DONE = b"data: [DONE]\n\n"
M = TypeVar("M", bound=Body)
T = TypeVar("T")


class ClientGoneError(Exception):
    """The connection closed before the answer was there."""


def to_json(value: Any) -> bytes:
    """Compact UTF-8; half characters become "?" and never an error."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return text.encode("utf-8", "replace")


def json_response(
    value: Any, status: int = 200, headers: Mapping[str, str] | None = None
) -> Response:
    """An answer that is one JSON document."""
    return Response(to_json(value), status, dict(headers or {}), "application/json")


def sse(value: Any, event: str = "") -> bytes:
    """One server-sent event."""
    head = f"event: {event}\n".encode() if event else b""
    return head + b"data: " + to_json(value) + b"\n\n"


def sse_comment(text: str) -> bytes:
    """A line of an event stream that clients skip."""
    return b": " + text.encode() + b"\n\n"


async def parse(request: Request, model: type[M]) -> tuple[M, list[str]]:
    """The body as ``model``, and a warning for each field that is not known.

    Raises:
        ApiError: it is not JSON, or a field is wrong (400).
    """
    value = parse_json(await request.body())
    if not isinstance(value, dict):
        raise bad_request("the body must be a JSON object", code="invalid_json")
    try:
        parsed = model.model_validate(value)
    except ValidationError as error:
        raise _wrong_field(error) from None
    known = {f.alias or name for name, f in model.model_fields.items()} | model.silent
    unknown = [str(name)[:64] for name in value if name not in known]
    return parsed, [f"{name} is not known here and was ignored" for name in unknown[:20]]


def parse_json(body: bytes) -> Any:
    """Strict JSON: UTF-8, no NaN, no bottomless nesting. Half characters become U+FFFD.

    Raises:
        ApiError: it is something else (400).
    """
    try:
        value = json.loads(body.decode("utf-8"), parse_constant=_no_constant)
        return _mended(value) if HALF.search(body) else value
    except UnicodeDecodeError:
        raise bad_request("the body is not UTF-8 text", code="invalid_json") from None
    except RecursionError:
        raise bad_request("the body is nested too deeply", code="invalid_json") from None
    except ValueError as error:
        reason = str(error)[:200]
        raise bad_request(f"the body is not JSON ({reason})", code="invalid_json") from None


class EventStream(StreamingResponse):
    """A streamed answer whose generator is closed as soon as the client is gone.

    A client that leaves what was sent unread for ``LIMITS.write_seconds`` counts as gone.
    """

    def __init__(
        self, content: AsyncGenerator[bytes, None], media_type: str = "text/event-stream"
    ) -> None:
        headers = {"cache-control": "no-store", "x-accel-buffering": "no"}
        super().__init__(content, headers=headers, media_type=media_type)
        self._content = content

    async def stream_response(self, send: Send) -> None:
        """Send the head and the chunks."""
        start = {"type": "http.response.start", "status": 200, "headers": self.raw_headers}
        async with aclosing(self._content) as content:
            await send(start)
            async for chunk in content:
                body = {"type": "http.response.body", "body": chunk, "more_body": True}
                try:
                    await asyncio.wait_for(send(body), LIMITS.write_seconds)
                except TimeoutError:
                    return  # the server closes the connection
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def unless_gone(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """The result of ``work``, which is cancelled when the client disconnects first.

    Raises:
        ClientGoneError: the client disconnected.
    """
    task = asyncio.create_task(work)
    gone = asyncio.create_task(_disconnect(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise ClientGoneError
    finally:
        for one in (task, gone):
            one.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def _disconnect(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _mended(value: Any) -> Any:
    """A value whose texts have no half characters, which clients that cut texts send."""
    if isinstance(value, str):
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if isinstance(value, list):
        return [_mended(item) for item in value]
    if isinstance(value, dict):
        return {_mended(name): _mended(item) for name, item in value.items()}
    return value


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number of JSON")


def _wrong_field(error: ValidationError) -> ApiError:
    first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    where = ".".join(str(p) for p in first["loc"] if not UNION_TAG.search(str(p)))[:200]
    said = first["msg"].removeprefix("Value error, ")
    sentence = f"{where}: {said[:1].lower()}{said[1:]}" if where else said
    return bad_request(sentence[:500], where or None)
