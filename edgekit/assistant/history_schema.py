"""The tables of the history, and how a file of an older edgekit becomes one of this edgekit.

``user_version`` counts the migrations that a file has seen. A file that has seen fewer is copied
first (SQLite's backup API, checked, named by version and date, the newest few kept), then brought
up to date in one transaction: it is either the old one or the new one. A file that has seen more
is left alone.

Migrations may add tables and append columns; they never reorder columns, so that the rows of any
version can be read from damaged pages. The search index is no part of this: it is made anew
whenever it is missing (``history_index``), and copies go without it.
"""

from __future__ import annotations

import contextlib
import glob
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

from edgekit.atomic import atomic_file
from edgekit.errors import BadInputError

APPLICATION = 0x656B6869  # "ekhi" in the file's header
PAGE = 4096  # bytes
BACKUPS_KEPT = 3
INDEX_TABLES = ("title_words", "message_words")

Migration = Callable[[sqlite3.Connection], None]

_FIRST = """
CREATE TABLE folders (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    name TEXT NOT NULL
);
CREATE TABLE conversations (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    title TEXT NOT NULL,
    folder_id TEXT REFERENCES folders(id) ON DELETE SET NULL,
    pinned INTEGER NOT NULL,
    created TEXT NOT NULL,
    updated TEXT NOT NULL,
    assistant_id TEXT,
    touched INTEGER NOT NULL -- grows with every change to any conversation; clocks can jump
);
CREATE INDEX conversations_by_folder ON conversations(folder_id);
CREATE INDEX conversations_by_change ON conversations(touched);
CREATE TABLE messages (
    number INTEGER PRIMARY KEY AUTOINCREMENT, -- the order; times are only shown
    id TEXT NOT NULL UNIQUE,
    conversation_id TEXT NOT NULL REFERENCES conversations(id),
    parent_id TEXT,
    role TEXT NOT NULL CHECK (role IN ('system', 'user', 'assistant', 'tool')),
    state TEXT NOT NULL CHECK (state IN ('complete', 'stopped', 'failed', 'partial')),
    indexed INTEGER NOT NULL, -- whether the search index holds it
    created TEXT NOT NULL,
    content TEXT NOT NULL,
    thinking TEXT NOT NULL,
    origin TEXT NOT NULL,
    stats TEXT NOT NULL,
    sources TEXT NOT NULL,
    tool_calls TEXT NOT NULL,
    UNIQUE (conversation_id, id),
    -- a parent is in the same conversation; checked at the end, as all of it goes at once
    FOREIGN KEY (conversation_id, parent_id) REFERENCES messages(conversation_id, id)
        DEFERRABLE INITIALLY DEFERRED
);
CREATE INDEX messages_by_parent ON messages(conversation_id, parent_id);
CREATE INDEX messages_to_index ON messages(role) WHERE indexed = 0;
CREATE TABLE facts (name TEXT PRIMARY KEY, value TEXT NOT NULL);
"""


def _create(connection: sqlite3.Connection) -> None:
    for statement in _FIRST.split(";\n"):
        connection.execute(statement)


MIGRATIONS: tuple[Migration, ...] = (_create,)


def prepare(path: Path, migrations: Sequence[Migration] | None = None) -> None:
    """Make ``path`` a database of the newest schema.

    Raises:
        BadInputError: it is from a newer edgekit, or something else.
        OutOfResourcesError: the disk is full; the file is as it was.
        sqlite3.DatabaseError: it is damaged.
    """
    steps = MIGRATIONS if migrations is None else migrations
    if not path.exists():
        _create_file(path, steps)
        return
    with _opened(path) as connection:
        version = _version(connection, path, len(steps))
        if version < len(steps):
            back_up(connection, path, version)
            _migrate(connection, steps, version)


