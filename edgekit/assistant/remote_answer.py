"""An answer of the configured cloud model, to a preview that a person looked at and sent."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, cast

import httpx

from edgekit.assistant.answer import AnswerWriter
from edgekit.assistant.cloud import CloudMessage, Preview
from edgekit.assistant.conversation import branch_messages, system_message
from edgekit.assistant.local_answer import PASSAGES, named_assistant, numbered
from edgekit.assistant.refusals import RefusalError
from edgekit.assistant.turns import Turn
from edgekit.errors import MissingRuntimeError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from edgekit.assistant.state import Assistant

MOST = 16  # previews whose place in the history is remembered


@dataclass(frozen=True)
class Place:
    """Where a preview's question belongs; ``sources`` are the passages in it."""

    conversation_id: str
    parent_id: str | None
    text: str
    sources: tuple[dict[str, Any], ...] = ()


@dataclass(frozen=True)
class CloudWish:
    """What a person wants to ask."""

    conversation_id: str
    parent_id: str | None
    text: str
    redact: bool = True
    include_history: bool = True
    documents: bool = False
    assistant_id: str | None = None


class Remote:
    """Previews and where their answers go."""

    def __init__(self, assistant: Assistant) -> None:
        self._assistant = assistant
        self._places: dict[str, Place] = {}

    async def preview(self, wish: CloudWish) -> Preview:
        """Make exactly what would be sent.

        Raises:
            BadInputError, RefusalError: nothing may or can be sent.
        """
        history, documents = self._assistant.history, self._assistant.documents
        path = await asyncio.to_thread(history.path_to, wish.parent_id) if wish.parent_id else []
        if path and path[-1].conversation_id != wish.conversation_id:
            raise RefusalError(
                404, "not_found", "this message is not here any more; reload the page"
            )
        question = wish.text
        if not question.strip() and path and path[-1].role == "user":
            question = path.pop().content
        if not question.strip():
            raise RefusalError(400, "empty", "the message is empty; write something")
        messages = await self._instructions(wish)
        if wish.include_history:
            messages += [
                CloudMessage(m["role"], m["content"], "you" if m["role"] == "user" else "answer")
                for m in branch_messages(path)
                if m["role"] in ("user", "assistant") and m["content"]
            ]
        found = (
            await asyncio.to_thread(documents.search, question, PASSAGES) if wish.documents else []
        )
        messages += quoted(found)
        messages.append(CloudMessage("user", question, "you"))
        preview = await asyncio.to_thread(self._assistant.cloud.preview, messages, wish.redact)
        while len(self._places) >= MOST:
            del self._places[next(iter(self._places))]
        self._places[preview.id] = Place(
            wish.conversation_id, wish.parent_id, wish.text, tuple(numbered(found))
        )
        return preview

    async def send(self, preview_id: str, conversation_id: str) -> Turn:
        """Send what was previewed, once; the answer is written like any other.

        Raises:
            BadInputError, RefusalError: it cannot be sent (any more).
        """
        place = self._places.pop(preview_id, None)
        if place is None or place.conversation_id != conversation_id:
            raise RefusalError(
                409, "preview_expired", "this was sent already or is too old; look at it again"
            )
        config = self._assistant.cloud.configured()
        texts = self._assistant.cloud.send(preview_id)
        turns = self._assistant.turns
        question, new = await turns.ask(conversation_id, place.parent_id, place.text)
        cloud = {"name": config.name, "host": config.host, "model": config.model} if config else {}

        async def work(turn: Turn, writer: AnswerWriter) -> None:
            writer.sources = list(place.sources)
            if writer.sources:
                turn.log.add("passages", writer.sources)
            await self._stream(turn, writer, cast("AsyncGenerator[str, None]", texts))

        return await turns.begin(question, new, {"cloud": cloud}, work)

    async def _stream(
        self, turn: Turn, writer: AnswerWriter, texts: AsyncGenerator[str, None]
    ) -> None:
        began, first = time.monotonic(), None
        try:
            async with aclosing(texts):
                async for text in texts:
                    first = time.monotonic() if first is None else first
                    writer.write(text)
        except MissingRuntimeError as error:
            unreachable = isinstance(error.__cause__, httpx.HTTPError | OSError)
            code = "cloud_unreachable" if unreachable else "cloud_refused"
            raise RefusalError(502, code, str(error)) from error
        writer.stats["time_to_first_token"] = round((first or time.monotonic()) - began, 4)
        turn.log.add("stats", dict(writer.stats))

    async def _instructions(self, wish: CloudWish) -> list[CloudMessage]:
        named = await named_assistant(self._assistant, wish.assistant_id, wish.conversation_id)
        found = system_message(named.system_prompt if named else "")
        return [CloudMessage("system", m["content"], "instructions") for m in found]


def quoted(passages: Sequence[Any]) -> list[CloudMessage]:
    """Each passage as a message of its own, so that the preview can say where it is from."""
    from edgekit.assistant.documents.prompting import as_context

    if not passages:
        return []
    whole = as_context(passages)
    files = ", ".join(dict.fromkeys(PurePath(p.file).name for p in passages))
    return [CloudMessage("user", whole, f"passage from {files}")]
