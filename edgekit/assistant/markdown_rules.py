"""How the assistant reads and writes Markdown: CommonMark with tables, strikethrough and tasks.

Differences to CommonMark, each for a reason:

* No HTML: it is shown as written.
* No reference definitions: one at the end of an answer would change what was shown before it.
* Links lead to http, https and mailto alone; the text of any other stays as written.
* Images are not loaded. Their description and address are shown as text.
* A line break in a paragraph is one, as a space between Chinese lines would be wrong.
* Emphasis may begin and end at Chinese punctuation: ``**重点：**正文`` is bold, where CommonMark's
  rule for spaces between words leaves the stars.
* Headings are two levels lower, below those of the page.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from markdown_it import MarkdownIt
from markdown_it.common.utils import escapeHtml
from markdown_it.parser_inline import ParserInline
from markdown_it.renderer import RendererHTML
from markdown_it.rules_inline.state_inline import Scanned, StateInline
from markdown_it.token import Token

from edgekit.assistant.segment import CONTINUOUS

BLOCK_NESTING = 100  # levels; beyond them the parser takes the rest of the text for one block
INLINE_NESTING = 20
SHOWN_ADDRESS = 200  # characters of an image's address
LANGUAGE = re.compile(r"[\w+#.-]{1,30}", re.ASCII)
_SAFE_LINK = re.compile(r"(?:https?://[^\s/?#]|mailto:[^\s@]+@[^\s@])", re.IGNORECASE)
_WIDE = re.compile(rf"[{CONTINUOUS}\u3000-\u303f\uff00-\uffef\u2018-\u201d\u2014\u2026]")
_TASK = re.compile(r"\A\[([ xX])\](?=\s)")


class Markdown(MarkdownIt):
    """The parser, for any number of threads; ``nesting`` is how deep it looks."""

    def __init__(self, nesting: int) -> None:
        super().__init__("zero", renderer_cls=Renderer)
        self.inline = Inline()
        self.configure("commonmark", {"html": False, "breaks": True, "xhtmlOut": False})
        self.options["maxNesting"] = nesting
        self.enable(["table", "strikethrough"])
        self.disable("reference")
        self.core.ruler.enableOnly(["inline", "text_join"])  # blocks are parsed before, apart
        for ruler in (self.core.ruler, self.block.ruler, self.inline.ruler, self.inline.ruler2):
            ruler.getRules("")  # made ready now, as threads would meet it half made

    def validateLink(self, url: str) -> bool:  # noqa: N802 - the library's name
        """Whether a link may lead there; if not, its text stays as written."""
        return _SAFE_LINK.match(url) is not None


class Inline(ParserInline):
    """The library's inline parser with our rule for emphasis."""

    def parse(self, src: str, md: MarkdownIt, env: Any, tokens: list[Token]) -> list[Token]:
        """Parse one paragraph's text into ``tokens``."""
        state = Emphasis(src, md, env, tokens)
        self.tokenize(state)
        for rule in self.ruler2.getRules(""):
            rule(state)
        return state.tokens


class Emphasis(StateInline):
    """Stars beside a wide character open and close as if no punctuation were there."""

    def scanDelims(self, start: int, canSplitWord: bool) -> Scanned:  # noqa: N802
        """How many marks follow, and whether they can open and close."""
        scanned = super().scanDelims(start, canSplitWord)
        end = start + scanned.length
        before = self.src[start - 1] if start else " "
        after = self.src[end] if end < self.posMax else " "
        if not canSplitWord or not (_WIDE.match(before) or _WIDE.match(after)):
            return scanned
        return Scanned(not after.isspace(), not before.isspace(), scanned.length)


class Renderer(RendererHTML):
    """HTML for the interface: figures around code, frames around tables, no images."""

    def fence(self, tokens: Sequence[Token], idx: int, options: Any, env: Any) -> str:
        """A code block with a language."""
        name = LANGUAGE.match(tokens[idx].info.strip())
        return _code(tokens[idx].content, name.group() if name else "")

    def code_block(self, tokens: Sequence[Token], idx: int, options: Any, env: Any) -> str:
        """A code block that is indented."""
        return _code(tokens[idx].content, "")

    def link_open(self, tokens: Sequence[Token], idx: int, options: Any, env: Any) -> str:
        """A link that the interface asks about before it is followed."""
        return f'<a href="{escapeHtml(str(tokens[idx].attrs["href"]))}" data-external="">'

    def image(self, tokens: Sequence[Token], idx: int, options: Any, env: Any) -> str:
        """What an image shows and where it is, as text."""
        address = str(tokens[idx].attrs["src"])
        address = address if len(address) <= SHOWN_ADDRESS else address[:SHOWN_ADDRESS] + "…"
        text = self.renderInlineAsText(tokens[idx].children or [], options, env)
        shown = escapeHtml(f"{text.strip()} ({address})".strip())
        return f'<span class="image-blocked">{shown}</span>'

    def table_open(self, tokens: Sequence[Token], idx: int, options: Any, env: Any) -> str:
        """A frame that scrolls, by keyboard too; the interface translates its label."""
        return '<div class="table" tabindex="0" role="region" aria-label="Table"><table>\n'

    def table_close(self, tokens: Sequence[Token], idx: int, options: Any, env: Any) -> str:
        """The end of the frame."""
        return "</table></div>\n"

    def th_open(self, tokens: Sequence[Token], idx: int, options: Any, env: Any) -> str:
        """A column's heading."""
        return _cell(tokens[idx])

    def td_open(self, tokens: Sequence[Token], idx: int, options: Any, env: Any) -> str:
        """A cell."""
        return _cell(tokens[idx])


def adapt(tokens: Sequence[Token]) -> None:
    """Lower the headings of a block, and show its tasks as boxes."""
    for i, token in enumerate(tokens):
        if token.type in ("heading_open", "heading_close"):
            token.tag = f"h{min(6, int(token.tag[1]) + 2)}"
        if token.type == "inline" and i > 1 and tokens[i - 2].type == "list_item_open":
            token.content = _TASK.sub(_box, token.content)


def _box(match: re.Match[str]) -> str:
    return "☐" if match[1] == " " else "☑"


def _code(text: str, language: str) -> str:
    label = f"<figcaption>{escapeHtml(language)}</figcaption>" if language else ""
    name = f' class="language-{escapeHtml(language)}"' if language else ""
    return (
        f'<figure class="code">{label}<pre tabindex="0"><code{name}>{escapeHtml(text)}</code></pre>'
        "</figure>\n"
    )


def _cell(token: Token) -> str:
    """The library aligns by a style, which the page's policy forbids."""
    style = str(token.attrs.get("style", ""))
    side = style.removeprefix("text-align:")
    return f'<{token.tag} class="align-{side}">' if side else f"<{token.tag}>"
