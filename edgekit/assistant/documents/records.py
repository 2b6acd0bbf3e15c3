"""What crosses the borders of this package: sources, progress, passages."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

State = Literal["queued", "indexing", "ready", "failed", "missing"]
Why = Literal["words", "meaning", "both"]


@dataclass(frozen=True)
class Source:
    """A file or folder that the person chose.

    Attributes:
        state: "missing" when the path is not there; what was indexed of a folder whose drive is
            gone stays searchable.
        files: files that are searchable. passages: their passages.
        problems: one sentence per file that was not read or not read whole, and per limit hit;
            at most `PROBLEMS_SHOWN`, then a sentence with the number of others.
    """

    id: str
    path: str
    kind: Literal["file", "folder"]
    state: State
    files: int = 0
    passages: int = 0
    problems: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Progress:
    """What the indexer is doing.

    Attributes:
        done, total: files of the source at hand, or passages while ``phase`` is "meaning".
            current: the file at hand, or "".
        phase: "idle", "reading", or "meaning" while vectors are computed.
    """

    phase: Literal["idle", "reading", "meaning"] = "idle"
    done: int = 0
    total: int = 0
    current: str = ""


@dataclass(frozen=True)
class Passage:
    """A piece of a document that answers a question.

    Attributes:
        id: valid until the document changes; "7" or, of neighbours joined, "7-9".
        file: path. page: 1-based, of a PDF. heading: "A › B", and of code also its lines.
        start, end: characters ``text`` spans in the text that was extracted from the file.
        score: reciprocal rank fusion; comparable within one search only.
        why: found by its words, by its meaning, or by both.
        coverage: share 0..1 of the question's words, weighed by rarity, that stand in it.
        similarity: cosine of question and passage, or None without an embedding model.
    """

    id: str
    source_id: str
    file: str
    page: int | None
    heading: str
    text: str
    start: int
    end: int
    score: float = 0.0
    why: Why = "words"
    coverage: float = 0.0
    similarity: float | None = None


@dataclass(frozen=True)
class PassageInContext:
    """A passage and the text around it, so that a citation can show its place."""

    passage: Passage
    before: str
    after: str


@dataclass(frozen=True)
class Block:
    """A heading or a paragraph as a parser found it.

    Attributes:
        level: 1 to 6 for a heading, 0 for text. title: the heading's words where ``text`` is
            more than them (a line of code).
        page: 1-based. line: 1-based number of the first line, of code.
    """

    text: str
    level: int = 0
    title: str = ""
    page: int | None = None
    line: int | None = None


@dataclass(frozen=True)
class Parsed:
    """A file as text."""

    blocks: list[Block]
    problems: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Cut:
    """One passage of a file before it is stored: text and where it stands."""

    text: str
    heading: str
    page: int | None
    start: int
    end: int


class UnreadableError(Exception):
    """A file that cannot be read; the message is the reason, without the file's name."""
