"""Retrieval from this project's own manual: full text alone, vectors alone, and both.

    python benchmarks/retrieval.py [--pack EMBEDDING_PACK] [--json FILE] [--misses]
    python benchmarks/retrieval.py --latency 50000

Indexes the corpus that `retrieval_questions.json` names, asks its questions three ways and prints
per language and kind of question:

* recall@5: an expected section (file and heading) is among the first five passages;
* first: the passage that an answer would cite first is of an expected section;
* silent: of the questions that the manual does not answer, those to which nothing was returned.

The thresholds of `ranking.py` were set with these questions in sight, so the figures say how the
parts compare, not how well a stranger's questions do. ``--latency`` times searches over that many
passages of random text and vectors.
"""

from __future__ import annotations

import argparse
import json
import random
import sqlite3
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgekit.assistant.documents import store
from edgekit.assistant.documents.embedding import STORED, load, register
from edgekit.assistant.documents.indexer import Indexer
from edgekit.assistant.documents.limits import Limits
from edgekit.assistant.documents.ranking import CANDIDATES, Meaning, rank
from edgekit.assistant.documents.records import Cut, Passage
from edgekit.assistant.documents.traits import Traits, language_of
from edgekit.assistant.documents.vectors import VectorIndex
from edgekit.assistant.documents.words import terms_of
from edgekit.runtimes.embedding import Embedder

ROOT = Path(__file__).resolve().parent.parent
QUESTIONS = Path(__file__).with_name("retrieval_questions.json")
SHOWN = 5
DIM = 384  # of random vectors
Search = Callable[[str], list[Passage]]


@dataclass(frozen=True)
class Question:
    """``answers``: file and last heading of each section that answers; none if there is none."""

    number: int
    language: str
    kind: str
    question: str
    answers: list[tuple[str, str]]


@dataclass(frozen=True)
class Outcome:
    """``place``: of the first expected passage, 1-based, or 0."""

    question: Question
    returned: int
    place: int


class Index:
    """The corpus indexed, with what each way of searching needs."""

    def __init__(self, directory: Path, patterns: Sequence[str], pack: Path | None) -> None:
        self.db = store.connect(directory / "documents.db")
        files = sorted({f for p in patterns for f in ROOT.glob(p)})
        for number, file in enumerate(files):
            self.db.execute(
                "INSERT INTO sources(id, path, kind) VALUES(?, ?, 'file')", (str(number), str(file))
            )
        self.seconds: dict[str, float] = {}
        self._timed("text", None)
        self.embedder: Embedder | None = None
        self.vectors = VectorIndex()
        if pack is not None:
            self.embedder = load(pack)
            self._timed("vectors", pack)
            self.number = register(self.db, self.embedder)
            self.vectors.refresh(self.db, self.number, self.embedder.dim)
            (traits,) = self.db.execute(
                "SELECT traits FROM embedders WHERE id = ?", (self.number,)
            ).fetchone()
            self.traits = Traits(**json.loads(traits))
        (self.passages,) = self.db.execute("SELECT count(*) FROM passages").fetchone()

    def _timed(self, what: str, pack: Path | None) -> None:
        started = time.perf_counter()
        Indexer(self.db, Limits(), lambda _: None).run(pack)
        self.seconds[what] = time.perf_counter() - started

    def by_words(self, question: str) -> list[Passage]:
        """Full text alone."""
        return rank(self.db, terms_of(question), None, SHOWN)

    def by_meaning(self, question: str) -> list[Passage]:
        """Vectors alone."""
        return rank(self.db, [], self._meaning(question), SHOWN)

    def by_both(self, question: str) -> list[Passage]:
        """As the assistant does."""
        return rank(self.db, terms_of(question), self._meaning(question), SHOWN)

    def _meaning(self, question: str) -> Meaning | None:
        assert self.embedder is not None
        language = language_of(question)
        if not self.traits.knows[language]:
            return None
        vector = self.embedder.embed([question], "query")[0]
        nearest = self.vectors.nearest(vector, CANDIDATES)
        return Meaning(nearest, self.traits.floor[language])


def ask(questions: Sequence[Question], search: Search) -> list[Outcome]:
    """Every question one way."""
    outcomes = []
    for question in questions:
        passages = search(question.question)
        places = [i for i, p in enumerate(passages, 1) if _expected(p, question)]
        outcomes.append(Outcome(question, len(passages), min(places, default=0)))
    return outcomes


def _expected(passage: Passage, question: Question) -> bool:
    file = Path(passage.file).relative_to(ROOT).as_posix()
    return (file, passage.heading.split(" › ")[-1]) in question.answers


def _share(hits: Sequence[bool]) -> str:
    return f"{sum(hits)}/{len(hits)}" if hits else "-"


