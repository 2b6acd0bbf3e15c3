"""`Library`: the documents that a person chose, searchable.

The host holds one: it remembers sources, starts the indexing process when something changed, and
searches. It never opens a document and never runs a model itself; both happen in processes that
may crash (`reader.py`, `embedding_worker.py`).
"""

from __future__ import annotations

import contextlib
import json
import re
import secrets
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from edgekit.assistant.documents import store
from edgekit.assistant.documents.child import module_command
from edgekit.assistant.documents.embedding import embedded
from edgekit.assistant.documents.limits import Limits
from edgekit.assistant.documents.ranking import CANDIDATES, Meaning, join_texts, rank
from edgekit.assistant.documents.records import (
    Passage,
    PassageInContext,
    Progress,
    Source,
)
from edgekit.assistant.documents.supervisor import Supervisor
from edgekit.assistant.documents.traits import language_of
from edgekit.assistant.documents.vectors import QuestionEmbedder, VectorIndex
from edgekit.assistant.documents.words import terms_of
from edgekit.errors import BadInputError, EdgekitError, OutOfResourcesError

PROBLEMS_SHOWN = 50
_PASSAGE_ID = re.compile(r"[0-9]{1,15}(-[0-9]{1,15})?")
_AROUND = 600  # characters shown before and after a passage


if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True)
class EmbeddingState:
    """What search by meaning can do now.

    Attributes:
        state: "none" (no model: full text alone), "ready", "rebuilding" (vectors of some passages
            are still missing; full text works) or "failed".
        fraction: of the passages that have vectors. problem: why it failed, or "".
    """

    state: Literal["none", "ready", "rebuilding", "failed"]
    id: str = ""
    dim: int = 0
    fraction: float = 0.0
    problem: str = ""

    def __str__(self) -> str:
        match self.state:
            case "none":
                return "none: full text alone"
            case "failed":
                return f"failed: {self.problem}"
            case "rebuilding":
                return f"rebuilding: {self.fraction:.0%}"
        return f"{self.id}, {self.dim} dimensions"


@dataclass(frozen=True)
class Processes:
    """The commands of the two processes, to which database, pack and limits are appended."""

    indexer: Sequence[str] = field(
        default_factory=lambda: module_command("edgekit.assistant.documents.indexer")
    )
    embedder: Sequence[str] = field(
        default_factory=lambda: module_command("edgekit.assistant.documents.embedding_worker")
    )


