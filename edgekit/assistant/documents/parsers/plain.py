"""Plain text and Markdown: paragraphs at empty lines, headings where they are marked."""

from __future__ import annotations

import re

from edgekit.assistant.documents.limits import Limits
from edgekit.assistant.documents.parsers.encodings import decode
from edgekit.assistant.documents.records import Block, Parsed

_ATX = re.compile(r" {0,3}(#{1,6})[ \t]+(.*?)[ \t]*#*[ \t]*$")
_FENCE = re.compile(r" {0,3}(`{3,}|~{3,})")
_UNDERLINE = re.compile(r" {0,3}(=+|-+)[ \t]*$")
_COMMENT = re.compile(r"<!--.*?(?:-->|\Z)", re.DOTALL)
_LINK = re.compile(r"!?\[([^\[\]]*)\]\([^()\s]*\)")
_EMPHASIS = re.compile(r"[*_`]{1,3}(?=\S)([^*_`]+)[*_`]{1,3}")
# "第一章 总则", "Chapter 3: Results"; a sentence that begins so is too long to be a heading
_CHAPTER = re.compile(
    r"\s*(?:第[一二三四五六七八九十百零〇\d]{1,5}([编章节篇部])|(Chapter|Part) \w+)"
)
_HEADING_LENGTH = 60


def parse_text(data: bytes, limits: Limits) -> Parsed:
    """Plain text. A line such as "第三章 …" or "Chapter 3 …" is a heading."""
    text, problems = decode(data)
    blocks: list[Block] = []
    paragraph: list[str] = []
    for line in text.splitlines():
        chapter = _CHAPTER.match(line) if len(line) <= _HEADING_LENGTH else None
        if chapter or not line.strip():
            _flush(paragraph, blocks)
        if chapter:
            level = 2 if chapter.group(1) == "节" else 1
            blocks.append(Block(line.strip(), level=level))
        elif line.strip():
            paragraph.append(line.rstrip())
    _flush(paragraph, blocks)
    return Parsed(blocks, problems)


def parse_markdown(data: bytes, limits: Limits) -> Parsed:
    """Markdown as it is written, without comments; a ``#`` inside a code block is no heading."""
    text, problems = decode(data)
    blocks: list[Block] = []
    paragraph: list[str] = []
    fence = ""
    for line in _COMMENT.sub("", text).splitlines():
        mark = _FENCE.match(line)
        if fence:
            paragraph.append(line)
            if mark and mark.group(1).startswith(fence) and not line.strip().strip(fence[0]):
                fence = ""
        elif mark:
            fence = mark.group(1)
            paragraph.append(line)
        elif heading := _ATX.match(line):
            _flush(paragraph, blocks)
            blocks.append(_heading(heading.group(2), len(heading.group(1))))
        elif len(paragraph) == 1 and _is_title(paragraph[0]) and (rule := _UNDERLINE.match(line)):
            blocks.append(_heading(paragraph.pop(), 1 if rule.group(1)[0] == "=" else 2))
        elif line.strip():
            paragraph.append(line.rstrip())
        else:
            _flush(paragraph, blocks)
    _flush(paragraph, blocks)
    return Parsed(blocks, problems)


def _is_title(line: str) -> bool:
    return not line.lstrip().startswith(("|", ">", "-", "*", "+"))


def _heading(text: str, level: int) -> Block:
    words = _EMPHASIS.sub(r"\1", _LINK.sub(r"\1", text)).strip()
    return Block(words, level=level)


def _flush(paragraph: list[str], blocks: list[Block]) -> None:
    if paragraph:
        blocks.append(Block("\n".join(paragraph)))
        paragraph.clear()