def table(ways: dict[str, list[Outcome]]) -> str:
    """Markdown."""
    first = next(iter(ways.values()))
    groups = list(dict.fromkeys((o.question.language, o.question.kind) for o in first))
    lines = [
        "| questions | " + " | ".join(f"{way}: recall@{SHOWN}, first" for way in ways) + " |",
        "|---|" + "---|" * len(ways),
    ]

    def row(name: str, chosen: Callable[[Question], bool]) -> None:
        cells = []
        for outcomes in ways.values():
            some = [o for o in outcomes if chosen(o.question)]
            if all(o.question.answers for o in some):
                found = [0 < o.place <= SHOWN for o in some]
                cells.append(f"{_share(found)}, {_share([o.place == 1 for o in some])}")
            else:
                cells.append(f"silent {_share([o.returned == 0 for o in some])}")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")

    for language, kind in groups:
        row(f"{language}, {kind}", lambda q: (q.language, q.kind) == (language, kind))  # noqa: B023
    for half, name in ((0, "even numbers"), (1, "odd numbers")):
        row(f"**{name}**, answerable", lambda q: bool(q.answers) and q.number % 2 == half)  # noqa: B023
        row(f"**{name}**, not", lambda q: not q.answers and q.number % 2 == half)  # noqa: B023
    row("**all**, answerable", lambda q: bool(q.answers))
    row("**all**, not", lambda q: not q.answers)
    return "\n".join(lines)


def latency(passages: int) -> str:
    """Milliseconds of one search over random passages, with and without vectors."""
    rng, random_words = np.random.default_rng(0), random.Random(0)
    words = sorted({w for f in ROOT.glob("docs/*.md") for w in f.read_text("utf-8").split()})
    frequencies = [1 / (i + 1) for i in range(len(words))]
    random_words.shuffle(words)
    with (
        tempfile.TemporaryDirectory() as work,
        closing(store.connect(Path(work) / "documents.db")) as db,
    ):
        with store.transaction(db):
            _fill(db, passages, lambda: random_words.choices(words, frequencies, k=250), rng)
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        index = VectorIndex()
        started = time.perf_counter()
        index.refresh(db, 1, DIM)
        loading = time.perf_counter() - started
        text, both = [], []
        for _ in range(40):
            terms = terms_of(" ".join(random_words.choices(words, k=8)))
            started = time.perf_counter()
            rank(db, terms, None, 6)
            text.append(time.perf_counter() - started)
            vector = _unit(rng, 1)[0]
            started = time.perf_counter()
            rank(db, terms, Meaning(index.nearest(vector, CANDIDATES), 0.4), 6)
            both.append(time.perf_counter() - started)
        size = sum(f.stat().st_size for f in Path(work).iterdir()) / 1e6
    medians = [1e3 * statistics.median(x) for x in (text, both)]
    worst = [1e3 * max(x) for x in (text, both)]
    return (
        f"{passages} passages, index {size:.0f} MB, vectors loaded in {loading:.2f} s\n"
        f"full text: median {medians[0]:.1f} ms, worst {worst[0]:.1f} ms\n"
        f"both, question embedded before: median {medians[1]:.1f} ms, worst {worst[1]:.1f} ms"
    )


def _unit(rng: np.random.Generator, n: int) -> np.ndarray:
    rows = rng.standard_normal((n, DIM), dtype=np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def _fill(
    db: sqlite3.Connection, passages: int, text: Callable[[], list[str]], rng: np.random.Generator
) -> None:
    db.execute("INSERT INTO sources(id, path, kind) VALUES('s', '/s', 'folder')")
    for number in range(0, passages, 50):
        cuts = [Cut(" ".join(text()), "heading", None, 0, 1) for _ in range(50)]
        content = store.add_content(db, str(number), "text", [], cuts)
        db.execute(
            "INSERT INTO files VALUES('s', ?, 1, 1, 'text', ?, '', '')", (str(number), content)
        )
    ids = [i for (i,) in db.execute("SELECT id FROM passages")]
    vectors = _unit(rng, len(ids)).astype(STORED)
    db.executemany(
        "INSERT INTO vectors(passage_id, embedder_id, vector) VALUES(?, 1, ?)",
        [(i, v.tobytes()) for i, v in zip(ids, vectors, strict=True)],
    )


def main() -> None:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pack", type=Path)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--misses", action="store_true", help="print what was not found")
    parser.add_argument("--latency", type=int, default=0)
    arguments = parser.parse_args()
    if arguments.latency:
        print(latency(arguments.latency))
        return
    data: dict[str, Any] = json.loads(QUESTIONS.read_text("utf-8"))
    questions = [
        Question(i, q["language"], q["kind"], q["question"], [(f, h) for f, h in q["answers"]])
        for i, q in enumerate(data["questions"])
    ]
    with tempfile.TemporaryDirectory() as work:
        index = Index(Path(work), data["corpus"], arguments.pack)
        ways: dict[str, Search] = {"words": index.by_words}
        if index.embedder is not None:
            ways |= {"meaning": index.by_meaning, "both": index.by_both}
        results = {way: ask(questions, search) for way, search in ways.items()}
        index.db.close()
    print(f"{index.passages} passages; seconds to index: {index.seconds}")
    if index.embedder is not None:
        print(f"{index.embedder.id}: {index.traits}")
    print(table(results))
    for way, outcomes in results.items() if arguments.misses else ():
        for o in outcomes:
            if (o.place != 1) if o.question.answers else o.returned:
                print(f"{way}: place {o.place} of {o.returned}: {o.question.question}")
    if arguments.json:
        figures = {
            w: [[o.question.number, o.returned, o.place] for o in r] for w, r in results.items()
        }
        arguments.json.write_text(json.dumps(figures, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
