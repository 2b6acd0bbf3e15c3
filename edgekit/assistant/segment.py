"""Text to words that SQLite's FTS5 can index and find, Chinese included.

Chinese is written without spaces, so a run of ideographs (kana and Hangul too) becomes its
overlapping pairs and, at its end, its last character: 机器学习 is indexed as 机器 器学 学习 习. Any
string of two or more characters is then found exactly, as a phrase of its pairs; a single
character is found as the beginning of a pair, since each one begins a pair or ends its run. The
last character also keeps two runs apart: 中国，国人 does not contain 中国人.

Other scripts are indexed by words. Both sides are folded alike: compatibility forms (NFKC),
radicals in place of ideographs (``documents.clean``), case, and the accents of Latin, Greek and
Cyrillic. A query is data: whatever it contains, only its words
reach FTS5, each in quotes.

All splitting happens here, with Python's Unicode tables; FTS5's ``ascii`` tokenizer only parts at
the spaces. So the words are the same with every SQLite, and ``VERSION`` names what they depend
on: an index made by another version must be built anew.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

from edgekit.assistant.documents.clean import repair_ideographs

TOKENIZER = "ascii"
VERSION = f"2-{unicodedata.unidata_version}"
LONGEST_QUERY = 1000  # characters; the rest is ignored
MOST_PHRASES = 32

# Scripts that are read without spaces, or whose words are rarely searched whole: 々 and 〇,
# kana, Hangul, ideographs and their extensions.
CONTINUOUS = (
    r"\u3005\u3007\u3041-\u3096\u309d-\u309f\u30a1-\u30fa\u30fc-\u30ff\u31f0-\u31ff"
    r"\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7a3\uf900-\ufaff\U00020000-\U0003ffff"
)
_RUN = re.compile(rf"(?P<run>[{CONTINUOUS}]+)|(?:(?![{CONTINUOUS}])[^\W_])+")
# Normalisation sorts the marks on a character in quadratic time, and no script needs 31 of them.
_PILE = re.compile(r"(?:(?![\x00-\u02ff])[^\w\s]){31,}")
_ACCENTS = re.compile(r"[\u0300-\u036f]+")
# What can fold to one unit: a character with the marks, jamo or voicing signs that follow it.
_CLUSTER = re.compile(
    r"[\s\S](?:[\u0300-\u036f\u3099\u309a\uff9e\uff9f\u1160-\u11ff\uffa0-\uffdc]{1,30})?"
)


def fold(text: str) -> str:
    """``text`` without the differences that a search overlooks: width, case, accents, radicals."""
    if text.isascii():
        return text.lower()
    repaired = repair_ideographs(_PILE.sub(_without_marks, text))
    decomposed = unicodedata.normalize("NFKD", repaired)
    return unicodedata.normalize("NFKC", _ACCENTS.sub("", decomposed.casefold()))


def _without_marks(pile: re.Match[str]) -> str:
    return "".join(c for c in pile.group() if not unicodedata.combining(c))


def words(text: str) -> Iterator[str]:
    """The words and pairs of ``text`` in order, as they are indexed."""
    for match in _RUN.finditer(fold(text)):
        if match["run"]:
            yield from _pairs(match["run"])
            yield match["run"][-1]
        else:
            yield match.group()


def index_text(text: str) -> str:
    """What is put into an FTS5 table made with ``tokenize='ascii'``."""
    return " ".join(words(text))


def match_all(query: str) -> str:
    """An FTS5 expression for texts that hold every part of ``query``; "" if it has no word.

    Parts are separated by white space and are found as phrases. The last word may be unfinished.
    """
    return " AND ".join(p.expression() for p in phrases(query))


def match_any(query: str) -> str:
    """An FTS5 expression for texts that hold any word or pair of ``query``, to be ranked.

    This is for questions in whole sentences, of which no text repeats more than parts. A single
    ideograph counts only where the query is nothing else.
    """
    found = list(dict.fromkeys(words(query[:LONGEST_QUERY])))
    whole = [w for w in found if len(w) > 1 or not _RUN.fullmatch(w)["run"]]  # type: ignore[index]
    return " OR ".join(f'"{w}"' for w in whole) or match_all(query)


@dataclass(frozen=True)
class Phrase:
    """Words that follow each other.

    Attributes:
        tokens: as indexed.
        prefix: whether the last token may go on.
        parts: the runs and words as written (folded), to be marked in what was found.
    """

    tokens: tuple[str, ...]
    prefix: bool
    parts: tuple[str, ...]

    def expression(self) -> str:
        """The phrase in FTS5's syntax."""
        return '"' + " ".join(self.tokens) + '"' + ("*" if self.prefix else "")


