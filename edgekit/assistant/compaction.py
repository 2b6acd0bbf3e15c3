"""Making a conversation fit: older turns are summarised by the model itself, and it is said.

1. Whatever an earlier answer of this branch summarised stays summarised; the branch continues
   after it. The history keeps every word, only the model is given less.
2. What fits with room for an answer is sent as it is.
3. Passages of documents are left out from the last on, until question and passages fit by
   themselves. A question that does not fit alone is refused with its length.
4. The longest run of newest turns that fits beside a summary is kept; the model summarises the
   rest. Where it cannot, or its summary does not fit, the rest is left out and the note is
   empty.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from edgekit.assistant.conversation import (
    ChatMessage,
    branch_messages,
    summary_text,
    system_message,
    with_material,
)
from edgekit.assistant.history_records import Message
from edgekit.assistant.refusals import RefusalError

SMALLEST_RESERVE = 64  # tokens for an answer
TEMPLATE_TOKENS = 128  # what a chat template adds by itself, at most
MESSAGE_TOKENS = 16  # what it adds for each message, at most
BYTES_PER_TOKEN = 3  # where nobody counts
INSTRUCTION = (
    "Summarise the conversation that follows for someone who continues it: facts, names, numbers, "
    "decisions and open questions, in its own language, in at most {words} words. Write the "
    "summary alone."
)

Count = Callable[[Sequence[ChatMessage], Sequence[dict[str, Any]]], Awaitable[int | None]]
Complete = Callable[[Sequence[ChatMessage], int], Awaitable[str]]


@dataclass(frozen=True)
class Compaction:
    """What was left out now: everything up to message ``until``, told as ``note``.

    ``kept`` and ``summarised`` are numbers of messages.
    """

    kept: int
    summarised: int
    note: str
    until: str


@dataclass(frozen=True)
class Prepared:
    """The messages to send; the first ``passages`` passages are in them."""

    messages: list[ChatMessage]
    passages: int
    compaction: Compaction | None = None


class Compactor:
    """Prepares one question.

    Args:
        context_length: tokens of prompt and answer together; 0 is unknown and fits everything.
        max_tokens: the longest answer that was asked for.
        count: counts the tokens of messages and tools; None where it cannot.
        complete: lets the model answer, with a limit of tokens.
    """

    def __init__(
        self, context_length: int, max_tokens: int, count: Count, complete: Complete
    ) -> None:
        reserve = min(max_tokens, max(SMALLEST_RESERVE, context_length // 4))
        self._budget = context_length - reserve
        self._unlimited = context_length <= 0
        self._summary_tokens = max(32, min(400, context_length // 8))
        self._count, self._complete = count, complete

    async def prepare(
        self,
        path: Sequence[Message],
        system: str,
        passages: int,
        material: Callable[[int], str],
        tools: Sequence[dict[str, Any]] = (),
    ) -> Prepared:
        """Messages for ``path``, whose last message is the question.

        Args:
            passages: how many passages there are to quote.
            material: quotes the first n of them.

        Raises:
            RefusalError: the question alone is too long, or the model went away.
        """
        path, summary = after_summary(path)

        def build(start: int, note: str, quoted: int) -> list[ChatMessage]:
            chosen = branch_messages(path[start:])
            chosen = with_material(chosen, material(quoted)) if quoted else chosen
            return [*system_message(system, summary_text(note)), *chosen]

        if await self._fits(build(0, summary, passages), tools):
            return Prepared(build(0, summary, passages), passages)
        last = len(path) - 1
        quoted = passages
        while not await self._fits(build(last, "", quoted), tools):
            if quoted == 0:
                raise await self._too_long(build(last, "", 0), tools)
            quoted -= 1
        starts = [n for n, m in enumerate(path[:-1]) if m.role == "user" and n > 0] + [last]
        room = "x " * self._summary_tokens
        start = await self._first_fitting(starts, lambda n: build(n, room, quoted), tools)
        older = path[:start]
        if not older:  # passages were too long, not the conversation
            return Prepared(build(0, summary, quoted), quoted)
        note = await self._summarise(older, summary)
        while not await self._fits(build(start, note, quoted), tools):
            note, quoted = (note, quoted - 1) if quoted > 1 else ("", quoted)
        kept = build(start, note, quoted)
        compaction = Compaction(len(path) - start, len(older), note, older[-1].id)
        return Prepared(kept, quoted, compaction)

    async def _first_fitting(
        self,
        starts: Sequence[int],
        build: Callable[[int], list[ChatMessage]],
        tools: Sequence[dict[str, Any]],
    ) -> int:
        """The earliest start that fits, by halving; the last one is taken if none does."""
        low, high = 0, len(starts) - 1
        while low < high:
            middle = (low + high) // 2
            if await self._fits(build(starts[middle]), tools):
                high = middle
            else:
                low = middle + 1
        return starts[high]

    async def _summarise(self, older: Sequence[Message], summary: str) -> str:
        """What the model makes of the older messages; "" if it cannot."""
        instruction = INSTRUCTION.format(words=self._summary_tokens // 2)
        text = transcript(older, summary)
        messages = [*system_message(instruction), {"role": "user", "content": text}]
        while len(text) > 200 and not await self._fits(messages, ()):
            text = shortened(text)
            messages[-1] = {"role": "user", "content": text}
        try:
            return (await self._complete(messages, self._summary_tokens)).strip()
        except RefusalError:
            return ""

    async def _fits(self, messages: Sequence[ChatMessage], tools: Sequence[dict[str, Any]]) -> bool:
        """Whether an answer still has room; counted only where a bound does not tell."""
        if self._unlimited or upper_bound(messages, tools) <= self._budget:
            return True
        return await self._tokens(messages, tools) <= self._budget

    async def _tokens(
        self, messages: Sequence[ChatMessage], tools: Sequence[dict[str, Any]]
    ) -> int:
        counted = await self._count(messages, tools)
        return upper_bound(messages, tools) // BYTES_PER_TOKEN if counted is None else counted

    async def _too_long(
        self, messages: Sequence[ChatMessage], tools: Sequence[dict[str, Any]]
    ) -> RefusalError:
        tokens = await self._tokens(messages, tools)
        return RefusalError(
            413, "context_full",
            f"your message has about {tokens} tokens and this model reads {self._budget} at once; "
            "shorten it, or add the text to your documents and ask about it",
        )  # fmt: skip


def after_summary(path: Sequence[Message]) -> tuple[Sequence[Message], str]:
    """The branch after what an earlier answer summarised, and that summary."""
    for message in reversed(path):
        compacted = message.origin.get("compacted")
        if not isinstance(compacted, dict):
            continue
        for number, earlier in enumerate(path):
            if earlier.id == compacted.get("until") and number < len(path) - 1:
                return path[number + 1 :], str(compacted.get("note", ""))
    return path, ""


def transcript(messages: Sequence[Message], summary: str = "") -> str:
    """A conversation as plain text to summarise."""
    names = {"user": "Person", "assistant": "Assistant"}
    lines = [summary] if summary else []
    lines += [
        f"{names[m.role]}: {m.content.strip()}"
        for m in messages
        if m.role in names and m.content.strip()
    ]
    return "\n\n".join(lines)


def shortened(text: str) -> str:
    """Two thirds of a text: its beginning and its end."""
    part = len(text) // 3
    return f"{text[:part]}\n…\n{text[-part:]}"


def upper_bound(messages: Sequence[ChatMessage], tools: Sequence[dict[str, Any]]) -> int:
    """At least as many tokens as there can be: a token is a byte or more."""
    total = TEMPLATE_TOKENS
    for message in messages:
        said = json.dumps(message.get("tool_calls", ""), ensure_ascii=False)
        total += MESSAGE_TOKENS + len(f"{message['content']}{said}".encode("utf-8", "replace"))
    if tools:
        total += len(json.dumps(tools, ensure_ascii=False).encode("utf-8", "replace"))
    return total
