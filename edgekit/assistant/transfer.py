"""The history as files: JSON that keeps everything, Markdown that people read, and back.

The JSON is ``{"format": "edgekit-history", "version": 1, "exported": TIME, "conversations": []}``,
where a conversation has its fields, its folder's name and all its messages; a message names its
parent, so branches are kept, and carries its origin, sources and tool calls. ``from_json`` also
takes ChatGPT's ``conversations.json``. Markdown is in ``transfer_markdown``.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict

from edgekit.assistant.history import History
from edgekit.assistant.transfer_chatgpt import from_chatgpt, is_chatgpt
from edgekit.assistant.transfer_drafts import (
    LONGEST_FILE,
    DraftConversation,
    checked,
    put,
    strict_json,
)
from edgekit.assistant.transfer_markdown import read_markdown, write_markdown
from edgekit.errors import BadInputError

FORMAT, VERSION = "edgekit-history", 1


def to_json(history: History, ids: Sequence[str] | None = None) -> str:
    """These conversations, or all.

    Raises:
        NotFoundError: an id names nothing.
    """
    chosen = history.conversations() if ids is None else [history.conversation(i) for i in ids]
    folders = {f.id: f.name for f in history.folders()}
    conversations = []
    for conversation in chosen:
        fields = asdict(conversation)
        folder = folders.get(fields.pop("folder_id") or "")
        messages = [asdict(m) for m in history.messages(conversation.id)]
        for message in messages:
            del message["conversation_id"]
        conversations.append({**fields, "folder": folder, "messages": messages})
    document = {
        "format": FORMAT,
        "version": VERSION,
        "exported": history.now(),
        "conversations": conversations,
    }
    return json.dumps(document, ensure_ascii=False, indent=1) + "\n"


def from_json(history: History, text: str) -> list[str]:
    """Import what :func:`to_json` wrote, or ChatGPT's export; returns the conversations' ids.

    Raises:
        BadInputError: it is something else, or contradicts itself; nothing was imported.
        OutOfResourcesError: the disk is full; nothing was imported.
    """
    _refuse_huge(text)
    document = strict_json(text.removeprefix("\ufeff"), "this file")
    if is_chatgpt(document):
        return put(history, from_chatgpt(document, history.now()))
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise BadInputError(
            "this JSON is neither a history of edgekit nor ChatGPT's conversations.json; choose "
            "another file"
        )
    if document.get("version") != VERSION:
        raise BadInputError(
            f"this history has format version {document.get('version')!r} and this edgekit reads "
            f"{VERSION}; install a newer edgekit"
        )
    found = document.get("conversations")
    if not isinstance(found, list):
        raise BadInputError("conversations: must be a list; export the history again")
    drafts = [checked(DraftConversation, c, f"conversation {i}") for i, c in enumerate(found)]
    return put(history, drafts)


def to_markdown(history: History, conversation_id: str) -> str:
    """A conversation to read; the comments in it let :func:`from_markdown` restore all of it.

    Raises:
        NotFoundError: the id names nothing.
    """
    conversation = history.conversation(conversation_id)
    folders = {f.id: f.name for f in history.folders()}
    folder = folders.get(conversation.folder_id or "")
    return write_markdown(conversation, folder, history.messages(conversation_id))


def from_markdown(history: History, text: str) -> list[str]:
    """Import a conversation in Markdown, ours or one with headings such as "You", "Assistant".

    Raises:
        BadInputError: it holds no messages, or contradicts itself; nothing was imported.
        OutOfResourcesError: the disk is full; nothing was imported.
    """
    _refuse_huge(text)
    return put(history, [read_markdown(text, history.now())])


def _refuse_huge(text: str) -> None:
    if len(text) > LONGEST_FILE:
        raise BadInputError(
            f"this file has more than {LONGEST_FILE:,} characters; export fewer conversations at "
            "once"
        )