def phrases(query: str) -> list[Phrase]:
    """The parts of a query; the last one ends in a word that may be unfinished."""
    folded = fold(query[:LONGEST_QUERY])
    found = [p for p in map(_phrase, folded.split()) if p is not None][:MOST_PHRASES]
    # "foo " is finished
    if found and not folded[-1:].isspace() and not _ends_in_run(found[-1]):
        found[-1] = Phrase(found[-1].tokens, True, found[-1].parts)
    return found


def _phrase(chunk: str) -> Phrase | None:
    parts = list(_RUN.finditer(chunk))
    if not parts:
        return None
    tokens: list[str] = []
    for part in parts:
        if not part["run"]:
            tokens.append(part.group())
            continue
        tokens += _pairs(part["run"])
        # A run inside the chunk ends there in the text as well; the last one may go on.
        if part is not parts[-1] or len(part["run"]) == 1:
            tokens.append(part["run"][-1])
    last = parts[-1]["run"]
    single = last is not None and len(last) == 1
    return Phrase(tuple(tokens), single, tuple(p.group() for p in parts))


def _ends_in_run(phrase: Phrase) -> bool:
    match = _RUN.fullmatch(phrase.parts[-1])
    return match is not None and match["run"] is not None


def _pairs(run: str) -> list[str]:
    return [run[i : i + 2] for i in range(len(run) - 1)]


def find_marks(text: str, query: str) -> list[tuple[int, int]]:
    """Where the words of ``query`` stand in ``text``: (start, end) in characters, in order.

    Offsets count the characters of ``text`` as given, though the search folds it.
    """
    found = phrases(query)
    if not found:
        return []
    folded, clusters = _folded_with_clusters(text)
    spans = (match.span() for match in _marking(tuple(found)).finditer(folded))
    return _apart([(clusters[start][0], clusters[end - 1][1]) for start, end in spans])


def _apart(marks: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Marks without those that begin in the one before: of ¼ each digit is the whole sign."""
    kept: list[tuple[int, int]] = []
    for mark in marks:
        if not kept or mark[0] >= kept[-1][1]:
            kept.append(mark)
    return kept


def _folded_with_clusters(text: str) -> tuple[str, list[tuple[int, int]]]:
    """Folded text and, for each of its characters, the span in ``text`` that it comes from."""
    if text.isascii():
        return text.lower(), [(i, i + 1) for i in range(len(text))]
    pieces: list[str] = []
    clusters: list[tuple[int, int]] = []
    for match in _CLUSTER.finditer(text):
        piece = _fold_cluster(match.group())
        pieces.append(piece)
        clusters += [match.span()] * len(piece)
    return "".join(pieces), clusters


@lru_cache(maxsize=20_000)
def _fold_cluster(cluster: str) -> str:
    return fold(cluster)


@lru_cache(maxsize=16)
def _marking(found: tuple[Phrase, ...]) -> re.Pattern[str]:
    """Matches every part of a query: runs anywhere, words from where they begin."""
    begins = rf"(?:(?<![^\W_])|(?<=[{CONTINUOUS}]))"
    ends = rf"(?:(?![^\W_])|(?=[{CONTINUOUS}]))"
    alternatives: dict[str, None] = {}
    for phrase in found:
        for i, part in enumerate(phrase.parts):
            match = _RUN.fullmatch(part)
            run = match is not None and match["run"] is not None
            goes_on = phrase.prefix and i == len(phrase.parts) - 1
            escaped = re.escape(part)
            alternatives[escaped if run else begins + escaped + ("" if goes_on else ends)] = None
    return re.compile("|".join(sorted(alternatives, key=len, reverse=True)))
