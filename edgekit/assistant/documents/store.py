"""The index: one SQLite file that can be thrown away and made again, except for the sources.

Passages belong to contents (a digest and the reader that read it), files refer to contents: a file
that was renamed, or copied, refers to passages that are there already, vectors included. Contents
that no file refers to are removed. Every change of a file is one transaction, so a process killed
at any moment leaves the index as it was before or after a file.

The full-text table holds words and no text (contentless), so a passage's entry is removed by
giving its words once more; they follow from its text (`words.py`).
"""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from edgekit.assistant import segment
from edgekit.assistant.documents.records import Cut
from edgekit.assistant.documents.words import words_of
from edgekit.atomic import write_json

TABLES = 1  # raised when the tables or `words.py` change
# another version of these, or of how text becomes words, makes the index anew from its sources
VERSION = zlib.crc32(f"{TABLES} {segment.VERSION}".encode()) & 0x7FFFFFFF
_BUSY_SECONDS = 30.0

_SCHEMA = f"""
CREATE TABLE sources(
    id TEXT PRIMARY KEY, path TEXT NOT NULL UNIQUE, kind TEXT NOT NULL,
    state TEXT NOT NULL DEFAULT 'queued', problems TEXT NOT NULL DEFAULT '[]');
CREATE TABLE contents(
    id INTEGER PRIMARY KEY AUTOINCREMENT, digest TEXT NOT NULL, reader TEXT NOT NULL,
    problems TEXT NOT NULL, UNIQUE(digest, reader));
CREATE TABLE files(
    source_id TEXT NOT NULL REFERENCES sources(id) ON DELETE CASCADE, path TEXT NOT NULL,
    size INTEGER NOT NULL, mtime_ns INTEGER NOT NULL, reader TEXT NOT NULL,
    content_id INTEGER REFERENCES contents(id), digest TEXT NOT NULL, problem TEXT NOT NULL,
    PRIMARY KEY(source_id, path)) WITHOUT ROWID;
CREATE INDEX files_by_content ON files(content_id);
CREATE TABLE passages(
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    content_id INTEGER NOT NULL REFERENCES contents(id) ON DELETE CASCADE,
    heading TEXT NOT NULL, page INTEGER, start INTEGER NOT NULL, stop INTEGER NOT NULL,
    text TEXT NOT NULL);
CREATE INDEX passages_by_content ON passages(content_id, id);
CREATE VIRTUAL TABLE words USING fts5(
    heading, body, content='', tokenize='{segment.TOKENIZER}');
CREATE VIRTUAL TABLE vocabulary USING fts5vocab(words, row);
CREATE TABLE embedders(
    id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, dim INTEGER NOT NULL, traits TEXT NOT NULL);
CREATE TABLE vectors(
    serial INTEGER PRIMARY KEY AUTOINCREMENT,
    passage_id INTEGER NOT NULL REFERENCES passages(id) ON DELETE CASCADE,
    embedder_id INTEGER NOT NULL, vector BLOB NOT NULL);
CREATE INDEX vectors_by_passage ON vectors(passage_id, embedder_id);
"""


