"""An answer of the model on this machine.

1. The engine is leased (and switched first, for a retry on another device).
2. Passages of the person's documents are looked up, if wanted, and quoted before the question.
3. The branch is made to fit the context, visibly (:mod:`edgekit.assistant.compaction`).
4. The model streams; thoughts and words go to the writer. When it calls tools, each call is
   checked, a person is asked where that is needed, the result goes back to the model, and it goes
   on, at most :data:`ROUNDS` times; then it has to answer without tools.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

from edgekit.assistant.answer import AnswerWriter
from edgekit.assistant.bodies import plain
from edgekit.assistant.compaction import Compactor, Prepared
from edgekit.assistant.conversation import NOTHING_FOUND, ChatMessage, call_messages
from edgekit.assistant.engine_host import EngineStatus
from edgekit.assistant.library import NamedAssistant
from edgekit.assistant.model_client import ModelClient, Piece
from edgekit.assistant.model_process import engine_failed
from edgekit.assistant.settings import Settings
from edgekit.assistant.suggestion import hard_for_small_model
from edgekit.assistant.tools.arguments import parse_arguments
from edgekit.assistant.turns import Turn

if TYPE_CHECKING:
    from edgekit.assistant.documents.records import Passage
    from edgekit.assistant.state import Assistant

ROUNDS = 5
PASSAGES = 6
SEARCH_TOOL = "search_documents"
RESULT_SHARE = 4  # a tool's result may take this part of the context
CHARACTERS_PER_TOKEN = 3


@dataclass(frozen=True)
class Wish:
    """What the person asked for beside the words."""

    target: str = ""
    assistant_id: str | None = None
    documents: bool = False
    tools: bool = False


@dataclass
class _Call:
    """A call as it comes in pieces."""

    name: str = ""
    arguments: str = ""


class LocalAnswer:
    """Makes one answer."""

    def __init__(self, assistant: Assistant, wish: Wish) -> None:
        self._assistant, self._wish = assistant, wish
        self._settings: Settings = assistant.settings.current
        self._logprobs: list[float] = []
        self._finish = ""
        # the suggestion needs probabilities, and is of no use without a place to go
        self._wants_logprobs = assistant.cloud.configured() is not None

    async def __call__(self, turn: Turn, writer: AnswerWriter) -> None:
        """Write the answer of ``turn``."""
        await self._switch()
        async with (
            self._assistant.engine.lease() as endpoint,
            ModelClient(endpoint) as client,
        ):
            status = self._assistant.engine.status
            writer.origin |= origin_of(status)
            passages = await self._passages(turn, writer)
            tools = await self._tools()
            prepared = await self._prepare(turn, client, status, passages, tools)
            self._tell_sources(turn, writer, passages, prepared)
            messages = prepared.messages
            for number in range(ROUNDS + 1):
                offered = tools if number < ROUNDS else []
                calls = await self._round(turn, writer, client, messages, offered)
                if not calls:
                    break
                done = [await self._call(turn, writer, call, number) for call in calls]
                limit = status.context_length * CHARACTERS_PER_TOKEN // RESULT_SHARE
                messages += call_messages([_short(call, limit) for call in done])
                writer.write("\n\n" if writer.text else "")
        self._suggest(turn, writer, status)

    async def _switch(self) -> None:
        """Another device first, where one was asked for."""
        target, engine = self._wish.target, self._assistant.engine
        status = await engine.settled()
        here = (status.target, f"{status.runtime}-{status.device.lower()}")
        if not target or (status.state == "ready" and target in here):
            return
        if status.pack is None:
            return  # the lease says what is missing
        engine.load(status.pack.path, target)
        status = await engine.settled()
        if status.target != target or status.state != "ready":
            raise engine_failed(status.error or f"{target} cannot be used; choose another device")

    async def _passages(self, turn: Turn, writer: AnswerWriter) -> list[Passage]:
        if not self._wish.documents:
            return []
        question = turn.question.content
        found = await asyncio.to_thread(self._assistant.documents.search, question, PASSAGES)
        if not found:
            writer.origin["nothing_found"] = True
            turn.log.add("nothing_found", {})
        return found

    async def _tools(self) -> list[dict[str, Any]]:
        if not self._wish.tools:
            return []
        offered = await self._assistant.tools.definitions()
        if self._wish.documents:  # they were searched already, and numbered
            offered = [t for t in offered if t["function"]["name"] != SEARCH_TOOL]
        return offered

    async def _prepare(
        self,
        turn: Turn,
        client: ModelClient,
        status: EngineStatus,
        passages: Sequence[Passage],
        tools: Sequence[dict[str, Any]],
    ) -> Prepared:
        from edgekit.assistant.documents.prompting import as_context

        async def complete(messages: Sequence[ChatMessage], limit: int) -> str:
            request = {"messages": list(messages), "max_tokens": limit, "temperature": 0}
            return await client.complete(request | {"chat_template_kwargs": NO_THINKING})

        question = turn.question.content
        named = await named_assistant(
            self._assistant, self._wish.assistant_id, turn.question.conversation_id
        )
        nothing = self._wish.documents and not passages
        system = "\n\n".join(
            [named.system_prompt if named else "", NOTHING_FOUND if nothing else ""]
        )
        path = await asyncio.to_thread(self._assistant.history.path_to, turn.question.id)
        compactor = Compactor(
            status.context_length, self._settings.max_tokens, client.count, complete
        )
        return await compactor.prepare(
            path, system, len(passages), lambda n: as_context(passages[:n], question), tools
        )

    def _tell_sources(
        self, turn: Turn, writer: AnswerWriter, passages: Sequence[Passage], prepared: Prepared
    ) -> None:
        writer.sources = numbered(passages[: prepared.passages])
        if writer.sources:
            turn.log.add("passages", writer.sources)
        if prepared.compaction is not None:
            told = plain(prepared.compaction)
            writer.origin["compacted"] = told
            turn.log.add("compacted", told)

    async def _round(
        self,
        turn: Turn,
        writer: AnswerWriter,
        client: ModelClient,
        messages: Sequence[ChatMessage],
        tools: Sequence[dict[str, Any]],
    ) -> list[_Call]:
        """One answer of the model; returns the calls it makes."""
        calls: dict[int, _Call] = {}
        async for piece in client.stream(self._request(messages, tools)):
            if piece.queue is not None:
                turn.log.add("queue", {"position": piece.queue})
            if piece.thinking:
                writer.think(piece.thinking)
            if piece.text:
                writer.write(piece.text)
            for part in piece.calls:
                call = calls.setdefault(part.index, _Call())
                call.name = call.name or part.name
                call.arguments += part.arguments
            self._logprobs += piece.logprobs
            self._finish = piece.finish or self._finish
            self._measure(turn, writer, piece)
        return [calls[index] for index in sorted(calls)] if tools else []

    def _request(
        self, messages: Sequence[ChatMessage], tools: Sequence[dict[str, Any]]
    ) -> dict[str, Any]:
        settings = self._settings
        request: dict[str, Any] = {
            "messages": list(messages),
            "max_tokens": settings.max_tokens,
            "temperature": settings.temperature,
            "top_p": settings.top_p,
            "top_k": settings.top_k,
            "repetition_penalty": settings.repetition_penalty,
        }
        if tools:
            request["tools"] = list(tools)
        if self._wants_logprobs:
            request["logprobs"] = True
        return request

    def _measure(self, turn: Turn, writer: AnswerWriter, piece: Piece) -> None:
        """Take what the server measured; its last two events bring it."""
        stats = writer.stats
        if piece.extras is not None:
            speed = float(piece.extras.get("tokens_per_second") or 0)
            stats["tokens_per_second"] = speed
            first = float(piece.extras.get("time_to_first_token") or 0)
            stats.setdefault("time_to_first_token", first)  # of the first round
        if piece.usage is not None:
            writer.flush()
            done = int(piece.usage.get("completion_tokens") or 0)
            stats["prompt_tokens"] = int(piece.usage.get("prompt_tokens") or 0)
            stats["completion_tokens"] = stats.get("completion_tokens", 0) + done
            turn.log.add("stats", dict(stats))

    async def _call(
        self, turn: Turn, writer: AnswerWriter, call: _Call, number: int
    ) -> dict[str, Any]:
        """Call a tool for the model, with a person's consent where that is needed."""
        tools = self._assistant.tools
        info = tools.describe(call.name)
        parsed = parse_arguments(call.arguments)
        record: dict[str, Any] = {
            "call_id": f"call_{secrets.token_hex(8)}",
            "name": call.name[:200],
            "server": info.server if info else "",
            "arguments": {} if isinstance(parsed, str) else parsed,
            "round": number,
        }
        writer.tool_calls.append(record)
        wrong = tools.check(call.name, call.arguments)
        asks = wrong is None and tools.needs_consent(call.name)
        writer.flush()
        turn.log.add("tool", {key: record[key] for key in TOLD} | {"consent": asks})
        consent = await turn.consent(record["call_id"]) if asks else ""
        if wrong is not None:
            result = wrong
        elif consent == "deny":
            record |= {"text": f"the person did not allow {call.name}", "error": True}
            result = None
        else:
            result = await tools.call(call.name, call.arguments, consent)
        if result is not None:
            record |= {"text": result.text, "error": result.is_error}
            if result.passages and not self._wish.documents:
                writer.sources = numbered(result.passages)
                turn.log.add("passages", writer.sources)
        turn.log.add("tool_result", {key: record[key] for key in ("call_id", "text", "error")})
        return record

    def _suggest(self, turn: Turn, writer: AnswerWriter, status: EngineStatus) -> None:
        """Say that a larger model may do better, where there is one to ask."""
        if not self._wants_logprobs or self._assistant.policy.refuses_cloud():
            return
        mean = sum(self._logprobs) / len(self._logprobs) if self._logprobs else None
        code = hard_for_small_model(
            mean,
            int(writer.stats.get("prompt_tokens", 0)),
            status.context_length,
            "length" if self._finish == "length" else "complete",
            writer.text,
        )
        if code:
            writer.origin["suggestion"] = code
            turn.log.add("suggestion", {"code": code})


