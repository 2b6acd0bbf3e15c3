"""Which passages answer a question: two rankings, one fusion, and the courage to say none.

1. By words: BM25 over the question's words, any of them, headings counting double.
2. By meaning: cosine of vectors, where an embedding model knows the question's language.
3. Reciprocal rank fusion: 1 / (60 + rank) of each ranking, added.
4. A passage stays if it holds enough of the question's words, weighed by rarity, or is near enough
   in meaning, or both in part. If none stays, nothing was found.
5. Of passages that say the same one stays; neighbours become one passage.
"""

from __future__ import annotations

import math
import sqlite3
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from edgekit.assistant.documents.chunks import LONGEST, estimate_tokens
from edgekit.assistant.documents.rarity import Rarity, rarity_of
from edgekit.assistant.documents.records import Passage, Why
from edgekit.assistant.documents.words import Term, words_of

FUSION = 60
CANDIDATES = 50  # of each ranking
JUDGED = 24  # of the fused ranking
ENOUGH_WORDS = 0.45  # coverage that suffices alone
SOME_WORDS = 0.3  # coverage that suffices with some nearness in meaning
SOME_MEANING = 0.85  # of the floor of the embedding model
SAME = 0.85  # shared words over all words of two passages that say the same
HEADING_WEIGHT = 2.0


@dataclass(frozen=True)
class Meaning:
    """The ranking by vectors: passage ids and cosines, best first, and what counts as near."""

    nearest: Sequence[tuple[int, float]]
    floor: float


@dataclass(frozen=True)
class _Row:
    id: int
    content: int
    passage: Passage
    words: frozenset[str]  # of heading and text


def rank(
    connection: sqlite3.Connection, terms: Sequence[Term], meaning: Meaning | None, limit: int
) -> list[Passage]:
    """At most ``limit`` passages, best first; none if nothing answers."""
    rarity = rarity_of(connection, terms)
    by_words = _by_words(connection, rarity)
    nearest = list(meaning.nearest[:CANDIDATES]) if meaning else []
    cosines = dict(nearest)
    floor = meaning.floor if meaning else math.inf
    # a passage far from the question in meaning is no candidate by meaning
    by_meaning = [p for p, cosine in nearest if cosine >= SOME_MEANING * floor]
    scores = _fuse(by_words, by_meaning)
    kept: list[_Row] = []
    for row in _rows(connection, sorted(scores, key=lambda p: (-scores[p], p))[:JUDGED]):
        covered = rarity.coverage(row.words)
        cosine = cosines.get(row.id)
        if _answers(covered, cosine, floor):
            passage = replace(
                row.passage,
                score=scores[row.id],
                why=_why(row.id in by_words, row.id in by_meaning),
                coverage=covered,
                similarity=cosine,
            )
            kept.append(replace(row, passage=passage))
    return [row.passage for row in _join_neighbours(_distinct(kept))[:limit]]


def _by_words(connection: sqlite3.Connection, rarity: Rarity) -> list[int]:
    expression = rarity.match_expression()
    if not expression:
        return []
    rows = connection.execute(
        "SELECT rowid FROM words WHERE words MATCH ? "
        f"ORDER BY bm25(words, {HEADING_WEIGHT}, 1.0) LIMIT {CANDIDATES}",
        (expression,),
    )
    return [row[0] for row in rows]


def _fuse(*rankings: Sequence[int]) -> dict[int, float]:
    scores: dict[int, float] = {}
    for ranking in rankings:
        for place, passage in enumerate(ranking, 1):
            scores[passage] = scores.get(passage, 0.0) + 1 / (FUSION + place)
    return scores


def _answers(covered: float, cosine: float | None, floor: float) -> bool:
    if covered >= ENOUGH_WORDS or (cosine is not None and cosine >= floor):
        return True
    return covered >= SOME_WORDS and cosine is not None and cosine >= SOME_MEANING * floor


def _why(words: bool, meaning: bool) -> Why:
    if words and meaning:
        return "both"
    return "words" if words else "meaning"


_COLUMNS = """
SELECT p.id, p.content_id, f.source_id, f.path, p.page, p.heading, p.text, p.start, p.stop
FROM passages p JOIN files f ON f.content_id = p.content_id
"""


def _rows(connection: sqlite3.Connection, ids: Iterable[int]) -> Iterable[_Row]:
    """Passages in the order of ``ids``, each with one of its files; those without are left out."""
    for number in ids:
        found = connection.execute(
            f"{_COLUMNS} WHERE p.id = ? ORDER BY f.path LIMIT 1", (number,)
        ).fetchone()
        if found:
            yield _row(found)


def _row(found: Sequence[Any]) -> _Row:
    number, content, source, path, page, heading, text, start, stop = found
    passage = Passage(str(number), source, path, page, heading, text, start, stop)
    return _Row(number, content, passage, frozenset(words_of(f"{heading}\n{text}")))


def _distinct(rows: Sequence[_Row]) -> list[_Row]:
    kept: list[_Row] = []
    for row in rows:
        if all(len(row.words & k.words) <= SAME * len(row.words | k.words) for k in kept):
            kept.append(row)
    return kept


def _join_neighbours(rows: Sequence[_Row]) -> list[_Row]:
    """Passages of one content that follow each other under one heading become the better one."""
    joined: list[_Row] = []
    for row in rows:
        for i, other in enumerate(joined):
            if both := _both(other, row):
                joined[i] = both
                break
        else:
            joined.append(row)
    return joined


def _both(better: _Row, other: _Row) -> _Row | None:
    """One passage of two, if they are neighbours and it is not too long."""
    a, b = sorted((better.passage, other.passage), key=lambda p: p.start)
    first, last = a.id.partition("-")[0], b.id.rpartition("-")[2]
    if (
        better.content != other.content
        or (a.page, a.heading) != (b.page, b.heading)
        or int(a.id.rpartition("-")[2]) + 1 != int(b.id.partition("-")[0])
    ):
        return None
    text = join_texts(a, b)
    if estimate_tokens(text) > 2 * LONGEST:
        return None
    joined = replace(better.passage, id=f"{first}-{last}", text=text, start=a.start, end=b.end)
    return replace(better, passage=joined)


def join_texts(a: Passage, b: Passage) -> str:
    """The text from the beginning of ``a`` to the end of ``b``, which follows or overlaps it."""
    gap = "\n" * (b.start - a.end)  # where they do not overlap, white space was left out
    return a.text + gap + b.text[max(0, a.end - b.start) :]
