"""What the model is given: one branch of a conversation as messages of OpenAI's form.

A branch is the path from the first message to the question. Answers that used tools become the
call, its result and the words after it, as the model wrote them. What never became an answer (a
failure without a word) is left out, and words of one role that follow each other are joined,
because most chat templates want user and assistant to take turns.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from edgekit.assistant.history_records import Message

TITLE_LENGTH = 60
NOTHING_FOUND = (
    "Nothing in the person's documents matches this question. Say so before you answer from what "
    "you know."
)
SUMMARY_HEAD = "Summary of the conversation before this point:"

ChatMessage = dict[str, Any]


def system_message(*parts: str) -> list[ChatMessage]:
    """The system message made of the parts that say something, if any does."""
    text = "\n\n".join(part.strip() for part in parts if part.strip())
    return [{"role": "system", "content": text}] if text else []


def summary_text(summary: str) -> str:
    """How the model is told what went before."""
    return f"{SUMMARY_HEAD}\n{summary}" if summary else ""


def branch_messages(path: Sequence[Message]) -> list[ChatMessage]:
    """The branch, oldest first, in a form that every chat template takes."""
    messages: list[ChatMessage] = []
    for stored in path:
        if stored.role == "system":
            continue  # the named assistant's system prompt takes its place
        messages += _calls(stored) if stored.tool_calls else []
        if stored.content.strip():
            messages.append({"role": stored.role, "content": stored.content})
    return _joined(messages)


def with_material(messages: Sequence[ChatMessage], material: str) -> list[ChatMessage]:
    """Put quoted material before the question, which is the last message."""
    *before, question = messages
    return [*before, {**question, "content": f"{material}\n\n{question['content']}"}]


def title_of(question: str) -> str:
    """A name for a conversation: the beginning of its first question."""
    line = " ".join(question.split())
    if len(line) <= TITLE_LENGTH:
        return line
    cut = line[:TITLE_LENGTH]
    word = cut.rfind(" ")
    return (cut[:word] if word > TITLE_LENGTH // 2 else cut).rstrip(" ,.;:") + "…"


def call_messages(calls: Sequence[dict[str, Any]], said: str = "") -> list[ChatMessage]:
    """The calls of one round, and what each gave back."""
    asked = [
        {
            "id": call["call_id"],
            "type": "function",
            "function": {"name": call["name"], "arguments": json.dumps(call["arguments"])},
        }
        for call in calls
    ]
    results = [
        {"role": "tool", "tool_call_id": call["call_id"], "content": call["text"]} for call in calls
    ]
    return [{"role": "assistant", "content": said, "tool_calls": asked}, *results]


def _calls(stored: Message) -> list[ChatMessage]:
    whole = [call for call in stored.tool_calls if isinstance(call.get("text"), str)]
    rounds: dict[int, list[dict[str, Any]]] = {}
    for call in whole:
        rounds.setdefault(int(call.get("round", 0)), []).append(call)
    return [message for calls in rounds.values() for message in call_messages(calls)]


def _joined(messages: Sequence[ChatMessage]) -> list[ChatMessage]:
    result: list[ChatMessage] = []
    for message in messages:
        last = result[-1] if result else None
        same = last is not None and last["role"] == message["role"]
        if last is not None and same and _is_plain(last) and _is_plain(message):
            last["content"] = f"{last['content']}\n\n{message['content']}"
        else:
            result.append(dict(message))
    return result


def _is_plain(message: ChatMessage) -> bool:
    """Words alone: neither a call nor the result of one."""
    return "tool_calls" not in message and message["role"] != "tool"
