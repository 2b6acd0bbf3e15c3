"""ChatGPT's ``conversations.json`` as drafts: its texts and branches, without images and files.

The file is a list of conversations, each with a ``mapping`` of nodes. A node has a parent and
perhaps a message; nodes without text are skipped and their children hang below the next ancestor
that has one.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from edgekit.assistant.transfer_drafts import DraftConversation, checked
from edgekit.errors import BadInputError

_ROLES = ("system", "user", "assistant", "tool")


def is_chatgpt(document: Any) -> bool:
    """Whether this is such an export, of one or several conversations."""
    first = document[0] if isinstance(document, list) and document else document
    return isinstance(first, dict) and isinstance(first.get("mapping"), dict)


def from_chatgpt(document: Any, now: str) -> list[DraftConversation]:
    """The conversations; ``now`` stands in for times that are missing.

    Raises:
        BadInputError: the nodes contradict each other.
    """
    found = document if isinstance(document, list) else [document]
    return [_conversation(c, f"conversation {i}", now) for i, c in enumerate(found)]


def _conversation(value: Any, place: str, now: str) -> DraftConversation:
    if not isinstance(value, dict) or not isinstance(value.get("mapping"), dict):
        raise BadInputError(f"{place}: it has no mapping of messages; export it again")
    nodes = {k: n for k, n in value["mapping"].items() if isinstance(n, dict)}
    created = _time(value.get("create_time"), now)
    messages = [m for k, n in nodes.items() if (m := _message(k, n, created)) is not None]
    kept = {m["id"] for m in messages}
    above: dict[str, str | None] = {}
    for message in messages:
        message["parent_id"] = _ancestor(message["id"], nodes, kept, above, place)
    draft = {
        "title": str(value.get("title") or "")[:1000],
        "created": created,
        "updated": _time(value.get("update_time"), created),
        "messages": messages,
    }
    return checked(DraftConversation, draft, place)


def _message(number: str, node: dict[str, Any], otherwise: str) -> dict[str, Any] | None:
    message = node.get("message")
    if not isinstance(message, dict):
        return None
    author, content = message.get("author"), message.get("content")
    role = author.get("role") if isinstance(author, dict) else None
    text = _text(content) if isinstance(content, dict) else ""
    if role not in _ROLES or not text.strip():
        return None
    created = _time(message.get("create_time"), otherwise)
    return {"id": number, "role": role, "content": text, "created": created,
            "origin": {"imported": "ChatGPT"}}  # fmt: skip


def _text(content: dict[str, Any]) -> str:
    parts = content.get("parts")
    if isinstance(parts, list):
        return "\n\n".join(p for p in parts if isinstance(p, str))
    text = content.get("text")
    return text if isinstance(text, str) else ""


def _ancestor(
    number: str,
    nodes: dict[str, dict[str, Any]],
    kept: set[str],
    above: dict[str, str | None],
    place: str,
) -> str | None:
    """The next node upwards that is kept; ``above`` remembers what was walked already."""
    walked: dict[str, None] = {}
    current = number
    while current not in above:
        if current in walked:
            raise BadInputError(f"{place}: messages answer each other in a circle; export it again")
        walked[current] = None
        parent = nodes[current].get("parent")
        if not isinstance(parent, str) or parent not in nodes:
            above[current] = None
        elif parent in kept:
            above[current] = parent
        else:
            current = parent
    for node in walked:
        above[node] = above[current]
    return above[number]


def _time(value: Any, otherwise: str) -> str:
    """Seconds since 1970 as ISO-8601."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return otherwise
    try:
        return datetime.fromtimestamp(value, UTC).isoformat(timespec="milliseconds")
    except (ValueError, OverflowError, OSError):
        return otherwise
