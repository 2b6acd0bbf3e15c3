"""What can be read of a damaged history, put into a new one.

Rows are recognised by their shape (``history_pages`` knows no tables): a message has an id, a
conversation's id and a role in its columns. Of two rows with one id, which a stop in the middle of
a write can leave, the more finished one counts. Then the tree is mended: a message whose
conversation is lost gets a new one with that id, and one whose parent is lost hangs below the
message that was written before it in the same conversation.

Indexes name every message, so what they name and no row gives is known to be lost.
"""

from __future__ import annotations

import json
import re
import sqlite3
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from edgekit.assistant import history_rows as rows
from edgekit.assistant.history_pages import TABLE_LEAF, Pages, Record, Value
from edgekit.assistant.history_records import ROLES, STATES, Conversation, Folder, Message

_ID = re.compile(r"[0-9a-f]{16}")
_JSON_EMPTY: dict[str, Any] = {"origin": {}, "stats": {}, "sources": [], "tool_calls": []}


@dataclass(frozen=True)
class Salvaged:
    """How many were saved (``cut`` messages without their end), and are known to be lost."""

    conversations: int
    messages: int
    cut: int
    lost_conversations: int
    lost_messages: int


@dataclass
class _Found:
    """Everything recognised: by id, with its order."""

    folders: dict[str, tuple[int, Folder]] = field(default_factory=dict)
    conversations: dict[str, tuple[int, Conversation]] = field(default_factory=dict)
    messages: dict[str, tuple[int, Message, bool]] = field(default_factory=dict)  # whole
    named: set[tuple[str, int]] = field(default_factory=set)  # (conversation, message's number)


def salvage(damaged: Path, connection: sqlite3.Connection) -> Salvaged:
    """Write the readable rows of ``damaged`` into the empty history of ``connection``."""
    found = _Found()
    with Pages(damaged) as pages:
        for kind, record in pages.records():
            if kind == TABLE_LEAF:
                _take_row(record, found)
            else:
                _take_key(record, found)
    for _, folder in sorted(found.folders.values(), key=lambda f: f[0]):
        rows.insert_folder(connection, folder)
    ordered = sorted(found.messages.values(), key=lambda m: m[0])
    messages = _mended([m for _, m, _ in ordered])
    conversations = _completed(found, messages)
    for conversation in conversations:
        rows.insert_conversation(connection, conversation)
    for message in messages:
        rows.insert_message(connection, message)
    kept = {(m.conversation_id, number) for number, m, _ in ordered}
    lost = found.named - kept
    return Salvaged(
        conversations=len(conversations),
        messages=len(messages),
        cut=sum(not whole for _, _, whole in ordered),
        lost_conversations=len({c for c, _ in lost} - {c.id for c in conversations}),
        lost_messages=len(lost),
    )


def _take_key(record: Record, found: _Found) -> None:
    """A key (conversation, message or parent, number) of an index of the messages."""
    if record.whole and len(record.values) == 3:
        conversation, other, number = record.values
        if _is_id(conversation) and (other is None or _is_id(other)) and isinstance(number, int):
            found.named.add((str(conversation), number))


def _take_row(record: Record, found: _Found) -> None:
    values = record.values
    if len(values) < 3 or values[0] is not None or not _is_id(values[1]):
        return
    if len(values) >= 8 and values[4] in ROLES and values[5] in STATES and _is_id(values[2]):
        _take_message(record, found)
    elif len(values) >= 9 and record.whole and isinstance(values[8], int):
        conversation = Conversation(
            str(values[1]), _text(values[2]), _optional(values[3]), bool(values[4]),
            _text(values[5]), _text(values[6]), _optional(values[7]),
        )  # fmt: skip
        order = values[8]
        if order >= found.conversations.get(conversation.id, (-1,))[0]:
            found.conversations[conversation.id] = (order, conversation)
    elif len(values) == 3 and record.whole and isinstance(values[2], str):
        found.folders[str(values[1])] = (record.rowid, Folder(str(values[1]), values[2]))


def _take_message(record: Record, found: _Found) -> None:
    _, number, conversation, parent, role, state, _, created, *rest = record.values
    texts = [_text(v) for v in rest[:2]] + [""] * (2 - len(rest))
    extras = {
        name: _json(rest[i] if i < len(rest) else None, empty)
        for i, (name, empty) in enumerate(_JSON_EMPTY.items(), start=2)
    }
    message = Message(
        str(number), str(conversation), _optional(parent), role, texts[0], texts[1],  # type: ignore[arg-type]
        _text(created), **extras, state=state,  # type: ignore[arg-type]
    )  # fmt: skip
    known = found.messages.get(message.id)
    if known is None or _finished(message, record.whole) >= _finished(known[1], known[2]):
        found.messages[message.id] = (record.rowid, message, record.whole)


def _finished(message: Message, whole: bool) -> tuple[bool, bool, int]:
    return whole, message.state != "partial", len(message.content)


def _mended(messages: list[Message]) -> list[Message]:
    """Messages in order, each below one that stands before it in its conversation."""
    before: dict[str, set[str]] = defaultdict(set)
    last: dict[str, str] = {}
    mended = []
    for message in messages:
        home = message.conversation_id
        if message.parent_id is not None and message.parent_id not in before[home]:
            message = replace(message, parent_id=last.get(home))
        before[home].add(message.id)
        last[home] = message.id
        mended.append(message)
    return mended


def _completed(found: _Found, messages: Iterable[Message]) -> list[Conversation]:
    """Conversations in the order of their last change, with those that only messages name."""
    known = [c for _, c in sorted(found.conversations.values(), key=lambda c: c[0])]
    complete = {
        c.id: replace(c, folder_id=c.folder_id if c.folder_id in found.folders else None)
        for c in known
    }
    for message in messages:
        home, time = message.conversation_id, message.created
        if home not in complete:
            complete[home] = Conversation(home, "", None, False, time, time, None)
    return list(complete.values())


def _is_id(value: Value) -> bool:
    return isinstance(value, str) and _ID.fullmatch(value) is not None


def _text(value: Value) -> str:
    return value if isinstance(value, str) else ""


def _optional(value: Value) -> str | None:
    return value if isinstance(value, str) else None


def _json(value: Value, empty: Any) -> Any:
    """A stored list or dictionary; empty where it is unreadable or something else."""
    try:
        loaded = json.loads(value) if isinstance(value, str) else empty
    except (ValueError, RecursionError):
        return empty
    return loaded if type(loaded) is type(empty) else empty
