"""Source code and settings files: definitions as headings, lines kept as they are."""

from __future__ import annotations

import re

from edgekit.assistant.documents.limits import Limits
from edgekit.assistant.documents.parsers.encodings import decode
from edgekit.assistant.documents.records import Block, Parsed

_LONGEST_LINE = 300  # of a line that may define something: what is longer was written by a program
_DEFINITION = re.compile(
    r"(?P<indent>[ \t]*)(?:(?:export|default|public|private|protected|internal|static|final|"
    r"abstract|sealed|async|pub(?:\([a-z]+\))?|unsafe|extern|open|override|virtual|inline)\s+){0,5}"
    r"(?P<what>def|class|func|fn|function|struct|enum|trait|impl|interface|module|namespace|"
    r"protocol|record|object|package|CREATE\s+(?:TABLE|VIEW|FUNCTION|PROCEDURE))\s+"
    r"(?P<name>[\w$.:<>]+)",
    re.IGNORECASE,
)
_C_FUNCTION = re.compile(r"(?P<indent>)[A-Za-z_][\w:<>,&* \t]{0,120}[ *&](?P<name>[\w:~]+)\([^;]*$")
_ARROW = re.compile(
    r"(?P<indent>[ \t]*)(?:export\s+)?(?:const|let|var)\s+(?P<name>[\w$]+)\s*=\s*(?:async\s*)?"
    r"(?:function\b|\([^()]{0,200}\)\s*=>)"
)
_SECTION = re.compile(r"(?P<indent>)\[{1,2}(?P<name>[\w.\" -]{1,80})\]{1,2}\s*$")  # TOML, INI
_PATTERNS = (_DEFINITION, _ARROW, _C_FUNCTION, _SECTION)
_INDENT = 4
_DEEPEST = 6


def parse_code(data: bytes, limits: Limits) -> Parsed:
    """Blocks of lines; a new one begins at each definition and after an empty line."""
    text, problems = decode(data)
    blocks: list[Block] = []
    lines: list[str] = []
    first = 1
    for number, line in enumerate(text.splitlines(), 1):
        definition = _definition(line)
        if lines and (definition or not line.strip()):
            blocks.append(Block("\n".join(lines), line=first))
            lines = []
        if definition:
            name, level = definition
            blocks.append(Block(line.rstrip(), level=level, title=name, line=number))
        elif line.strip():
            if not lines:
                first = number
            lines.append(line.rstrip())
    if lines:
        blocks.append(Block("\n".join(lines), line=first))
    return Parsed(blocks, problems)


def _definition(line: str) -> tuple[str, int] | None:
    """Name and level of what a line defines."""
    if len(line) > _LONGEST_LINE:
        return None
    for pattern in _PATTERNS:
        if match := pattern.match(line):
            indent = len(match["indent"].expandtabs(_INDENT))
            return match["name"].rstrip(":"), min(1 + indent // _INDENT, _DEEPEST)
    return None
