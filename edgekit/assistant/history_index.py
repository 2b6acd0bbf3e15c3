"""The search index of the history: which words stand in which title and message.

Two FTS5 tables without content of their own (the texts are in ``conversations`` and ``messages``)
hold the words that ``segment`` makes. Such a table forgets a text only if it is told the same
words again, so it also notes the version of ``segment`` that made it and is made anew when that
changes, as after an update of Python's Unicode tables. Messages of the person and answers are
searched; a message enters when it is finished, and one that a killed process left unfinished
enters at the next start.

Results are newest first: by the order of writing, never by time.
"""

from __future__ import annotations

import sqlite3

from edgekit.assistant.history_records import Hit
from edgekit.assistant.history_schema import INDEX_TABLES
from edgekit.assistant.segment import TOKENIZER, VERSION, find_marks, index_text, match_all

SEARCHED_ROLES = ("user", "assistant")
BEFORE, AROUND = 40, 200  # characters of a snippet: before the first mark, and in all
STEP, OVERLAP = 4096, 256  # characters scanned at once for the first mark
SCANNED = 200_000  # characters of a message in which marks are looked for


def prepare_index(connection: sqlite3.Connection) -> None:
    """Make the index if it is missing or of another version, and complete it."""
    row = connection.execute("SELECT value FROM facts WHERE name = 'index'").fetchone()
    if row is None or row[0] != VERSION:
        rebuild_index(connection)
    for number, content in connection.execute(
        "SELECT number, content FROM messages WHERE indexed = 0 AND role IN (?, ?)", SEARCHED_ROLES
    ).fetchall():
        add_message(connection, number, content)


def rebuild_index(connection: sqlite3.Connection) -> None:
    """Forget the index and read every text again."""
    for table in INDEX_TABLES:
        connection.execute(f"DROP TABLE IF EXISTS {table}")
        connection.execute(
            f"CREATE VIRTUAL TABLE {table} USING fts5(words, content='', tokenize='{TOKENIZER}')"
        )
    for number, title in connection.execute("SELECT number, title FROM conversations"):
        add_title(connection, number, title)
    connection.execute("UPDATE messages SET indexed = 0")
    texts = "SELECT number, content FROM messages WHERE role IN (?, ?) AND state != 'partial'"
    for number, content in connection.execute(texts, SEARCHED_ROLES):
        _insert(connection, "message_words", number, content)
    connection.execute(
        "UPDATE messages SET indexed = 1 WHERE role IN (?, ?) AND state != 'partial'",
        SEARCHED_ROLES,
    )
    connection.execute("INSERT OR REPLACE INTO facts VALUES ('index', ?)", [VERSION])


def add_title(connection: sqlite3.Connection, number: int, title: str) -> None:
    """Index the title of conversation ``number``."""
    _insert(connection, "title_words", number, title)


def remove_title(connection: sqlite3.Connection, number: int, title: str) -> None:
    """Forget a title; ``title`` is the one that was indexed."""
    _delete(connection, "title_words", number, title)


def add_message(connection: sqlite3.Connection, number: int, content: str) -> None:
    """Index message ``number``."""
    _insert(connection, "message_words", number, content)
    connection.execute("UPDATE messages SET indexed = 1 WHERE number = ?", [number])


def remove_message(connection: sqlite3.Connection, number: int, content: str) -> None:
    """Forget a message; ``content`` is what was indexed."""
    _delete(connection, "message_words", number, content)
    connection.execute("UPDATE messages SET indexed = 0 WHERE number = ?", [number])


def purge(connection: sqlite3.Connection) -> None:
    """Rewrite the index, as words of what was removed stay in it until its parts are merged."""
    for table in INDEX_TABLES:
        connection.execute(f"INSERT INTO {table}({table}) VALUES ('optimize')")


def check_index(connection: sqlite3.Connection) -> None:
    """Raises sqlite3.DatabaseError where the index contradicts itself."""
    for table in INDEX_TABLES:
        connection.execute(f"INSERT INTO {table}({table}) VALUES ('integrity-check')")


def search(connection: sqlite3.Connection, query: str, limit: int) -> list[Hit]:
    """Titles, then messages, that hold every part of ``query``; the newest first."""
    expression = match_all(query)
    if not expression:
        return []
    titles = connection.execute(
        """SELECT id, title FROM title_words JOIN conversations ON number = title_words.rowid
        WHERE title_words MATCH ? ORDER BY touched DESC LIMIT ?""",
        (expression, limit),
    )
    hits = [Hit(i, "", title, *snippet(title, query)) for i, title in titles]
    messages = connection.execute(
        """SELECT m.conversation_id, m.id, c.title, substr(m.content, 1, ?)
        FROM message_words AS w JOIN messages AS m ON m.number = w.rowid
        JOIN conversations AS c ON c.id = m.conversation_id
        WHERE message_words MATCH ? ORDER BY w.rowid DESC LIMIT ?""",
        (SCANNED, expression, limit - len(hits)),
    )
    hits += [Hit(c, m, title, *snippet(text, query)) for c, m, title, text in messages]
    return hits


def snippet(text: str, query: str) -> tuple[str, list[tuple[int, int]]]:
    """A line of ``text`` around the first match and the marks in it."""
    first = _first_mark(text, query)
    start = max(0, first - BEFORE)
    if start and (space := text.find(" ", start, first)) >= 0:
        start = space + 1  # not in the middle of a word
    line = "".join(" " if c.isspace() else c for c in text[start : start + AROUND])
    line = ("…" if start else "") + line + ("…" if start + AROUND < len(text) else "")
    return line, find_marks(line, query)


def _first_mark(text: str, query: str) -> int:
    """Where the first match begins; 0 if there is none in sight. Reads no more than it must."""
    for start in range(0, len(text), STEP):
        marks = find_marks(text[start : start + STEP + OVERLAP], query)
        if marks:
            return start + marks[0][0]
    return 0


def _insert(connection: sqlite3.Connection, table: str, number: int, text: str) -> None:
    sql = f"INSERT INTO {table}(rowid, words) VALUES (?, ?)"
    connection.execute(sql, (number, index_text(text)))


def _delete(connection: sqlite3.Connection, table: str, number: int, text: str) -> None:
    sql = f"INSERT INTO {table}({table}, rowid, words) VALUES ('delete', ?, ?)"
    connection.execute(sql, (number, index_text(text)))
