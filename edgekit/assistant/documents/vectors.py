"""Nearest passages by cosine: the vectors of the index in memory, compared with all at once.

At 50,000 vectors of 384 numbers a question takes a few milliseconds and 77 MB, so there is no
approximate index to build, to keep and to trust.
"""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekit.assistant.documents.child import Child, ChildFailedError
from edgekit.assistant.documents.embedding import STORED
from edgekit.assistant.documents.limits import MB

_LOAD_SECONDS = 120.0
_QUESTION_SECONDS = 20.0
_QUESTION_CHARACTERS = 4_000


class QuestionEmbedder:
    """The vectors of questions, from a process of their own that is started when first needed.

    Attributes:
        problem: why there are no vectors, or "".
    """

    def __init__(self, command: Sequence[str]) -> None:
        self._child = Child(command, MB)
        self._about: dict[str, Any] = {}
        self._lock = threading.Lock()  # one question at a time: answers carry no name
        self.problem = ""

    def embed(self, question: str) -> tuple[str, NDArray[np.float32]] | None:
        """The model's id and the vector, or None with ``problem`` set."""
        with self._lock:
            return self._embed(question)

    def close(self) -> None:
        """End the process."""
        with self._lock:
            self._child.close()

    def _embed(self, question: str) -> tuple[str, NDArray[np.float32]] | None:
        try:
            if not self._about:
                self._about = self._json(self._child.ask(b"", _LOAD_SECONDS))
            request = question[:_QUESTION_CHARACTERS].encode("utf-8", "replace")
            answer = self._child.ask(request, _QUESTION_SECONDS)
            if len(answer) != 4 * int(self._about["dim"]):
                self._json(answer)
        except ChildFailedError as error:
            self._about = {}
            self.problem = f"the embedding model {error}; full text alone is searched"
            return None
        self.problem = ""
        return str(self._about["id"]), np.frombuffer(answer, dtype="<f4")

    def _json(self, answer: bytes) -> dict[str, Any]:
        value = json.loads(answer)
        if "problem" in value:
            raise ChildFailedError(f"cannot be loaded ({value['problem']})")
        return dict(value)


class VectorIndex:
    """The vectors of one embedder, kept up to date with the index."""

    def __init__(self) -> None:
        self._number = 0
        self._clear(0)

    def refresh(self, connection: sqlite3.Connection, number: int, dim: int) -> None:
        """Load what was added since the last time; everything if anything was removed."""
        if number != self._number or self._rows.shape[1] != dim:
            self._number = number
            self._clear(dim)
        (count,) = connection.execute(
            "SELECT count(*) FROM vectors WHERE embedder_id = ?", (number,)
        ).fetchone()
        self._load(connection, dim)
        if len(self._owners) != count:  # some were removed
            self._clear(dim)
            self._load(connection, dim)

    def nearest(self, vector: NDArray[np.float32], limit: int) -> list[tuple[int, float]]:
        """Passage ids and cosines, best first, each passage once by its best window."""
        if not len(self._owners):
            return []
        cosines = self._rows @ vector
        # windows of one passage are neighbours among the best: take some more than asked for
        most = min(len(cosines), 4 * limit)
        best = np.argpartition(-cosines, most - 1)[:most]
        best = best[np.argsort(-cosines[best], kind="stable")]
        found: dict[int, float] = {}
        for row in best:
            found.setdefault(int(self._owners[row]), float(cosines[row]))
        return list(found.items())[:limit]

    def _clear(self, dim: int) -> None:
        self._rows = np.zeros((0, dim), np.float32)
        self._owners = np.zeros(0, np.int64)
        self._last = 0

    def _load(self, connection: sqlite3.Connection, dim: int) -> None:
        rows = connection.execute(
            "SELECT serial, passage_id, vector FROM vectors "
            "WHERE serial > ? AND embedder_id = ? ORDER BY serial",
            (self._last, self._number),
        ).fetchall()
        if not rows:
            return
        stored = np.frombuffer(b"".join(r[2] for r in rows), dtype=STORED)
        new = stored.reshape(len(rows), dim).astype(np.float32)
        self._rows = np.concatenate([self._rows, new])
        self._owners = np.concatenate([self._owners, np.array([r[1] for r in rows], np.int64)])
        self._last = int(rows[-1][0])
