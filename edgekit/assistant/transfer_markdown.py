"""A conversation as Markdown: the thread that was last written first, other branches after it.

Each message is a heading, a comment and the text as it is. The comments carry what Markdown cannot
say (parent, origin, sources, times) and a number that the texts do not contain, so a text that
quotes such a file cannot be taken for its structure. Edited files can be read again, as nothing
counts lengths. Of files of other programs, headings that name a speaker part the messages.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

from edgekit.assistant.history_records import Conversation, Message
from edgekit.assistant.transfer_drafts import DraftConversation, checked, strict_json
from edgekit.errors import BadInputError

VERSION = 1
SPEAKERS = {"user": "You", "assistant": "Assistant", "system": "System", "tool": "Tool"}
_NOT_IN_COMMENT = ("conversation_id", "content")
_HEAD = re.compile(r"^<!-- edgekit-conversation ([0-9a-f]{16}) (\{.*\}) -->$", re.MULTILINE)
_NAMES = {
    "user": ("you", "user", "human", "me", "用户", "我", "你"),
    "assistant": ("assistant", "ai", "chatgpt", "claude", "model", "助手"),
    "system": ("system", "系统"),
}
_ROLE_OF = {name: role for role, names in _NAMES.items() for name in names}
_HEADING = re.compile(r"(?:#{1,6}\s+)(.{1,200})")
_BOLD = re.compile(r"\*\*(.{1,40}?)(?:[:：]\*\*|\*\*[:：])\s*(.*)")
_FENCE = re.compile(r"\s{0,3}(`{3,}|~{3,})")


def write_markdown(
    conversation: Conversation, folder: str | None, messages: Sequence[Message]
) -> str:
    """A conversation in Markdown."""
    mark = _mark_absent_from(messages)
    fields = {k: v for k, v in asdict(conversation).items() if k != "folder_id"}
    title = " ".join(conversation.title.split()) or "Conversation"
    parts = [
        f"# {title}",
        _comment("conversation", mark, {"version": VERSION, **fields, "folder": folder}),
    ]
    order = {m.id: i for i, m in enumerate(messages)}
    thread = _last_thread(messages)
    others = [m for m in messages if m.id not in thread]
    for message in [*(m for m in messages if m.id in thread), *others]:
        branch = "" if message.id in thread else " (another branch)"
        parts.append(f"## {_speaker(message)}{branch}")
        fields = {k: v for k, v in asdict(message).items() if k not in _NOT_IN_COMMENT}
        parts.append(_comment("message", mark, {"order": order[message.id], **fields}))
        parts.append(message.content)
        if message.sources:
            listed = "\n".join(_source(i, s) for i, s in enumerate(message.sources, 1))
            parts += [f"<!-- edgekit-sources {mark} -->", listed]
    return "\n\n".join(parts) + "\n"


def read_markdown(text: str, now: str) -> DraftConversation:
    """The conversation of a file; ``now`` stands in for times that it does not tell.

    Raises:
        BadInputError: it holds no messages.
    """
    text = text.removeprefix("\ufeff")
    if text.partition("\n")[0].endswith("\r"):
        text = text.replace("\r\n", "\n")
    head = _HEAD.search(text)
    return _read_ours(text, head) if head else _read_foreign(text, now)


def _read_ours(text: str, head: re.Match[str]) -> DraftConversation:
    mark, fields = head[1], _json(head[2])
    if fields.get("version") != VERSION:
        raise BadInputError(
            f"this Markdown has format version {fields.get('version')!r} and this edgekit reads "
            f"{VERSION}; install a newer edgekit"
        )
    begin = re.compile(rf"^<!-- edgekit-message {mark} (\{{.*\}}) -->\n\n?", re.MULTILINE)
    found = list(begin.finditer(text, head.end()))
    messages = []
    for i, match in enumerate(found):
        last = i + 1 == len(found)
        end = (
            len(text) if last else max(text.rfind("\n\n## ", 0, found[i + 1].start()), match.end())
        )
        content = text[match.end() : end]
        content = content.removesuffix("\n") if last else content
        content = content.split(f"\n\n<!-- edgekit-sources {mark} -->", 1)[0]
        messages.append({**_json(match[1]), "content": content})
    messages.sort(key=_order)
    return checked(DraftConversation, {**fields, "messages": messages}, "this Markdown")


def _read_foreign(text: str, now: str) -> DraftConversation:
    title = ""
    messages: list[dict[str, Any]] = []
    lines: list[str] = []
    for line, fenced in _lines(text):
        role, rest = (None, "") if fenced else _speaker_of(line)
        if role is not None:
            _close(messages, lines)
            number = str(len(messages))
            parent = messages[-1]["id"] if messages else None
            messages.append({"id": number, "parent_id": parent, "role": role, "created": now})
            lines = [rest] if rest else []
        elif not messages and line.startswith("# ") and not title:
            title = line[2:].strip()[:1000]
        else:
            lines.append(line)
    if not messages:
        raise BadInputError(
            'this Markdown holds no messages: headings such as "## You" and "## Assistant" part '
            "them; choose another file"
        )
    _close(messages, lines)
    draft = {"title": title, "created": now, "updated": now, "messages": messages}
    return checked(DraftConversation, draft, "this Markdown")


def _close(messages: list[dict[str, Any]], lines: list[str]) -> None:
    """Give the last message its text; what stands before the first is no message."""
    if messages:
        messages[-1]["content"] = "\n".join(lines).strip()


def _lines(text: str) -> Iterator[tuple[str, bool]]:
    """Lines, and whether they are in a code block."""
    fence = ""
    for line in text.split("\n"):
        match = _FENCE.match(line)
        if match and not fence:
            fence = match[1]
            yield line, True
            continue
        yield line, bool(fence)
        if match and match[1].startswith(fence) and not line.strip().strip(fence[0]):
            fence = ""


def _speaker_of(line: str) -> tuple[str | None, str]:
    """The role that a line announces, and the text that follows on it."""
    heading, bold = _HEADING.fullmatch(line), _BOLD.fullmatch(line)
    name = heading[1] if heading else bold[1] if bold else ""
    word = name.strip(" \t*:：#").partition(" · ")[0].partition(" (")[0].lower()
    return _ROLE_OF.get(word), (bold[2] if bold else "")


def _speaker(message: Message) -> str:
    """Who says it and, for an answer, where it was made."""
    cloud = message.origin.get("cloud")
    place = cloud.get("name") if isinstance(cloud, dict) else message.origin.get("device")
    parts = [SPEAKERS[message.role], message.origin.get("pack"), place]
    return " · ".join(" ".join(str(p).split()) for p in parts if p)


def _source(number: int, source: dict[str, Any]) -> str:
    page = source.get("page")
    where = f"{source.get('file', '')}" + (f", page {page}" if page is not None else "")
    return f"{source.get('n', number)}. {' '.join(where.split())}"


def _last_thread(messages: Sequence[Message]) -> set[str]:
    """Ids from the root to the message that was written last."""
    by_id = {m.id: m for m in messages}
    thread: set[str] = set()
    current = messages[-1] if messages else None
    while current is not None:
        thread.add(current.id)
        current = by_id.get(current.parent_id) if current.parent_id else None
    return thread


def _mark_absent_from(messages: Sequence[Message]) -> str:
    while True:
        mark = secrets.token_hex(8)
        if not any(mark in m.content for m in messages):
            return mark


def _comment(kind: str, mark: str, fields: dict[str, Any]) -> str:
    # "-->" must not stand in it
    text = json.dumps(fields, ensure_ascii=False).replace("-->", "--\\u003e")
    return f"<!-- edgekit-{kind} {mark} {text} -->"


def _json(text: str) -> dict[str, Any]:
    value = strict_json(text, "a comment in this Markdown")
    return value if isinstance(value, dict) else {}


def _order(message: dict[str, Any]) -> int:
    order = message.get("order")
    return order if isinstance(order, int) else 0
