"""What the history holds, as frozen records. Ids are 16 hexadecimal digits, times UTC ISO-8601."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, TypedDict

from edgekit.errors import BadInputError

Role = Literal["system", "user", "assistant", "tool"]
State = Literal["complete", "stopped", "failed", "partial"]

ROLES: tuple[Role, ...] = ("system", "user", "assistant", "tool")
STATES: tuple[State, ...] = ("complete", "stopped", "failed", "partial")


class NotFoundError(BadInputError):
    """An id names nothing.

    Attributes:
        kind: "conversation", "message" or "folder".
    """

    def __init__(self, kind: str, number: str) -> None:
        super().__init__(f"{kind} {number!r} is not in the history; reload it")
        self.kind = kind


@dataclass(frozen=True)
class Folder:
    """A place for conversations."""

    id: str
    name: str


@dataclass(frozen=True)
class Conversation:
    """A tree of messages with a title."""

    id: str
    title: str
    folder_id: str | None
    pinned: bool
    created: str
    updated: str
    assistant_id: str | None


@dataclass(frozen=True)
class Message:
    """One node of the tree; two messages with one parent are branches.

    Attributes:
        origin: where it was made: device, engine, pack, target, cloud provider.
        stats: tokens and times.
        sources: cited passages.
        state: "partial" while it is written, and for ever if the process died meanwhile.
    """

    id: str
    conversation_id: str
    parent_id: str | None
    role: Role
    content: str
    thinking: str
    created: str
    origin: dict[str, Any] = field(default_factory=dict)
    stats: dict[str, Any] = field(default_factory=dict)
    sources: list[dict[str, Any]] = field(default_factory=list)
    tool_calls: list[dict[str, Any]] = field(default_factory=list)
    state: State = "complete"


@dataclass(frozen=True)
class Hit:
    """Where a search found something.

    Attributes:
        message_id: the message, or "" where the title matched.
        marks: (start, end) in characters of ``snippet``.
    """

    conversation_id: str
    message_id: str
    title: str
    snippet: str
    marks: list[tuple[int, int]]


class ConversationChanges(TypedDict, total=False):
    """What ``History.update`` can change."""

    title: str
    pinned: bool
    folder_id: str | None
    assistant_id: str | None


class MessageFields(TypedDict, total=False):
    """What a message has besides its place, role and content."""

    thinking: str
    origin: dict[str, Any]
    stats: dict[str, Any]
    sources: list[dict[str, Any]]
    tool_calls: list[dict[str, Any]]
