"""Web pages with the standard library's parser: what a reader sees, with its headings.

Scripts, styles and elements that the page itself hides are left out: hidden text is not what the
person reads, and a favourite place for instructions to language models.
"""

from __future__ import annotations

import re
from html.parser import HTMLParser

from edgekit.assistant.documents.limits import Limits
from edgekit.assistant.documents.parsers.encodings import decode
from edgekit.assistant.documents.records import Block, Parsed

_CHARSET = re.compile(rb"<meta[^>]{0,200}?charset\s*=\s*[\"']?\s*([A-Za-z0-9_.:-]{2,40})", re.I)
_DROPPED = frozenset(
    {"script", "style", "template", "noscript", "svg", "math", "iframe", "object",
     "select", "textarea", "canvas", "audio", "video"}
)  # fmt: skip
_INLINE = frozenset(
    {"a", "abbr", "b", "bdi", "bdo", "cite", "code", "data", "del", "dfn", "em", "font", "i",
     "ins", "kbd", "label", "mark", "q", "s", "samp", "small", "span", "strong", "sub", "sup",
     "time", "tt", "u", "var", "wbr", "ruby", "rb"}
)  # fmt: skip
_VOID = frozenset(
    {"area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "source",
     "track", "wbr"}
)  # fmt: skip
_HIDING = re.compile(
    r"display\s*:\s*none|visibility\s*:\s*hidden|font-size\s*:\s*0(?![.\d])|opacity\s*:\s*0(?![.\d])",
    re.I,
)
_CLOSED_BY_THE_NEXT = frozenset({"p", "li", "tr", "td", "th", "dt", "dd", "option"})
_HEADING = re.compile("h[1-6]|title")
_SPACE = re.compile(r"[ \t\r\n\f]+")


def parse_html(data: bytes, limits: Limits) -> Parsed:
    """Headings and paragraphs of a page; table cells of a row are separated by ``|``."""
    declared = _CHARSET.search(data[:4096])
    text, problems = decode(data, declared.group(1).decode("ascii") if declared else "")
    page = _Page()
    page.feed(text)
    page.close()
    page.end_block()
    return Parsed(page.blocks, problems)


class _Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.blocks: list[Block] = []
        self._open: list[tuple[str, bool]] = []  # elements, and whether each hides its content
        self._hidden = 0
        self._text: list[str] = []
        self._level = 0
        self._preformatted = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "br":
            self._text.append("\n")
        if tag in _VOID:
            return
        if tag in _CLOSED_BY_THE_NEXT and self._open and self._open[-1][0] == tag:
            self.handle_endtag(tag)
        hides = tag in _DROPPED or _hides(dict(attrs))
        self._open.append((tag, hides))
        self._hidden += hides
        if tag in ("td", "th") and "".join(self._text).strip():
            self._text.append(" | ")
        elif tag not in _INLINE and tag not in ("td", "th"):
            self.end_block()
        if _HEADING.fullmatch(tag):
            self._level = 1 if tag == "title" else int(tag[1])
        self._preformatted += tag == "pre"

    def handle_endtag(self, tag: str) -> None:
        if all(name != tag for name, _ in self._open):
            return  # never opened
        if tag not in _INLINE and tag not in ("td", "th"):
            self.end_block()
        while self._open:
            name, hides = self._open.pop()
            self._hidden -= hides
            self._preformatted -= name == "pre"
            if name == tag:
                return

    def handle_data(self, data: str) -> None:
        if not self._hidden:
            self._text.append(data if self._preformatted else _SPACE.sub(" ", data))

    def end_block(self) -> None:
        """What was read since the last block becomes one."""
        text = "".join(self._text)
        lines = text.split("\n") if self._preformatted else [x.strip() for x in text.split("\n")]
        text = "\n".join(lines).strip("\n" if self._preformatted else " \n")
        if text.strip():
            self.blocks.append(Block(text, level=self._level))
        self._text.clear()
        self._level = 0


def _hides(attributes: dict[str, str | None]) -> bool:
    return "hidden" in attributes or bool(_HIDING.search(attributes.get("style") or ""))