TOLD = ("call_id", "name", "server", "arguments")
NO_THINKING = {"enable_thinking": False}


def origin_of(status: EngineStatus) -> dict[str, Any]:
    """Where an answer is made, as it is stored with it."""
    return {
        "device": status.device,
        "engine": status.runtime,
        "pack": status.pack.name if status.pack else "",
        "target": f"{status.runtime}-{status.device.lower()}" if status.runtime else "",
    }


async def named_assistant(
    assistant: Assistant, wished: str | None, conversation_id: str
) -> NamedAssistant | None:
    """The named assistant that is asked: the one wished for, else the conversation's."""
    if wished is None:
        conversation = await asyncio.to_thread(assistant.history.conversation, conversation_id)
        wished = conversation.assistant_id
    return assistant.library.assistants.find(wished)


def numbered(passages: Sequence[Any]) -> list[dict[str, Any]]:
    """Passages as the page shows them, numbered as the model cites them."""
    return [
        {
            "n": number, "id": p.id, "file": PurePath(p.file).name, "page": p.page,
            "heading": p.heading, "text": p.text, "why": p.why,
        }
        for number, p in enumerate(passages, 1)
    ]  # fmt: skip


def _short(call: dict[str, Any], limit: int) -> dict[str, Any]:
    """A call whose result leaves room in the context; what is shown to the person stays whole."""
    text = call["text"]
    if not limit or len(text) <= limit:
        return call
    return {**call, "text": f"{text[:limit]}\n… (cut: {len(text)} characters)"}
