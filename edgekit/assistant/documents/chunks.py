"""Blocks of a file cut into passages of 400 to 600 tokens that end where sentences end.

A passage never crosses a heading or a page, so that a citation names one place. Within a section,
sentences (lines, of code and tables) are added until the next one would exceed the target; the
following passage begins with the last sentences of the one before, about 15 % of it. Tokens are
estimated, not counted: the cuts are then the same whichever embedding model is installed, or
none, and changing the model recomputes vectors alone.

The text of a file is its blocks joined; a passage is a slice of it, given by its span.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from edgekit.assistant.documents.records import Block, Cut

TARGET = 500
LONGEST = 600
OVERLAP = 75
CODE_SECTION = 200  # definitions shorter than this share a passage
_LONGEST_UNIT = 120  # of a sentence without an end: tables, minified code, base64
_HEADING_CHARACTERS = 120
_NAMES_SHOWN = 4

_WIDE = "\u2e80-\u9fff\uac00-\ud7af\uf900-\ufaff\U00020000-\U0003ffff"
_TOKEN = re.compile(rf"[{_WIDE}]|[^\W\d_{_WIDE}]{{1,12}}|\d{{1,2}}|[^\s\w]|_")
_UNIT_END = re.compile(r"[。！？；…]+[”’」』）)]*|[.!?]+[\"'”’)]*(?=\s)|\n+")


def estimate_tokens(text: str) -> int:
    """About how many tokens a model's tokenizer makes of ``text``."""
    return sum(_weight(m) for m in _TOKEN.finditer(text))


def _weight(token: re.Match[str]) -> int:
    return 2 if token.end() - token.start() > 7 else 1


def middle_break(text: str) -> int:
    """Where to divide ``text`` in two: the sentence end nearest its middle, 0 if it has one."""
    ends = [unit.end for unit in _units(text, 0, len(text), None)][:-1]
    return min(ends, key=lambda end: abs(end - len(text) // 2), default=0)


def sentences(text: str) -> list[str]:
    """``text`` in sentences and lines; nothing is left out."""
    ends = [m.end() for m in _UNIT_END.finditer(text)]
    bounds = [0, *ends, len(text)]
    return [text[a:b] for a, b in itertools.pairwise(bounds) if b > a]


@dataclass
class _Unit:
    start: int
    end: int
    tokens: int
    line: int | None = None


@dataclass
class _Section:
    page: int | None
    paths: list[str]
    units: list[_Unit] = field(default_factory=list)
    has_text: bool = False

    @property
    def tokens(self) -> int:
        return sum(u.tokens for u in self.units)


def cut(blocks: Sequence[Block], most_characters: int) -> tuple[list[Cut], list[str]]:
    """Passages of a file, and a sentence if it was longer than ``most_characters``."""
    text, spans, whole = _join(blocks, most_characters)
    problems = [] if whole else [f"only its first {most_characters:,} characters were indexed"]
    cuts = [c for section in _sections(text, spans) for c in _passages(text, section)]
    return cuts, problems


def _join(blocks: Sequence[Block], most: int) -> tuple[str, list[tuple[int, int, Block]], bool]:
    """The text, where each block stands in it, and whether all of them do."""
    parts: list[str] = []
    spans: list[tuple[int, int, Block]] = []
    length = 0
    next_line = 0
    for block in blocks:
        # code keeps its empty lines, so that lines can be counted
        between = 2 if block.line is None else 1 + block.line - next_line
        separator = "\n" * between if parts else ""
        body = block.text[: max(0, most - length - len(separator))]
        if not body:
            return "".join(parts), spans, False
        start = length + len(separator)
        parts += (separator, body)
        length = start + len(body)
        spans.append((start, length, block))
        next_line = (block.line or 0) + block.text.count("\n") + 1
        if len(body) < len(block.text):
            return "".join(parts), spans, False
    return "".join(parts), spans, True


def _sections(text: str, spans: Sequence[tuple[int, int, Block]]) -> Iterator[_Section]:
    """What stands between two headings or page ends; a heading without text joins the next."""
    path: list[tuple[int, str]] = []
    section: _Section | None = None
    for start, end, block in spans:
        if block.level:
            while path and path[-1][0] >= block.level:
                path.pop()
            title = " ".join((block.title or block.text).split())
            path.append((block.level, title[:_HEADING_CHARACTERS]))
        here = " › ".join(title for _, title in path)
        if section is not None and _ends(section, block):
            yield section
            section = None
        if section is None:
            section = _Section(block.page, [here])
        elif block.level:
            section.paths = [*section.paths, here] if block.line else [here]
        section.has_text |= not block.level
        section.units += _units(text, start, end, block.line)
    if section is not None:
        yield section


def _ends(section: _Section, block: Block) -> bool:
    if block.page != section.page:
        return True
    if not block.level or not section.has_text:
        return False
    return block.line is None or section.tokens >= CODE_SECTION


def _units(text: str, start: int, end: int, line: int | None) -> Iterator[_Unit]:
    """Sentences or lines, none longer than `_LONGEST_UNIT`."""
    place = start
    ends = [m.end() for m in _UNIT_END.finditer(text, start, end)]
    for stop in (*ends, end):
        tokens = 0
        for token in _TOKEN.finditer(text, place, stop):
            if tokens >= _LONGEST_UNIT:
                yield _Unit(place, token.start(), tokens, line)
                place, tokens = token.start(), 0
            tokens += _weight(token)
        if tokens:
            yield _Unit(place, stop, tokens, line)
            if line is not None:
                line += text.count("\n", place, stop)
            place = stop


def _passages(text: str, section: _Section) -> Iterator[Cut]:
    units = section.units
    left = section.tokens
    first, total = 0, 0
    for i, unit in enumerate(units):
        if first < i and total + unit.tokens > TARGET and total + left > LONGEST:
            yield _cut(text, section, first, i)
            first = _overlap(units, first, i)
            total = sum(u.tokens for u in units[first:i])
        total += unit.tokens
        left -= unit.tokens
    if units:
        yield _cut(text, section, first, len(units))


def _overlap(units: Sequence[_Unit], first: int, stop: int) -> int:
    """Where the passage after ``units[first:stop]`` begins."""
    begin, total = stop, 0
    while begin > first + 1 and total + units[begin - 1].tokens <= OVERLAP:
        begin -= 1
        total += units[begin].tokens
    return begin


def _cut(text: str, section: _Section, first: int, stop: int) -> Cut:
    units = section.units[first:stop]
    start, end = units[0].start, units[-1].end
    passage = text[start:end].rstrip()
    heading = ", ".join(dict.fromkeys(filter(None, section.paths[:_NAMES_SHOWN])))
    if (line := units[0].line) is not None:
        last = line + passage.count("\n")
        lines = f"lines {line}-{last}"
        heading = f"{heading}, {lines}" if heading else lines
    return Cut(passage, heading, section.page, start, start + len(passage))