def connect(path: Path) -> sqlite3.Connection:
    """Open the index, made or made anew where needed; the sources are kept.

    Raises:
        sqlite3.DatabaseError: the file is damaged or no database.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        # documents are private: nobody else may read the copy of them either
        with contextlib.suppress(FileExistsError):
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    connection = sqlite3.connect(
        path, timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False
    )
    try:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = NORMAL")
        connection.execute("PRAGMA foreign_keys = ON")
        connection.execute("PRAGMA secure_delete = ON")
        if _version(connection) != VERSION:
            with transaction(connection):
                if _version(connection) != VERSION:  # another process may have been faster
                    _make_anew(connection)
    except BaseException:
        connection.close()
        raise
    return connection


def write_source_list(path: Path, connection: sqlite3.Connection) -> None:
    """Keep what the person chose beside the index, where its damage cannot reach."""
    rows = connection.execute("SELECT id, path, kind FROM sources ORDER BY rowid").fetchall()
    write_json(_source_list(path), rows)


def begin_anew(path: Path) -> sqlite3.Connection:
    """Remove a damaged index and open an empty one with the sources chosen."""
    for ending in ("", "-wal", "-shm"):
        Path(f"{path}{ending}").unlink(missing_ok=True)
    connection = connect(path)
    with contextlib.suppress(OSError, ValueError):
        rows = json.loads(_source_list(path).read_text("utf-8"))
        connection.executemany("INSERT INTO sources(id, path, kind) VALUES(?, ?, ?)", rows)
    return connection


def _source_list(path: Path) -> Path:
    return path.with_name(f"{path.name}.sources.json")


def _version(connection: sqlite3.Connection) -> int:
    return int(connection.execute("PRAGMA user_version").fetchone()[0])


def _make_anew(connection: sqlite3.Connection) -> None:
    kept: list[tuple[str, str, str]] = []
    names = [r[0] for r in connection.execute("SELECT name FROM sqlite_master WHERE type='table'")]
    if "sources" in names:
        kept = connection.execute("SELECT id, path, kind FROM sources").fetchall()
    for name in ("vocabulary", "words", "vectors", "passages", "files", "contents", "sources"):
        connection.execute(f"DROP TABLE IF EXISTS {name}")
    connection.execute("DROP TABLE IF EXISTS embedders")
    for statement in _SCHEMA.split(";\n"):
        if statement.strip():
            connection.execute(statement)
    connection.executemany("INSERT INTO sources(id, path, kind) VALUES(?, ?, ?)", kept)
    connection.execute(f"PRAGMA user_version = {VERSION}")


@contextlib.contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """Everything inside happens or nothing does; the write lock is taken at once."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
    except BaseException:
        connection.execute("ROLLBACK")
        raise
    connection.execute("COMMIT")


def add_content(
    connection: sqlite3.Connection,
    digest: str,
    reader: str,
    problems: Sequence[str],
    cuts: Iterable[Cut],
) -> int:
    """Store the passages of a content, inside a transaction; its id if it is there already."""
    known = find_content(connection, digest, reader)
    if known is not None:
        return known
    content = connection.execute(
        "INSERT INTO contents(digest, reader, problems) VALUES(?, ?, ?)",
        (digest, reader, json.dumps(problems)),
    ).lastrowid
    assert content is not None
    for c in cuts:
        passage = connection.execute(
            "INSERT INTO passages(content_id, heading, page, start, stop, text) "
            "VALUES(?, ?, ?, ?, ?, ?)",
            (content, c.heading, c.page, c.start, c.end, c.text),
        ).lastrowid
        connection.execute(
            "INSERT INTO words(rowid, heading, body) VALUES(?, ?, ?)",
            (passage, " ".join(words_of(c.heading)), " ".join(words_of(c.text))),
        )
    return content


def find_content(connection: sqlite3.Connection, digest: str, reader: str) -> int | None:
    """The id of a content that was read before."""
    row = connection.execute(
        "SELECT id FROM contents WHERE digest = ? AND reader = ?", (digest, reader)
    ).fetchone()
    return int(row[0]) if row else None


def remove_unused(connection: sqlite3.Connection) -> int:
    """Remove the contents that no file refers to, one transaction each; how many there were."""
    unused = connection.execute(
        "SELECT id FROM contents c WHERE NOT EXISTS "
        "(SELECT 1 FROM files f WHERE f.content_id = c.id)"
    ).fetchall()
    removed = 0
    for (content,) in unused:
        with transaction(connection):
            if connection.execute(
                "SELECT 1 FROM files WHERE content_id = ? LIMIT 1", (content,)
            ).fetchone():
                continue
            _remove_words(connection, content)
            connection.execute("DELETE FROM contents WHERE id = ?", (content,))
            removed += 1
    if removed:
        # merges the full-text segments: what was removed is then gone from the file as well
        connection.execute("INSERT INTO words(words) VALUES('optimize')")
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    return removed


def _remove_words(connection: sqlite3.Connection, content: int) -> None:
    passages = connection.execute(
        "SELECT id, heading, text FROM passages WHERE content_id = ?", (content,)
    ).fetchall()
    for passage, heading, text in passages:
        connection.execute(
            "INSERT INTO words(words, rowid, heading, body) VALUES('delete', ?, ?, ?)",
            (passage, " ".join(words_of(heading)), " ".join(words_of(text))),
        )
