"""Search in the person's documents, as a tool; what is found is quoted material.

The search itself is handed in, and the passages are quoted as in every prompt: fenced, numbered,
and with the sentence that they are material and not instructions.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from edgekit.assistant.documents.prompting import as_context
from edgekit.assistant.documents.records import Passage
from edgekit.assistant.tools.definitions import ToolInfo, ToolResult, bounded

PASSAGES = 6

SEARCH_DOCUMENTS = ToolInfo(
    name="search_documents",
    server="",
    tool="search_documents",
    description=(
        "Search the person's own documents on this computer by words and meaning. Returns "
        "numbered passages with file and page; cite them as [1], [2]."
    ),
    schema={
        "type": "object",
        "properties": {
            "query": {"type": "string", "minLength": 1, "description": "words or a question"}
        },
        "required": ["query"],
        "additionalProperties": False,
    },
)
Search = Callable[[str, int], Sequence[Passage]]


async def search_documents(search: Search, query: str) -> ToolResult:
    """Run a search in a thread and number what it finds."""
    found = tuple(await asyncio.to_thread(search, query, PASSAGES))
    if not found:
        return ToolResult("Nothing was found in the documents.")
    return ToolResult(bounded(as_context(found, query)), passages=found)