class Library:
    """Chosen files and folders, and search in them. Thread safe."""

    def __init__(
        self,
        path: Path,
        embedder_pack: Path | None,
        limits: Limits | None = None,
        processes: Processes | None = None,
    ) -> None:
        """Open or make the index at ``path`` and bring it up to date in the background.

        A damaged index is made anew from its sources.
        """
        self._path = path
        self._lock = threading.RLock()
        self._pack = str(embedder_pack or "")
        self._db = self._open()
        self._vectors = VectorIndex()
        run = processes or Processes()
        self._questions = QuestionEmbedder([*run.embedder, self._pack]) if self._pack else None
        self._supervisor = Supervisor(
            [*run.indexer, str(path), self._pack, limits.to_json() if limits else ""],
            self._has_work,
            self._give_up,
            self._make_anew,
        )
        if self._all("SELECT 1 FROM sources LIMIT 1"):
            self._all("UPDATE sources SET state = 'queued'")
            self._supervisor.wake()

    def add(self, path: Path) -> Source:
        """Choose a file or folder; what was chosen before is looked at again.

        Raises:
            BadInputError: there is nothing at ``path``.
        """
        whole = path.expanduser()
        if not whole.exists():
            raise BadInputError(f"{path}: not found; choose a file or folder that exists")
        whole = whole.resolve()
        if not (whole.is_file() or whole.is_dir()):
            raise BadInputError(f"{path}: not a file or folder; choose one")
        self._all(
            "INSERT INTO sources(id, path, kind) VALUES(?, ?, ?) "
            "ON CONFLICT(path) DO UPDATE SET state = 'queued'",
            secrets.token_hex(8),
            str(whole),
            "folder" if whole.is_dir() else "file",
        )
        self._remember()
        self._supervisor.wake()
        (number,) = self._all("SELECT id FROM sources WHERE path = ?", str(whole))[0]
        return self._source(number)

    def sources(self) -> list[Source]:
        """Everything chosen, in the order of choosing."""
        with self._lock:
            numbers = self._all("SELECT id FROM sources ORDER BY rowid")
            return [self._source(number) for (number,) in numbers]

    def remove(self, source_id: str) -> None:
        """Forget a source: out of every search at once, out of the file soon after."""
        self._all("DELETE FROM sources WHERE id = ?", self._source(source_id).id)
        self._remember()
        self._supervisor.wake()

    def refresh(self, source_id: str) -> None:
        """Look at a source again; only what changed is read."""
        self._all("UPDATE sources SET state = 'queued' WHERE id = ?", self._source(source_id).id)
        self._supervisor.wake()

    def progress(self) -> Progress:
        """What the indexing process is doing."""
        return self._supervisor.progress()

    def wait(self, seconds: float) -> bool:
        """Wait until everything is indexed; False if that takes longer."""
        return self._supervisor.wait(seconds)

    def search(self, query: str, limit: int = 6) -> list[Passage]:
        """The passages that answer ``query``, best first; an empty list says that none does."""
        terms = terms_of(query)
        question = self._questions.embed(query) if self._questions and terms else None
        with self._lock:
            meaning = self._meaning(*question, query) if question else None
            with self._errors_as_sentences():
                return rank(self._db, terms, meaning, limit)

    def passage(self, passage_id: str) -> PassageInContext:
        """A passage that was found, with the text around it.

        Raises:
            BadInputError: the document changed or was removed since.
        """
        gone = BadInputError("this passage is no longer in your documents; ask again")
        if not _PASSAGE_ID.fullmatch(passage_id):
            raise gone
        first, _, last = passage_id.partition("-")
        rows = self._all(
            "SELECT p.id, f.source_id, f.path, p.page, p.heading, p.text, p.start, p.stop "
            "FROM passages p JOIN files f ON f.content_id = p.content_id "
            "WHERE p.content_id = (SELECT content_id FROM passages WHERE id = ?) "
            "AND p.id BETWEEN ? AND ? GROUP BY p.id ORDER BY p.id",
            int(first), int(first) - 1, int(last or first) + 1,
        )  # fmt: skip
        around = [Passage(str(r[0]), *r[1:]) for r in rows]
        within = [p for p in around if int(first) <= int(p.id) <= int(last or first)]
        if not within:
            raise gone
        passage = _joined(within, passage_id)
        before = [p for p in around if int(p.id) < int(first)]
        after = [p for p in around if int(p.id) > int(last or first)]
        return PassageInContext(
            passage,
            before[0].text[: passage.start - before[0].start][-_AROUND:] if before else "",
            after[0].text[max(0, passage.end - after[0].start) :][:_AROUND] if after else "",
        )

    def embedding(self) -> EmbeddingState:
        """Whether passages are found by meaning, and how far that is."""
        problem = self._supervisor.embedding_problem
        if self._questions is None:
            return EmbeddingState("none")
        problem = problem or self._questions.problem
        if problem:
            return EmbeddingState("failed", problem=problem)
        with self._lock:
            row = self._all("SELECT id, name, dim FROM embedders ORDER BY id DESC LIMIT 1")
            done, total = embedded(self._db, row[0][0]) if row else (0, 1)
        if not row:
            return EmbeddingState("rebuilding" if self.sources() else "ready")
        state: Literal["ready", "rebuilding"] = "ready" if done == total else "rebuilding"
        return EmbeddingState(state, row[0][1], row[0][2], done / total if total else 1.0)

    def embedding_state(self) -> str:
        """`embedding` in a few words."""
        return str(self.embedding())

    def close(self) -> None:
        """Stop indexing and close the index."""
        self._supervisor.close()
        if self._questions is not None:
            self._questions.close()
        with self._lock:
            self._db.close()

    def _meaning(self, name: str, vector: NDArray[np.float32], query: str) -> Meaning | None:
        row = self._all("SELECT id, dim, traits FROM embedders WHERE name = ?", name)
        if not row:
            return None
        number, dim, traits = row[0][0], row[0][1], json.loads(row[0][2])
        language = language_of(query)
        if not traits["knows"][language]:
            return None
        with self._errors_as_sentences():
            self._vectors.refresh(self._db, number, dim)
        return Meaning(self._vectors.nearest(vector, CANDIDATES), traits["floor"][language])

    def _source(self, source_id: str) -> Source:
        with self._lock:
            rows = self._all(
                "SELECT id, path, kind, state, problems FROM sources WHERE id = ?", source_id
            )
            if not rows:
                raise BadInputError(f"source {source_id!r} is not one of your documents")
            number, path, kind, state, problems = rows[0]
            files, passages = self._all(
                "SELECT count(*), coalesce(sum((SELECT count(*) FROM passages p "
                "WHERE p.content_id = f.content_id)), 0) "
                "FROM files f WHERE source_id = ? AND content_id IS NOT NULL",
                number,
            )[0]
            return Source(
                number, path, kind, state, files, passages, self._problems(number, problems)
            )

    def _problems(self, source: str, of_source: str) -> list[str]:
        problems: list[str] = json.loads(of_source)
        for path, problem, of_content in self._all(
            "SELECT f.path, f.problem, coalesce(c.problems, '[]') FROM files f "
            "LEFT JOIN contents c ON c.id = f.content_id "
            "WHERE f.source_id = ? AND (f.problem <> '' OR c.problems <> '[]') ORDER BY f.path",
            source,
        ):
            problems += [f"{path}: {p}" for p in [problem, *json.loads(of_content)] if p]
        others = len(problems) - PROBLEMS_SHOWN
        return problems if others <= 0 else [*problems[:PROBLEMS_SHOWN], f"and {others} others"]

    def _remember(self) -> None:
        with self._lock, self._errors_as_sentences():
            store.write_source_list(self._path, self._db)

    def _has_work(self) -> bool:
        with contextlib.suppress(EdgekitError):
            return bool(
                self._all("SELECT 1 FROM sources WHERE state IN ('queued', 'indexing') LIMIT 1")
            )
        return False

    def _give_up(self, reason: str) -> bool:
        with self._lock, contextlib.suppress(EdgekitError):  # a full disk takes no note either
            for state in ("indexing", "queued"):
                waiting = self._all("SELECT 1 FROM sources WHERE state = ? LIMIT 1", state)
                self._all(
                    "UPDATE sources SET state = 'failed', problems = ? WHERE state = ?",
                    json.dumps([reason]),
                    state,
                )
                if waiting:
                    return True
        return False

    def _open(self) -> sqlite3.Connection:
        try:
            connection = store.connect(self._path)
            connection.execute("SELECT * FROM sources").fetchall()
            return connection
        except sqlite3.OperationalError as error:
            raise OutOfResourcesError(
                f"{self._path}: the index of your documents cannot be opened ({error}); free some "
                "disk space, or choose another data folder"
            ) from error
        except sqlite3.DatabaseError:
            return store.begin_anew(self._path)

    def _make_anew(self) -> None:
        with self._lock:
            self._db.close()
            self._db = store.begin_anew(self._path)
            self._vectors = VectorIndex()

    def _all(self, statement: str, *values: object) -> list[tuple[Any, ...]]:
        with self._lock, self._errors_as_sentences():
            return self._db.execute(statement, values).fetchall()

    @contextlib.contextmanager
    def _errors_as_sentences(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.OperationalError as error:
            raise OutOfResourcesError(
                f"{self._path}: the index of your documents cannot be used now ({error}); free "
                "some disk space and try again"
            ) from error
        except sqlite3.DatabaseError as error:
            self._supervisor.wake()  # finds the damage and has the index made anew
            raise BadInputError(
                f"{self._path}: the index of your documents was damaged ({error}) and is being "
                "made again; ask again in a moment"
            ) from error


def _joined(passages: list[Passage], passage_id: str) -> Passage:
    whole = passages[0]
    for following in passages[1:]:
        whole = Passage(
            passage_id, whole.source_id, whole.file, whole.page, whole.heading,
            join_texts(whole, following), whole.start, following.end,
        )  # fmt: skip
    return whole
