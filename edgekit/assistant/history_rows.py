"""Records of the history to rows of its tables and back; every function takes a connection."""

from __future__ import annotations

import json
import re
import sqlite3
from dataclasses import replace
from typing import Any

from edgekit.assistant import history_index as index
from edgekit.assistant.history_records import (
    Conversation,
    ConversationChanges,
    Folder,
    Message,
    MessageFields,
    NotFoundError,
    State,
)
from edgekit.errors import BadInputError

LONGEST = 16 << 20  # characters of one text
JSON_FIELDS = ("origin", "stats", "sources", "tool_calls")
CONVERSATION = "id, title, folder_id, pinned, created, updated, assistant_id"
MESSAGE = (
    "id, conversation_id, parent_id, role, content, thinking, created, origin, stats, sources, "
    "tool_calls, state"
)
_UNSTORABLE = re.compile(r"[\x00\ud800-\udfff]")
_TABLES = {"conversation": "conversations", "message": "messages", "folder": "folders"}


def storable(text: str) -> str:
    """``text`` as a database and a browser take it.

    Raises:
        BadInputError: it is too long.
    """
    if len(text) > LONGEST:
        raise BadInputError(
            f"a text of {len(text):,} characters is too long for the history; keep it below "
            f"{LONGEST:,}"
        )
    return _UNSTORABLE.sub("\ufffd", text)


def require(connection: sqlite3.Connection, kind: str, number: str) -> sqlite3.Row:
    """The row of a record; raises NotFoundError."""
    sql = f"SELECT * FROM {_TABLES[kind]} WHERE id = ?"
    row: sqlite3.Row | None = connection.execute(sql, [number]).fetchone()
    if row is None:
        raise NotFoundError(kind, number)
    return row


# Folders and conversations


def insert_folder(connection: sqlite3.Connection, folder: Folder) -> None:
    """Add a folder."""
    connection.execute("INSERT INTO folders(id, name) VALUES (?, ?)", (folder.id, folder.name))


def conversations(connection: sqlite3.Connection, folder_id: str | None) -> list[Conversation]:
    """All or a folder's: pinned first, then the last changed first."""
    where, values = ("WHERE folder_id = ?", [folder_id]) if folder_id is not None else ("", [])
    sql = f"SELECT {CONVERSATION} FROM conversations {where} ORDER BY pinned DESC, touched DESC"
    return [_conversation(row) for row in connection.execute(sql, values)]


def conversation(connection: sqlite3.Connection, number: str) -> Conversation:
    """One conversation."""
    return _conversation(require(connection, "conversation", number))


def insert_conversation(connection: sqlite3.Connection, made: Conversation) -> None:
    """Add a conversation as the last changed one."""
    cursor = connection.execute(
        f"INSERT INTO conversations({CONVERSATION}, touched) VALUES (?, ?, ?, ?, ?, ?, ?, "
        "(SELECT coalesce(max(touched), 0) + 1 FROM conversations))",
        (
            made.id, made.title, made.folder_id, made.pinned, made.created, made.updated,
            made.assistant_id,
        ),
    )  # fmt: skip
    assert cursor.lastrowid is not None
    index.add_title(connection, cursor.lastrowid, made.title)


def update_conversation(
    connection: sqlite3.Connection, number: str, changes: ConversationChanges
) -> None:
    """Change columns of a conversation, and its title in the index."""
    row = require(connection, "conversation", number)
    if "title" in changes:
        title = storable(changes["title"])
        index.remove_title(connection, row["number"], row["title"])
        index.add_title(connection, row["number"], title)
        changes = {**changes, "title": title}
    for column in ("title", "pinned", "folder_id", "assistant_id"):
        if column in changes:
            sql = f"UPDATE conversations SET {column} = ? WHERE id = ?"
            connection.execute(sql, (changes[column], number))  # type: ignore[literal-required]


