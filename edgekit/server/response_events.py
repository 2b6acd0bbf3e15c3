"""The events of one response: items that open, grow and close, then the whole."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import Any

from edgekit.server.answer import (
    Again,
    Answer,
    Arguments,
    Call,
    Logprob,
    Part,
    Text,
    Thought,
    Usage,
    Waiting,
)
from edgekit.server.errors import ApiError

Event = dict[str, Any]


class ResponseEvents:
    """Turns the parts of an answer into events; ``echo`` is what the response repeats."""

    def __init__(self, echo: dict[str, Any]) -> None:
        self.position = 0
        self._response: dict[str, Any] = {
            "id": f"resp_{secrets.token_hex(16)}",
            **echo,
            "status": "in_progress",
            "error": None,
            "incomplete_details": None,
            "output": [],
            "usage": None,
        }
        self._number = 0
        self._items: list[dict[str, Any]] = []
        self._open: dict[str, Any] | None = None
        self._logprobs: list[dict[str, Any]] = []

    def begin(self) -> list[Event]:
        """The first events."""
        return [self._whole("response.created"), self._whole("response.in_progress")]

    def waits(self, part: Part) -> bool:
        """Whether a part only tells the place in the queue, which is then in ``position``."""
        if isinstance(part, Waiting):
            self.position = part.position
            return True
        return False

    def part(self, part: Part) -> list[Event]:
        """The events of one part."""
        match part:
            case Text(text, tokens):
                return self._grow("message", "output_text", text, tokens)
            case Thought(text):
                return self._grow("reasoning", "reasoning_text", text)
            case Call(_, call_id, name):
                return [*self._close(), *self._open_call(call_id, name)]
            case Arguments(_, text):
                return self._grow_call(text)
            case Again():
                self._items, self._open, self._logprobs = [], None, []
        return []

    def end(self, answer: Answer, extras: dict[str, Any]) -> list[Event]:
        """The last events; the very last one has the whole response."""
        cut = answer.finish == "length"
        events = [] if self._items else self._open_text("message", "output_text")
        events += self._close("incomplete" if cut else "completed")
        self._response["usage"] = _usage(answer.usage)
        self._response["edgekit"] = extras
        self._response["output"] = self._items
        self._response["status"] = "incomplete" if cut else "completed"
        if cut:
            self._response["incomplete_details"] = {"reason": "max_output_tokens"}
        return [*events, self._whole(f"response.{self._response['status']}")]

    def fail(self, error: ApiError) -> list[Event]:
        """The last event of a response that failed."""
        events = self._close("incomplete")
        self._response["output"] = self._items
        self._response["status"] = "failed"
        self._response["error"] = {"code": "server_error", "message": error.message}
        return [*events, self._whole("response.failed")]

    def _grow(self, kind: str, part: str, text: str, tokens: Sequence[Logprob] = ()) -> list[Event]:
        events: list[Event] = []
        if self._open is None or self._open["type"] != kind:
            events = [*self._close(), *self._open_text(kind, part)]
        assert self._open is not None
        self._open["content"][0]["text"] += text
        shown = [_token(t) for t in tokens]
        self._logprobs += shown
        more = {"logprobs": shown} if kind == "message" else {}
        return [*events, self._event(f"response.{part}.delta", delta=text, content_index=0, **more)]

    def _open_text(self, kind: str, part: str) -> list[Event]:
        item: dict[str, Any] = {
            "id": f"{'msg' if kind == 'message' else 'rs'}_{secrets.token_hex(16)}",
            "type": kind,
            "status": "in_progress",
        }
        if kind == "message":
            item["role"] = "assistant"
        else:
            item["summary"] = []
        added = self._add({**item, "content": []})
        content: dict[str, Any] = {"type": part, "text": ""}
        if kind == "message":
            content |= {"annotations": [], "logprobs": []}
        self._items[-1]["content"] = [content]
        begun = self._event("response.content_part.added", content_index=0, part=dict(content))
        return [added, begun]

    def _open_call(self, call_id: str, name: str) -> list[Event]:
        item = {
            "id": f"fc_{secrets.token_hex(16)}",
            "type": "function_call",
            "status": "in_progress",
            "call_id": call_id,
            "name": name,
            "arguments": "",
        }
        return [self._add(item)]

    def _grow_call(self, text: str) -> list[Event]:
        assert self._open is not None
        self._open["arguments"] += text
        return [self._event("response.function_call_arguments.delta", delta=text)]

    def _add(self, item: dict[str, Any]) -> Event:
        self._items.append(item)
        self._open = item
        return self._event("response.output_item.added", item=dict(item), item_id=None)

    def _close(self, status: str = "completed") -> list[Event]:
        item = self._open
        if item is None:
            return []
        item["status"] = status
        if item["type"] == "function_call":
            done = "response.function_call_arguments.done"
            events = [self._event(done, arguments=item["arguments"], name=item["name"])]
        else:
            events = self._close_text(item)
        events.append(self._event("response.output_item.done", item=dict(item), item_id=None))
        self._open, self._logprobs = None, []
        return events

    def _close_text(self, item: dict[str, Any]) -> list[Event]:
        content = item["content"][0]
        more = {}
        if item["type"] == "message":
            content["logprobs"] = list(self._logprobs)
            more = {"logprobs": list(self._logprobs)}
        kind, text = content["type"], content["text"]
        return [
            self._event(f"response.{kind}.done", text=text, content_index=0, **more),
            self._event("response.content_part.done", content_index=0, part=dict(content)),
        ]

    def _event(self, kind: str, **fields: Any) -> Event:
        """An event about the open item."""
        assert self._open is not None
        about = {"item_id": self._open["id"], "output_index": len(self._items) - 1, **fields}
        return self._numbered(kind, {k: v for k, v in about.items() if v is not None})

    def _whole(self, kind: str) -> Event:
        return self._numbered(kind, {"response": dict(self._response)})

    def _numbered(self, kind: str, fields: dict[str, Any]) -> Event:
        number, self._number = self._number, self._number + 1
        return {"type": kind, "sequence_number": number, **fields}


def _token(token: Logprob) -> dict[str, Any]:
    top = [
        {"token": a.text, "logprob": a.logprob, "bytes": list(a.text.encode("utf-8", "replace"))}
        for a in token.top
    ]
    whole = list(token.text.encode("utf-8", "replace"))
    return {"token": token.text, "logprob": token.logprob, "bytes": whole, "top_logprobs": top}


def _usage(usage: Usage) -> dict[str, Any]:
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {"cached_tokens": usage.cached_tokens, "cache_write_tokens": 0},
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
    }
