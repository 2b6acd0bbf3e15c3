"""The request to a cloud model: what a person is shown of it, and the very same thing to send."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import httpx

from edgekit.assistant.cloud_config import CloudConfig
from edgekit.assistant.redaction import Redaction


@dataclass(frozen=True)
class CloudMessage:
    """A message that may be sent.

    ``part`` says for the preview what it is: "instructions", "you", "answer" or
    "passage from FILE".
    """

    role: Literal["system", "user", "assistant"]
    content: str
    part: str


@dataclass(frozen=True)
class Part:
    """What one message of a preview is; ``text`` is what leaves."""

    part: str
    role: str
    text: str


@dataclass(frozen=True)
class Preview:
    """Exactly what would leave this machine.

    Attributes:
        id: names it for :meth:`Cloud.send`.
        config: the configuration it is bound to.
        headers: every header of the request, the key shown as dots.
        body: the bytes of the body.
        sha256: of the body, hex.
        found: what of a sensitive kind is in the messages, counted, replaced or not.
        redacted: whether it was replaced by placeholders.
        parts: what each message is.
        expires: UTC, ISO 8601.
    """

    id: str
    config: CloudConfig
    headers: tuple[tuple[str, str], ...]
    body: bytes
    sha256: str
    found: tuple[Redaction, ...]
    redacted: bool
    parts: tuple[Part, ...]
    expires: str

    @property
    def url(self) -> str:
        """Where it would go."""
        return self.config.url

    @property
    def size(self) -> int:
        """Bytes of the body."""
        return len(self.body)

    @property
    def redactions(self) -> tuple[Redaction, ...]:
        """What was replaced, counted."""
        return self.found if self.redacted else ()


def request_body(
    config: CloudConfig, messages: Sequence[CloudMessage], texts: Sequence[str]
) -> bytes:
    """The bytes of the body, spaced so that a person can read them."""
    value = {
        "model": config.model,
        "messages": [
            {"role": message.role, "content": text}
            for message, text in zip(messages, texts, strict=True)
        ],
        "stream": True,
    }
    return json.dumps(value, ensure_ascii=False, indent=1).encode()


def cloud_request(config: CloudConfig, body: bytes, key: str) -> httpx.Request:
    """The whole request; nothing is added to it afterwards."""
    headers = {
        "User-Agent": "edgekit",
        "Accept": "text/event-stream, application/json",
        "Accept-Encoding": "identity",  # nothing to unpack that could grow
        "Content-Type": "application/json",
    }
    if key:
        headers["Authorization"] = f"Bearer {key}"
    return httpx.Request("POST", config.url, headers=headers, content=body)


def shown_headers(request: httpx.Request) -> tuple[tuple[str, str], ...]:
    """Every header that is sent, the key as dots."""
    return tuple(
        (name, "Bearer ••••" if name == "authorization" else value)
        for name, value in request.headers.items()
    )