def touch(connection: sqlite3.Connection, number: str, time: str) -> None:
    """Make a conversation the last changed one."""
    connection.execute(
        "UPDATE conversations SET updated = ?, touched = "
        "(SELECT max(touched) + 1 FROM conversations) WHERE id = ?",
        (time, number),
    )


def delete_conversation(connection: sqlite3.Connection, number: str) -> None:
    """Remove a conversation, its messages and their words."""
    row = require(connection, "conversation", number)
    index.remove_title(connection, row["number"], row["title"])
    texts = "SELECT number, content FROM messages WHERE conversation_id = ? AND indexed = 1"
    for message_number, content in connection.execute(texts, [number]).fetchall():
        index.remove_message(connection, message_number, content)
    connection.execute("DELETE FROM messages WHERE conversation_id = ?", [number])
    connection.execute("DELETE FROM conversations WHERE id = ?", [number])


# Messages


def messages(connection: sqlite3.Connection, conversation_id: str) -> list[Message]:
    """The tree of a conversation in the order of writing."""
    sql = f"SELECT {MESSAGE} FROM messages WHERE conversation_id = ? ORDER BY number"
    return [_message(row) for row in connection.execute(sql, [conversation_id])]


def message(connection: sqlite3.Connection, number: str) -> Message:
    """One message."""
    return _message(require(connection, "message", number))


def path_to(connection: sqlite3.Connection, number: str) -> list[Message]:
    """Root to message; a parent is always written before its children."""
    sql = f"""
        WITH RECURSIVE up(number, parent) AS (
            SELECT number, parent_id FROM messages WHERE id = ?
            UNION SELECT m.number, m.parent_id FROM up JOIN messages AS m ON m.id = up.parent
        ) SELECT {MESSAGE} FROM up JOIN messages USING (number) ORDER BY number"""
    return [_message(row) for row in connection.execute(sql, [number])]


def insert_message(connection: sqlite3.Connection, made: Message) -> Message:
    """Add a message; returns it as stored."""
    stored = replace(made, content=storable(made.content), thinking=storable(made.thinking))
    values = (
        stored.id, stored.conversation_id, stored.parent_id, stored.role, stored.content,
        stored.thinking, stored.created, *(_json(getattr(made, f)) for f in JSON_FIELDS),
        stored.state,
    )  # fmt: skip
    places = ", ".join("?" * len(values))
    cursor = connection.execute(
        f"INSERT INTO messages({MESSAGE}, indexed) VALUES ({places}, 0)", values
    )
    assert cursor.lastrowid is not None
    if stored.state != "partial" and stored.role in index.SEARCHED_ROLES:
        index.add_message(connection, cursor.lastrowid, stored.content)
    return stored


def rewrite_message(
    connection: sqlite3.Connection, number: str, content: str, state: State, fields: MessageFields
) -> None:
    """Change what a message says, in the index as well."""
    row = require(connection, "message", number)
    if row["indexed"]:
        index.remove_message(connection, row["number"], row["content"])
    text = storable(content)
    changes: dict[str, Any] = {"content": text, "state": state}
    for name, value in fields.items():
        changes[name] = _json(value) if name in JSON_FIELDS else storable(str(value))
    columns = ", ".join(f"{name} = ?" for name in changes)
    connection.execute(
        f"UPDATE messages SET {columns} WHERE number = ?", (*changes.values(), row["number"])
    )
    if state != "partial" and row["role"] in index.SEARCHED_ROLES:
        index.add_message(connection, row["number"], text)


def _conversation(row: sqlite3.Row) -> Conversation:
    return Conversation(
        row["id"], row["title"], row["folder_id"], bool(row["pinned"]), row["created"],
        row["updated"], row["assistant_id"],
    )  # fmt: skip


def _message(row: sqlite3.Row) -> Message:
    values = {name: row[name] for name in Message.__dataclass_fields__}
    return Message(**{**values, **{name: json.loads(row[name]) for name in JSON_FIELDS}})


def _json(value: Any) -> str:
    return storable(json.dumps(value, ensure_ascii=False))
