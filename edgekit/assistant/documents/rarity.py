"""How rare the words of a question are among the passages, and what follows from that.

A word tells more the fewer passages hold it (inverse document frequency), most where none does. So
the share of a question that a passage covers, weighed so, says whether it can be the answer: a
passage about "running" does not answer what runs on an iPhone.
"""

from __future__ import annotations

import math
import sqlite3
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass

from edgekit.assistant.documents.words import LIGHT, Term

_MOST_ROWS = 20_000  # that one search ranks; the question's commonest words are left out beyond it


@dataclass(frozen=True)
class Rarity:
    """The words of one question among ``total`` passages, each with how many hold it."""

    terms: Sequence[Term]
    total: int
    counts: Mapping[str, int]

    def match_expression(self) -> str:
        """The FTS5 query for passages with any of the words; "" where no passage has one."""
        chosen: list[str] = []
        rows = 0
        single = {term.words[0] for term in self.terms if term.kind == "single"}
        for word in sorted(self.counts, key=lambda w: self.counts[w]):
            rows += self.counts[word]
            if self.counts[word] and (not chosen or rows <= _MOST_ROWS):
                chosen.append(f'"{word}"*' if word in single else f'"{word}"')
        return " OR ".join(chosen)

    def coverage(self, words: Set[str]) -> float:
        """Share 0..1 of the question, weighed, that the words of a passage cover."""
        total = found = 0.0
        for term in self.terms:
            parts = self._weights(term)
            total += sum(parts)
            if term.kind == "pairs":
                there = [word in words for word in term.words]
                found += sum(p for i, p in enumerate(parts) if any(there[max(0, i - 1) : i + 1]))
            elif term.kind == "single":
                found += parts[0] * any(word.startswith(term.words[0]) for word in words)
            else:
                found += parts[0] * (term.words[0] in words)
        return found / total if total else 0.0

    def _weights(self, term: Term) -> list[float]:
        """What a word tells, or each of a run of ideographs.

        An ideograph tells half as much as the rarest known pair it stands in, or as an unknown
        word if it stands in none.
        """
        if term.kind == "word":
            return [self._tells(self.counts[term.words[0]])]
        if term.kind == "single":
            light = term.words[0] in LIGHT
            return [0.0 if light else self._tells(self.counts[term.words[0]])]
        counts = [self.counts[word] for word in term.words]
        weights = []
        for i, ideograph in enumerate(term.words[0][0] + "".join(w[1] for w in term.words)):
            known = [self._tells(c) for c in counts[max(0, i - 1) : i + 1] if c]
            unknown = 0.0 if ideograph in LIGHT else self._tells(0)
            weights.append(max(known, default=unknown) / 2)
        return weights

    def _tells(self, passages: int) -> float:
        return math.log(1 + (self.total - passages + 0.5) / (passages + 0.5))


def rarity_of(connection: sqlite3.Connection, terms: Sequence[Term]) -> Rarity:
    """Ask the index how many passages hold each word."""
    (total,) = connection.execute("SELECT count(*) FROM passages").fetchone()
    counts: dict[str, int] = {}
    for term in terms:
        for word in term.words:
            beginning = word + "\U0010ffff" if term.kind == "single" else word
            (counts[word],) = connection.execute(
                "SELECT coalesce(max(doc), 0) FROM vocabulary WHERE term >= ? AND term <= ?",
                (word, beginning),
            ).fetchone()
    return Rarity(terms, total, counts)
