"""The assistant's history: conversations as trees of messages, searched and really deleted.

``History`` is what the rest of the assistant uses. Below it: ``history_records`` (what is held),
``history_schema`` (tables and migrations), ``history_store`` (the file, transactions, errors),
``history_rows`` (records to rows and back) and ``history_index`` (search).

Order is the order of writing, kept by the database; times are shown and never compared, as a
clock can jump. Text is kept as given, except that what no database or browser takes (NUL, halves
of surrogate pairs) becomes U+FFFD.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from pathlib import Path
from sqlite3 import Connection
from typing import Unpack

from edgekit.assistant import history_index as index
from edgekit.assistant import history_rows as rows
from edgekit.assistant.history_records import (
    Conversation,
    ConversationChanges,
    Folder,
    Hit,
    Message,
    MessageFields,
    NotFoundError,
    Role,
    State,
)
from edgekit.assistant.history_schema import backups, forget_in_backups
from edgekit.assistant.history_store import Store
from edgekit.errors import BadInputError


def new_id() -> str:
    """16 random hexadecimal digits."""
    return secrets.token_hex(8)


class History:
    """An open history. Its methods may be called from any thread.

    Every method raises NotFoundError for an unknown id, DamagedError if the file turns out to be
    damaged, and OutOfResourcesError if the disk is full; nothing has changed then.
    """

    def __init__(self, path: Path, clock: Callable[[], datetime] = lambda: datetime.now(UTC)):
        self.path = path
        self._clock = clock
        self._store = Store(path)

    def close(self) -> None:
        """Merge the log into the file."""
        self._store.close()

    def write(self) -> AbstractContextManager[Connection]:
        """One transaction over several changes, for import; any exception undoes all of it."""
        return self._store.write()

    def now(self) -> str:
        """The clock's time as it is stored."""
        return self._clock().astimezone(UTC).isoformat(timespec="milliseconds")

    # Conversations

    def conversations(self, folder_id: str | None = None) -> list[Conversation]:
        """Those of a folder, or all: pinned ones first, then the last changed first."""
        with self._store.read() as connection:
            return rows.conversations(connection, folder_id)

    def create(
        self, title: str = "", folder_id: str | None = None, assistant_id: str | None = None
    ) -> Conversation:
        """Begin an empty conversation."""
        now = self.now()
        made = Conversation(
            new_id(), rows.storable(title), folder_id, False, now, now, assistant_id
        )
        with self._store.write() as connection:
            if folder_id is not None:
                rows.require(connection, "folder", folder_id)
            rows.insert_conversation(connection, made)
        return made

    def conversation(self, conversation_id: str) -> Conversation:
        """One conversation."""
        with self._store.read() as connection:
            return rows.conversation(connection, conversation_id)

    def update(self, conversation_id: str, **changes: Unpack[ConversationChanges]) -> Conversation:
        """Rename, pin, or move a conversation (``folder_id=None``: out of its folder)."""
        with self._store.write() as connection:
            if changes.get("folder_id") is not None:
                rows.require(connection, "folder", str(changes["folder_id"]))
            rows.update_conversation(connection, conversation_id, changes)
            return rows.conversation(connection, conversation_id)

    def delete(self, conversation_id: str) -> None:
        """Delete a conversation for good: from the file, its log, the index and the backups."""
        with self._store.write() as connection:
            rows.delete_conversation(connection, conversation_id)
            index.purge(connection)
        self._store.erase_freed()
        forget_in_backups(self.path, conversation_id)

    def backups(self) -> list[Path]:
        """Copies made before this file was brought to a newer format, oldest first."""
        return backups(self.path)

    # Messages

    def messages(self, conversation_id: str) -> list[Message]:
        """The whole tree in the order of writing."""
        with self._store.read() as connection:
            rows.require(connection, "conversation", conversation_id)
            return rows.messages(connection, conversation_id)

    def message(self, message_id: str) -> Message:
        """One message."""
        with self._store.read() as connection:
            return rows.message(connection, message_id)

    def path_to(self, message_id: str) -> list[Message]:
        """The messages from the root to this one."""
        with self._store.read() as connection:
            rows.require(connection, "message", message_id)
            return rows.path_to(connection, message_id)

    def add(
        self,
        conversation_id: str,
        parent_id: str | None,
        role: Role,
        content: str,
        state: State = "complete",
        **fields: Unpack[MessageFields],
    ) -> Message:
        """Add a message below ``parent_id`` (None: a root). On return it is on the disk."""
        made = Message(
            new_id(), conversation_id, parent_id, role, content, fields.get("thinking", ""),
            self.now(), fields.get("origin", {}), fields.get("stats", {}),
            fields.get("sources", []), fields.get("tool_calls", []), state,
        )  # fmt: skip
        with self._store.write() as connection:
            rows.require(connection, "conversation", conversation_id)
            if parent_id is not None:
                parent = rows.message(connection, parent_id)
                if parent.conversation_id != conversation_id:
                    raise BadInputError(
                        f"message {parent_id} is in another conversation; answer it there"
                    )
            stored = rows.insert_message(connection, made)
            rows.touch(connection, conversation_id, made.created)
        return stored

    def append_partial(self, message_id: str, content: str, thinking: str = "") -> None:
        """Keep what an answer says so far, all of it; it is not yet searched."""
        with self._store.write() as connection:
            rows.rewrite_message(connection, message_id, content, "partial", {"thinking": thinking})

    def finish(
        self, message_id: str, content: str, state: State, **fields: Unpack[MessageFields]
    ) -> Message:
        """Give a message its last content, state and fields; what is not given stays."""
        with self._store.write() as connection:
            rows.rewrite_message(connection, message_id, content, state, fields)
            finished = rows.message(connection, message_id)
            rows.touch(connection, finished.conversation_id, self.now())
        return finished

    # Search

    def search(self, text: str, limit: int = 50) -> list[Hit]:
        """Titles and messages that hold every word of ``text``, the newest first."""
        with self._store.read() as connection:
            return index.search(connection, text, limit)

    # Folders

    def folders(self) -> list[Folder]:
        """All folders in the order they were made."""
        with self._store.read() as connection:
            found = connection.execute("SELECT id, name FROM folders ORDER BY number")
            return [Folder(*row) for row in found]

    def create_folder(self, name: str) -> Folder:
        """Make a folder; two may have one name."""
        made = Folder(new_id(), rows.storable(name))
        with self._store.write() as connection:
            rows.insert_folder(connection, made)
        return made

    def rename_folder(self, folder_id: str, name: str) -> Folder:
        """Give a folder another name."""
        renamed = Folder(folder_id, rows.storable(name))
        with self._store.write() as connection:
            rows.require(connection, "folder", folder_id)
            connection.execute(
                "UPDATE folders SET name = ? WHERE id = ?", (renamed.name, folder_id)
            )
        return renamed

    def delete_folder(self, folder_id: str) -> None:
        """Remove a folder; its conversations stay, outside of any."""
        with self._store.write() as connection:
            rows.require(connection, "folder", folder_id)
            connection.execute("DELETE FROM folders WHERE id = ?", [folder_id])


__all__ = ["Conversation", "Folder", "History", "Hit", "Message", "NotFoundError", "new_id"]
