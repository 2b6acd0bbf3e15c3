"""The words of a text as the full-text index holds them, and the words of a question.

A word is a Latin word without its ending ("quantized", "quantizing" and "quantization" are one
word) or a pair of neighbouring ideographs (`segment.py`). The index and the question pass through
the same function, so what SQLite counts and what is computed here from a passage agree. Words that
questions are made of ("how many", "什么") are left out of a question: they say nothing about what
is looked for.
"""

from __future__ import annotations

import functools
import itertools
import re
from dataclasses import dataclass
from typing import Literal

from edgekit.assistant.documents.clean import repair_ideographs, visible
from edgekit.assistant.segment import CONTINUOUS, fold, words

_PIECE = re.compile(rf"([{CONTINUOUS}]+)|(?:(?![{CONTINUOUS}])[^\W_])+")
_ENGLISH = """
a about after all also an and any are as at be because been before being between both but by can
could did do does doing done each else for from get gets give given got had has have having he her
here him his how i if in into is it its just let many may me might more most much must my need
needed needs no nor not of off on once one only or other our out over own please same shall she
should so some such tell than that the their them then there these they this those through to too
under until up us very was we were what when where whether which while who whom whose why will with
without would you your
"""
_ENGLISH_STOPS = frozenset(_ENGLISH.split())
_MEASURES = "long|big|large|fast|often|far|old|high|wide|deep|well|small|quickly"
_HOW_LONG = re.compile(rf"\bhow (?:{_MEASURES})\b")
_CHINESE_STOPS = re.compile(
    "为什么|什么|怎么样|怎么|怎样|如何|多少|多长|多大|多久|哪些|哪个|哪种|哪里|哪儿|几个|是否|能否|"
    "可不可以|会不会|能不能|是不是|有没有|可以|请问|告诉我|这个|那个|一个|以及|还是|或者|时候|需要|"
    "应该|[的了吗呢吧啊我你您它他她们谁几]"
)
# Alone they say nothing, but they begin and end words (会议, 能力, 个人) and so part none.
LIGHT = frozenset("是把被和与或及在会能有要这那哪也都就很个上下中里为用不来才时等写做过还")
LONGEST_QUESTION = 2_000  # characters; the rest is ignored
MOST_TERMS = 48
_VOWEL = re.compile("[aeiouy]")


@dataclass(frozen=True)
class Term:
    """Something a question asks for.

    Attributes:
        kind: a "word"; "pairs", a run of n ideographs as its n - 1 pairs; or "single", one
            ideograph, which the index holds as the beginning of pairs or alone.
        words: as the index holds them.
    """

    kind: Literal["word", "pairs", "single"]
    words: tuple[str, ...]


def words_of(text: str) -> list[str]:
    """The words of ``text`` in order, for the index."""
    return [_stem(word) for word in words(repair_ideographs(visible(text)))]


def terms_of(question: str) -> list[Term]:
    """What a question asks for, each once; all of its words where it has only common ones."""
    text = fold(repair_ideographs(visible(question)))
    found: dict[Term, None] = {}
    for piece in _PIECE.finditer(_HOW_LONG.sub(" ", text[:LONGEST_QUESTION])):
        if piece[1]:
            for run in filter(None, _CHINESE_STOPS.split(piece[1])):
                found[_ideographs(run)] = None
        elif piece[0] not in _ENGLISH_STOPS:
            found[Term("word", (_stem(piece[0]),))] = None
    if not found:
        found = {
            _ideographs(p[1]) if p[1] else Term("word", (_stem(p[0]),)): None
            for p in _PIECE.finditer(text[:LONGEST_QUESTION])
        }
    return list(found)[:MOST_TERMS]


def _ideographs(run: str) -> Term:
    if len(run) == 1 or (len(run) == 2 and run[1] in "是在为"):  # 熵是什么 asks for 熵
        return Term("single", (run[0],))
    return Term("pairs", tuple(a + b for a, b in itertools.pairwise(run)))


@functools.lru_cache(maxsize=1 << 16)
def _stem(word: str) -> str:
    """An English word without its ending; anything else as it is."""
    if len(word) < 4 or not (word.isascii() and word.isalpha()):
        return word
    word = _without_plural(word)
    for ending, least in (
        ("ation", 4),
        ("ement", 4),
        ("ment", 4),
        ("ing", 3),
        ("ed", 3),
        ("ly", 4),
    ):
        rest = word.removesuffix(ending)
        if rest != word and len(rest) >= least and _VOWEL.search(rest):
            word = rest[:-1] if ending in ("ing", "ed") and _doubled(rest) else rest
            break
    if len(word) > 4:
        word = word.removesuffix("e")
    return word[:-1] + "z" if len(word) > 5 and word.endswith("is") else word


def _without_plural(word: str) -> str:
    if word.endswith("ies") and len(word) > 4:
        return word[:-3] + "y"
    if word.endswith(("sses", "xes", "ches", "shes")):
        return word[:-2]
    if word.endswith("s") and not word.endswith(("ss", "us", "is")):
        return word[:-1]
    return word


def _doubled(word: str) -> bool:
    return len(word) > 3 and word[-1] == word[-2] and word[-1] not in "lsz"
