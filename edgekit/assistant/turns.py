"""Answers under way: each is a task of its own that goes on when its page is closed.

:meth:`Turns.begin` stores the question and an empty answer, then starts the task. Its events are
in a log that can be read from any event on, also for a while after its end. However the task ends,
the answer is stored with what had come: "complete", "stopped" by the person (or the end of the
program), or "failed" with the reason, after which asking again makes a sibling.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from edgekit.assistant.answer import AnswerWriter, failure, shown
from edgekit.assistant.conversation import title_of
from edgekit.assistant.events import Log
from edgekit.assistant.refusals import RefusalError, not_found

if TYPE_CHECKING:
    from edgekit.assistant.history import Message
    from edgekit.assistant.history_records import State
    from edgekit.assistant.state import Assistant

MOST_RUNNING = 8
REMEMBERED = 64  # turns whose events can still be read after their end
LONGEST_QUESTION = 4 << 20  # characters
CONSENT_SECONDS = 1800.0
Consent = Literal["once", "always", "deny"]
Work = Callable[["Turn", AnswerWriter], Awaitable[None]]


@dataclass
class Turn:
    """One answer.

    Attributes:
        question: the message that is answered.
        answer: the message that is written.
        consents: calls that wait for a person's word.
    """

    id: str
    question: Message
    answer: Message
    log: Log = field(default_factory=Log)
    consents: dict[str, asyncio.Future[Consent]] = field(default_factory=dict)
    task: asyncio.Task[None] | None = None

    @property
    def running(self) -> bool:
        """Whether it is not over."""
        return self.task is not None and not self.task.done()

    async def consent(self, call_id: str) -> Consent:
        """Wait until a person has decided about a call; no decision is no consent."""
        future: asyncio.Future[Consent] = asyncio.get_running_loop().create_future()
        self.consents[call_id] = future
        try:
            return await asyncio.wait_for(future, CONSENT_SECONDS)
        except TimeoutError:
            return "deny"
        finally:
            del self.consents[call_id]


class Turns:
    """Every turn of this process."""

    def __init__(self, assistant: Assistant) -> None:
        self._assistant = assistant
        self._turns: dict[str, Turn] = {}

    async def ask(
        self, conversation_id: str, parent_id: str | None, text: str
    ) -> tuple[Message, bool]:
        """Store a question below ``parent_id``; with no text, the question is ``parent_id``.

        Returns the question, and whether it is new.

        Raises:
            RefusalError: it is empty, too long, or its place is not in this conversation.
        """
        history = self._assistant.history
        parent = await self._message(conversation_id, parent_id) if parent_id else None
        if not text.strip():
            if parent is None or parent.role != "user":
                raise RefusalError(400, "empty", "the message is empty; write something")
            return parent, False
        if len(text) > LONGEST_QUESTION:
            raise RefusalError(
                413, "too_large", "the message is too long; add it to your documents"
            )
        conversation = await asyncio.to_thread(history.conversation, conversation_id)
        question = await asyncio.to_thread(history.add, conversation_id, parent_id, "user", text)
        if not conversation.title:
            await asyncio.to_thread(history.update, conversation_id, title=title_of(text))
        return question, True

    async def question_of(self, conversation_id: str, answer_id: str) -> Message:
        """The question that an answer belongs to, to ask it again."""
        answer = await self._message(conversation_id, answer_id)
        if answer.parent_id is None:
            raise not_found("question")
        return await self._message(conversation_id, answer.parent_id)

    async def begin(self, question: Message, new: bool, origin: dict[str, Any], work: Work) -> Turn:
        """Start answering ``question``; ``work`` writes the answer.

        Raises:
            RefusalError: too many answers are being written.
        """
        if sum(turn.running for turn in self._turns.values()) >= MOST_RUNNING:
            raise RefusalError(
                429, "queue_full", "too many answers are being written; wait for one"
            )
        history = self._assistant.history
        answer = await asyncio.to_thread(
            history.add, question.conversation_id, question.id, "assistant", "",
            origin=origin, state="partial",
        )  # fmt: skip
        turn = Turn(secrets.token_hex(8), question, answer)
        self._turns[turn.id] = turn
        self._forget_old()
        turn.log.add(
            "begin",
            {
                "turn_id": turn.id,
                "user_message": shown(question) if new else None,
                "answer_id": answer.id,
            },
        )
        turn.task = asyncio.create_task(self._run(turn, work))
        await asyncio.sleep(0)  # a task that is cancelled before it began would store nothing
        return turn

    def find(self, turn_id: str) -> Turn:
        """A turn that runs or ended not long ago.

        Raises:
            RefusalError: there is none with this id.
        """
        turn = self._turns.get(turn_id)
        if turn is None:
            raise not_found("answer")
        return turn

    def running(self, conversation_id: str) -> list[Turn]:
        """The answers that are being written in a conversation."""
        return [
            t for t in self._turns.values()
            if t.running and t.answer.conversation_id == conversation_id
        ]  # fmt: skip

    def stop(self, turn_id: str) -> None:
        """End an answer where it is; one that ended already stays as it is."""
        turn = self.find(turn_id)
        if turn.task is not None:
            turn.task.cancel()

    def decide(self, call_id: str, consent: Consent) -> None:
        """A person's word about a tool call.

        Raises:
            RefusalError: nobody waits for it.
        """
        for turn in self._turns.values():
            future = turn.consents.get(call_id)
            if future is not None and not future.done():
                future.set_result(consent)
                return
        raise not_found("question about a tool")

    async def drop(self, conversation_id: str) -> None:
        """End what is being written in a conversation that is about to be deleted."""
        tasks = [t.task for t in self.running(conversation_id) if t.task]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    def hang_up(self) -> None:
        """Begin to end every answer, because the program ends."""
        for turn in self._turns.values():
            if turn.task is not None:
                turn.task.cancel()

    async def close(self) -> None:
        """End every answer and wait until it is stored."""
        self.hang_up()
        tasks = [t.task for t in self._turns.values() if t.running and t.task]
        if tasks:
            await asyncio.wait(tasks)

    async def _run(self, turn: Turn, work: Work) -> None:
        writer = AnswerWriter(self._assistant.history, turn.answer, turn.log)
        state: State = "complete"
        told = None
        try:
            await work(turn, writer)
        except asyncio.CancelledError:
            state = "stopped"
        except Exception as error:
            state, told = "failed", failure(error)
            writer.origin["error"] = told
        ending = asyncio.create_task(self._finish(turn, writer, state, told))
        while not ending.done():
            with contextlib.suppress(asyncio.CancelledError):  # stopped while it is stored
                await asyncio.wait([ending])

    async def _finish(
        self, turn: Turn, writer: AnswerWriter, state: State, told: dict[str, str] | None
    ) -> None:
        """Store the answer and tell the page how it ended."""
        try:
            stored = await writer.finish(state)
            if told is not None:
                turn.log.add("error", {**told, "message_id": stored.id})
            else:
                turn.log.add("done", {"message": shown(stored)})
        except Exception as error:
            turn.log.add("error", failure(error))
        finally:
            await writer.stop_saving()
            turn.log.close()

    async def _message(self, conversation_id: str, message_id: str) -> Message:
        path = await asyncio.to_thread(self._assistant.history.path_to, message_id)
        if not path or path[-1].conversation_id != conversation_id:
            raise not_found("message")
        return path[-1]

    def _forget_old(self) -> None:
        over = [t.id for t in self._turns.values() if not t.running and t.task is not None]
        for turn_id in over[: max(0, len(self._turns) - REMEMBERED)]:
            del self._turns[turn_id]
