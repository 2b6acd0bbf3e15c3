"""The content of an MCP result as text for the model; what is not text is named, not passed on."""

from __future__ import annotations

import json
from typing import Any

from edgekit.assistant.tools.definitions import clean


def result_text(result: Any) -> str:
    """Text blocks joined by newlines, or the structured content when there are none."""
    parts = [_block(block) for block in result.content]
    if not parts and result.structured_content is not None:
        parts = [json.dumps(result.structured_content, ensure_ascii=False)]
    return "\n".join(parts) or "(no content)"


def _block(block: Any) -> str:
    if block.type == "text":
        return str(block.text)
    if block.type == "resource":
        resource = block.resource
        text = getattr(resource, "text", None)
        if text is not None:
            return str(text)
        return f"[resource {clean(str(resource.uri), 200)}, not text: not shown]"
    if block.type == "resource_link":
        return f"[link to {clean(str(block.uri), 200)}: not followed]"
    size = len(block.data) * 3 // 4  # base64
    return f"[{block.type}, {clean(block.mime_type, 60)}, about {size} bytes: not shown]"
