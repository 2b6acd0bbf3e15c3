"""A model's Markdown as HTML that is safe to put into the page, whole or while it streams.

Text is parsed into top-level blocks (``markdown_rules``), each block is rendered by itself and
then passes an allow-list of tags, attributes and addresses (nh3), so that a mistake in the first
step is no hole. Characters that turn the direction of what follows are shown as U+FFFD.

``StreamRenderer`` gives the same HTML block by block. A block is final as soon as the next one has
begun on a line that is complete, as nothing that follows can change it then; the unfinished end is
rendered again when it has grown by a small part, which keeps the cost of long answers linear.

Limits keep hostile input from costing more than a moment; what is beyond them is shown as plain
text. They depend only on what stands before, so they are the same for a stream.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import nh3
from markdown_it.rules_core import StateCore
from markdown_it.token import Token

from edgekit.assistant.markdown_rules import BLOCK_NESTING, INLINE_NESTING, Markdown, adapt

LONGEST = 100_000  # characters that are read as Markdown, to the end of their line
LONGEST_PARAGRAPH = 10_000  # characters in which marks and links are looked for
PLAIN_BLOCK = 20_000  # characters of plain text in one block
DEEPEST = 20  # levels of quotes, lists and their items
FRESH = 50  # the unfinished end is rendered again when a 50th of it is new

# Embeddings, overrides and isolates: they reorder text beyond the place where they stand.
_TURNING = re.compile(r"[\u202a-\u202e\u2066-\u2069]")
_UNSTORABLE = re.compile(r"[\0\ud800-\udfff]")
_LINE_END = re.compile(r"\r\n?")

_FORMATTING = ("p", "br", "hr", "em", "strong", "s", "ul", "li", "blockquote", "code", "thead",
               "tbody", "tr", "table", "figcaption", "h3", "h4", "h5", "h6")  # fmt: skip
_SIDES = {"align-left", "align-center", "align-right"}
_CLEANER = nh3.Cleaner(
    tags={*_FORMATTING, "a", "div", "figure", "ol", "pre", "span", "td", "th"},
    attributes={
        "a": {"href"}, "code": {"class"}, "div": {"aria-label"}, "ol": {"start"},
    },
    tag_attribute_values={
        "div": {"role": {"region"}, "tabindex": {"0"}, "class": {"table"}},
        "figure": {"class": {"code"}},
        "p": {"class": {"plain"}},
        "pre": {"tabindex": {"0"}},
        "span": {"class": {"image-blocked"}},
        "td": {"class": _SIDES},
        "th": {"class": _SIDES},
    },
    set_tag_attribute_values={"a": {"data-external": ""}},
    url_schemes={"http", "https", "mailto"},
    url_relative="deny",
    link_rel="noopener noreferrer",
)  # fmt: skip
_BLOCKS, _INLINE = Markdown(BLOCK_NESTING), Markdown(INLINE_NESTING)


@dataclass(frozen=True)
class _Block:
    """A top-level block: where it begins in the text, its lines, and what they mean."""

    start: int
    source: str
    tokens: Sequence[Token]


def render(text: str) -> str:
    """Safe HTML for a whole text."""
    clean = _normal(text)
    end = _end_of_markdown(clean, 0)
    blocks, rest = _split(clean[:end]), _plain_pieces(clean[end:])
    return "".join([*map(_rendered, blocks), *map(_plain, rest)])


class StreamRenderer:
    """Renders a text that arrives in pieces; the blocks joined are what ``render`` gives.

    Each call returns (index, HTML) for every block that is new or changed. Blocks before those
    that changed never change again; a block that turned out to be none gets "".
    """

    def __init__(self) -> None:
        self._carry = ""  # a carriage return whose line feed may come
        self._end = ""  # text of the blocks that are not final
        self._before = 0  # characters of final blocks
        self._final = 0  # number of final blocks
        self._shown: list[str] = []  # HTML of the others
        self._new = 0  # characters not yet rendered
        self._plain = False  # whether the rest is beyond the limit

    def push(self, delta: str) -> list[tuple[int, str]]:
        """Add text; returns the blocks to put in place."""
        text = self._carry + delta
        self._carry = "\r" if text.endswith("\r") else ""
        text = text.removesuffix("\r")
        self._end += _normal(text)
        self._new += len(text)
        if self._new < max(1, len(self._end) // FRESH):
            return []
        return self._update()

    def finish(self) -> list[tuple[int, str]]:
        """The text has ended; returns what was not shown yet."""
        self._end += _normal(self._carry)
        self._carry = ""
        return self._update()

    def _update(self) -> list[tuple[int, str]]:
        self._new = 0
        settled: list[str] = []
        waiting: list[str] = []
        if not self._plain:
            settled, waiting = self._read_markdown()
        if self._plain:
            pieces = list(_plain_pieces(self._end))
            self._take(sum(map(len, pieces[:-1])))
            settled += map(_plain, pieces[:-1])
            waiting = [_plain(piece) for piece in pieces[-1:]]
        changes = self._changes(settled + waiting)
        self._final += len(settled)
        self._shown = waiting
        return changes

    def _read_markdown(self) -> tuple[list[str], list[str]]:
        """HTML of blocks that are final, whose text is taken away, and of the others."""
        end = _end_of_markdown(self._end, self._before)
        blocks = _split(self._end[:end])
        shown = [_rendered(block) for block in blocks]
        if end < len(self._end):
            self._plain = True
            self._take(end)
            return shown, []
        if len(blocks) < 2:
            return [], shown
        complete = _split(self._end[: self._end.rfind("\n") + 1])
        final = min(max(0, len(complete) - 1), len(blocks) - 1)
        self._take(blocks[final].start)
        return shown[:final], shown[final:]

    def _take(self, count: int) -> None:
        self._before += count
        self._end = self._end[count:]

    def _changes(self, blocks: Sequence[str]) -> list[tuple[int, str]]:
        """What differs from what is shown, with "" for blocks that are no more."""
        wanted = [*blocks, *[""] * (len(self._shown) - len(blocks))]
        shown = [*self._shown, *[""] * (len(wanted) - len(self._shown))]
        pairs = enumerate(zip(wanted, shown), self._final)
        return [(i, new) for i, (new, old) in pairs if new != old]


def _normal(text: str) -> str:
    """Line feeds for line ends, and nothing that HTML cannot hold."""
    return _UNSTORABLE.sub("\ufffd", _LINE_END.sub("\n", text))


def _end_of_markdown(text: str, before: int) -> int:
    """Where the line ends that passes the limit; ``before`` characters came before ``text``."""
    line_end = text.find("\n", max(0, LONGEST - before))
    return len(text) if line_end < 0 else line_end + 1


def _split(text: str) -> list[_Block]:
    tokens: list[Token] = []
    try:
        _BLOCKS.block.parse(text, _BLOCKS, {}, tokens)
    except Exception:  # the parser's defects must not hide an answer
        return [_Block(0, text, ())]
    starts = [i for i, t in enumerate(tokens) if t.level == 0 and t.nesting >= 0]
    lines = [0, *(match.end() for match in re.finditer("\n", text)), len(text)]
    blocks = []
    for first, last in pairwise([*starts, len(tokens)]):
        begin, end = tokens[first].map or (0, 0)
        source = text[lines[begin] : lines[end]]
        blocks.append(_Block(lines[begin], source, tokens[first:last]))
    return blocks


def _rendered(block: _Block) -> str:
    """The HTML of a block; plain text where a limit or a defect forbids more."""
    if not block.tokens or any(
        t.level > DEEPEST or (t.type == "inline" and len(t.content) > LONGEST_PARAGRAPH)
        for t in block.tokens
    ):
        return _plain(block.source)
    try:
        adapt(block.tokens)
        state = StateCore("", _INLINE, {}, list(block.tokens))
        _INLINE.core.process(state)
        return _safe(_INLINE.renderer.render(state.tokens, _INLINE.options, {}))
    except Exception:  # as above
        return _plain(block.source)


def _plain_pieces(text: str) -> Iterator[str]:
    """A long text in parts that end with a line, if one ends soon."""
    size = PLAIN_BLOCK
    piece = rf"[\s\S]{{1,{size}}}(?:(?<=\n)|[^\n]{{0,{size}}}\n?)"
    return (match.group() for match in re.finditer(piece, text))


def _plain(text: str) -> str:
    lines = html.escape(text.strip("\n"), quote=False).split("\n")
    return _safe('<p class="plain">' + "<br>".join(lines) + "</p>\n")


def _safe(rendered: str) -> str:
    return _TURNING.sub("\ufffd", _CLEANER.clean(rendered))
