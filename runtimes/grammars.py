"""What a :class:`Grammar` asks of a runtime, before either runtime's own grammar engine.

A schema for the whole answer is followed to the letter or refused. The schemas of tags, which are
tool calls, are followed in their structure: types, properties, required names, enums. What a
grammar cannot express of them (bounds, patterns, formats, ...) is left to the tool, which has to
check its arguments anyway; refusing a tool for the pattern of one argument would help nobody. A tag
that begins with nothing is an answer beside calls, and is followed to the letter again.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence

from edgekit.errors import BadInputError
from edgekit.runtimes.batching import Grammar, Tag

_MARK = re.compile(r"\s*(<[^<>]+>|\[[^\[\]]+\])")  # such as <tool_call> or [TOOL_CALLS]


def check_grammar(grammar: Grammar) -> None:
    """Refuse a grammar that does not say what it wants.

    Raises:
        BadInputError: not exactly one of schema and tags is given, or nothing shows where a tag in
            free text begins.
    """
    if (grammar.schema is None) == (not grammar.tags):
        raise BadInputError("a grammar has either a schema or tags; give exactly one of them")
    if not grammar.required and not all(tag.begin for tag in grammar.tags):
        raise BadInputError("a tag in free text begins with an empty text; give it one")


def trigger_groups(tags: Sequence[Tag]) -> list[tuple[str, list[Tag]]]:
    """The text in an answer that begins a tag, with the tags that it may be.

    Tags that begin alike share the beginning, so that after ``<tool_call>`` the name of one of the
    tools must follow. Such a mark is enough: what comes after it is no free text any more.
    """
    shared = os.path.commonprefix([tag.begin for tag in tags])  # noqa: RUF071, of texts indeed
    if mark := _MARK.match(shared):
        shared = mark.group()
    if len(shared.strip()) > 1:
        return [(shared, list(tags))]
    return [(begin, [t for t in tags if t.begin == begin]) for begin in {t.begin for t in tags}]