def back_up(connection: sqlite3.Connection, path: Path, version: int) -> Path:
    """Copy an open database beside itself, without its search index; prune older copies."""
    target = _free_name(path, version)
    with atomic_file(target) as temporary:
        with _opened(temporary) as copy:
            connection.backup(copy)
            copy.execute("PRAGMA journal_mode = DELETE")  # one file, no log beside it
            _drop_index(copy)
            copy.execute("VACUUM")
            _check_copy(connection, copy, target)
        temporary.chmod(0o600)
    others = [copy for copy in backups(path) if copy != target]  # whatever the clock says
    for old in others[: 1 - BACKUPS_KEPT]:
        old.unlink(missing_ok=True)
    return target


def backups(path: Path) -> list[Path]:
    """The copies made before migrations, oldest first."""
    return sorted(
        path.parent.glob(f"{glob.escape(path.stem)}.before-v*.backup"), key=_version_and_date
    )


def forget_in_backups(path: Path, conversation_id: str) -> None:
    """Delete a conversation from the copies as well; a copy that does not take that is removed."""
    for copy in backups(path):
        try:
            with _opened(copy) as connection:
                connection.execute("PRAGMA secure_delete = ON")
                connection.execute("BEGIN IMMEDIATE")
                for table, column in (("messages", "conversation_id"), ("conversations", "id")):
                    connection.execute(f"DELETE FROM {table} WHERE {column} = ?", [conversation_id])
                connection.execute("COMMIT")
        except sqlite3.DatabaseError:
            copy.unlink(missing_ok=True)


def _create_file(path: Path, steps: Sequence[Migration]) -> None:
    with atomic_file(path) as temporary:  # so an empty file is never a new history
        with _opened(temporary) as connection:
            connection.execute(f"PRAGMA page_size = {PAGE}")
            connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
            connection.execute(f"PRAGMA application_id = {APPLICATION}")
            _migrate(connection, steps, 0)
        temporary.chmod(0o600)


def _migrate(connection: sqlite3.Connection, steps: Sequence[Migration], version: int) -> None:
    connection.execute("BEGIN IMMEDIATE")
    try:
        for step in steps[version:]:
            step(connection)
        connection.execute(f"PRAGMA user_version = {len(steps)}")
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def _version(connection: sqlite3.Connection, path: Path, newest: int) -> int:
    version: int = connection.execute("PRAGMA user_version").fetchone()[0]
    application: int = connection.execute("PRAGMA application_id").fetchone()[0]
    if application != APPLICATION:
        raise BadInputError(f"{path} is not a history of edgekit; choose another data folder")
    if version > newest:
        raise BadInputError(
            f"{path} was written by a newer edgekit (its format is {version}, this edgekit knows "
            f"{newest}); install the newer edgekit, or choose another data folder"
        )
    return version


def _check_copy(original: sqlite3.Connection, copy: sqlite3.Connection, target: Path) -> None:
    """Raises what a damaged file raises: a migration must not begin without a good copy."""
    problem = copy.execute("PRAGMA integrity_check(1)").fetchone()[0]
    count = "SELECT (SELECT count(*) FROM messages), (SELECT count(*) FROM conversations)"
    same = tuple(original.execute(count).fetchone()) == tuple(copy.execute(count).fetchone())
    if problem != "ok" or not same:
        raise sqlite3.DatabaseError(f"the copy {target.name} is not good: {problem}")


def _drop_index(connection: sqlite3.Connection) -> None:
    for table in INDEX_TABLES:
        connection.execute(f"DROP TABLE IF EXISTS {table}")
    connection.execute("DELETE FROM facts WHERE name = 'index'")


def _free_name(path: Path, version: int) -> Path:
    date = f"{datetime.now(UTC):%Y%m%dT%H%M%S}"
    names = (f"{path.stem}.before-v{version + 1}.{date}-{i:02}.backup" for i in range(100))
    return next(p for p in map(path.with_name, names) if not p.exists())


def _version_and_date(copy: Path) -> tuple[int, str]:
    version, _, date = copy.name.rpartition(".before-v")[2].partition(".")
    return (int(version) if version.isdecimal() else 0), date


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[sqlite3.Connection]:
    connection = sqlite3.connect(path, isolation_level=None)
    try:
        yield connection
    finally:
        connection.close()
