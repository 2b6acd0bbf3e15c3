"""Vectors of passages: which windows of a text are embedded, and a batch of them at a time.

A passage longer than the model reads gets several vectors, one per window, and is found by the
best of them. The windows begin with the heading, which often holds the subject that the sentences
leave out.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgekit.assistant.documents import store
from edgekit.assistant.documents.chunks import middle_break
from edgekit.assistant.documents.traits import measure_traits

if TYPE_CHECKING:
    from edgekit.runtimes.embedding import Embedder

BATCH = 16  # passages per transaction
STORED = np.float16


def load(pack: Path) -> Embedder:
    """The embedder of a pack.

    Raises:
        EdgekitError: it cannot be loaded.
    """
    from edgekit.runtimes.embedding import load_embedder

    return load_embedder(pack)


def register(connection: sqlite3.Connection, embedder: Embedder) -> int:
    """The number of an embedder in the index; its traits are measured the first time."""
    row = connection.execute(
        "SELECT id FROM embedders WHERE name = ? AND dim = ?", (embedder.id, embedder.dim)
    ).fetchone()
    if row:
        return int(row[0])
    traits = measure_traits(embedder)
    with store.transaction(connection):
        connection.execute("DELETE FROM embedders WHERE name = ?", (embedder.id,))
        number = connection.execute(
            "INSERT INTO embedders(name, dim, traits) VALUES(?, ?, ?)",
            (embedder.id, embedder.dim, json.dumps(traits.to_dict())),
        ).lastrowid
    assert number is not None
    return number


class PassageEmbedder:
    """Fills in the vectors that passages lack of one embedder."""

    def __init__(
        self,
        connection: sqlite3.Connection,
        embedder: Embedder,
        report: Callable[[dict[str, Any]], None],
    ) -> None:
        self._db = connection
        self._embedder = embedder
        self._number = register(connection, embedder)
        self._report = report
        self._last = 0  # every passage up to this id was looked at

    def batch(self) -> bool:
        """Compute vectors of the next passages that have none; False when all have them.

        The vectors of other embedders are removed then.
        """
        missing = self._db.execute(
            "SELECT id, heading, text FROM passages p WHERE id > ? AND NOT EXISTS "
            "(SELECT 1 FROM vectors v WHERE v.passage_id = p.id AND v.embedder_id = ?) "
            "ORDER BY id LIMIT ?",
            (self._last, self._number, BATCH),
        ).fetchall()
        if not missing:
            with store.transaction(self._db):
                self._db.execute("DELETE FROM vectors WHERE embedder_id <> ?", (self._number,))
                self._db.execute("DELETE FROM embedders WHERE id <> ?", (self._number,))
            return False
        self._embed(missing)
        self._last = missing[-1][0]
        done, total = embedded(self._db, self._number)
        self._report({"phase": "meaning", "done": done, "total": total})
        return True

    def _embed(self, passages: Sequence[tuple[int, str, str]]) -> None:
        texts: list[str] = []
        owners: list[int] = []
        for passage, heading, text in passages:
            for window in windows(self._embedder, heading, text):
                texts.append(window)
                owners.append(passage)
        vectors = self._embedder.embed(texts, "passage").astype(STORED)
        with store.transaction(self._db):
            self._db.executemany(
                "INSERT INTO vectors(passage_id, embedder_id, vector) "
                "SELECT id, ?, ? FROM passages WHERE id = ?",  # unless removed meanwhile
                [
                    (self._number, vector.tobytes(), owner)
                    for owner, vector in zip(owners, vectors, strict=True)
                ],
            )


def embedded(connection: sqlite3.Connection, number: int) -> tuple[int, int]:
    """How many passages have a vector of the embedder, and how many there are."""
    (total,) = connection.execute("SELECT count(*) FROM passages").fetchone()
    (done,) = connection.execute(
        "SELECT count(DISTINCT passage_id) FROM vectors WHERE embedder_id = ?", (number,)
    ).fetchone()
    return int(done), int(total)


def windows(embedder: Embedder, heading: str, text: str) -> list[str]:
    """``text`` in parts that the model reads whole, each after the heading."""
    whole = f"{heading}\n{text}" if heading else text
    half = middle_break(text)
    if half in (0, len(text)) or embedder.count_tokens(whole) <= embedder.max_tokens:
        return [whole]
    return [
        *windows(embedder, heading, text[:half].strip()),
        *windows(embedder, heading, text[half:].strip()),
    ]
