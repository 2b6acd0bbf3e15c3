"""An answer as it comes: text, thoughts and calls, then what it cost.

:meth:`Answerer.open` turns a question into tokens in a thread of its own, so that a long one does
not hold up the others, submits it and waits until the engine took it, refused it or put it into the
queue. What the answer consists of then comes from :meth:`Answer.parts`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Literal, TypeVar

from edgekit.errors import BadInputError
from edgekit.runtimes.batching import Job, Produced
from edgekit.runtimes.engine import Sampling
from edgekit.runtimes.streaming import TokenStream
from edgekit.server.errors import ApiError
from edgekit.server.prompts import Prompt, Prompter
from edgekit.server.question import Question
from edgekit.server.scheduler import Scheduler
from edgekit.server.thinking import ThinkingSplitter
from edgekit.server.tickets import Event, Failed, Queued, Restarted, Ticket, Tokens
from edgekit.server.tool_calls import CallArguments, CallBegin, CallEnd, Piece, ToolReader, Words

LOWEST = -9999.0  # stands for minus infinity, which JSON does not have
T = TypeVar("T")


@dataclass(frozen=True)
class Alternative:
    """A token and how probable it was; natural logarithm."""

    text: str
    logprob: float


@dataclass(frozen=True)
class Logprob:
    """A token of the answer and the most probable ones in its place."""

    text: str
    logprob: float
    top: tuple[Alternative, ...]


@dataclass(frozen=True)
class Waiting:
    """The request waits for its turn; 1 is next."""

    position: int


@dataclass(frozen=True)
class Text:
    """A piece of the answer."""

    text: str
    logprobs: tuple[Logprob, ...] = ()


@dataclass(frozen=True)
class Thought:
    """A piece of what the model thinks before it answers."""

    text: str


@dataclass(frozen=True)
class Call:
    """A call begins; ``index`` counts the calls of the answer."""

    index: int
    id: str
    name: str


@dataclass(frozen=True)
class Arguments:
    """A piece of the arguments of call ``index``, JSON."""

    index: int
    text: str


@dataclass(frozen=True)
class Again:
    """The answer begins anew: forget every part so far."""


Part = Waiting | Text | Thought | Call | Arguments | Again


@dataclass
class Usage:
    """Tokens and times (seconds) of an answer."""

    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    reasoning_tokens: int = 0
    time_to_first_token: float = 0.0
    tokens_per_second: float = 0.0
    queue_position: int = 0  # when it came; 0 did not wait


@dataclass
class Whole:
    """A finished answer."""

    text: str = ""
    thought: str = ""
    calls: list[tuple[str, str, str]] = field(default_factory=list)  # id, name, arguments
    logprobs: list[Logprob] = field(default_factory=list)


class Answer:
    """One answer under way. ``finish``, ``stop`` and ``usage`` hold once its parts have ended."""

    def __init__(
        self, scheduler: Scheduler, ticket: Ticket, prompt: Prompt, prompter: Prompter, limit: int
    ) -> None:
        self.finish: Literal["stop", "length", "tool_calls"] = "stop"
        self.stop: str | None = None  # the stop string that ended it
        self.usage = Usage(prompt_tokens=len(prompt.tokens))
        self._scheduler, self._ticket = scheduler, ticket
        self._prompt, self._prompter, self._limit = prompt, prompter, limit
        self._first: Event | None = None
        self._reset()

    def _reset(self) -> None:
        sampling, reading = self._ticket.job.sampling, self._prompt.reading
        ends = self._prompter.tokenizer.end_tokens
        self._stream = TokenStream(self._prompter.shown, ends, sampling.stop)
        self._splitter = ThinkingSplitter(reading.inside) if reading.thoughts else None
        self._reader = ToolReader(reading.tools, reading.names) if reading.tools else None
        self._tokens: list[int] = []
        self._reasoning = 0
        self._logprobs: list[Logprob] = []
        self._calls = 0
        self._complete = False  # everything that is wanted is there
        self._called = False  # that is the one call that may be made

    async def begun(self) -> None:
        """Wait until the engine took it or it has a place in the queue.

        Raises:
            EdgekitError, ApiError: it gets no answer.
        """
        self._first = await self._ticket.events.get()
        if isinstance(self._first, Failed):
            raise self._first.error

    async def parts(self) -> AsyncIterator[Part]:
        """The answer's parts; to stop early call :meth:`close`.

        Raises:
            EdgekitError, ApiError: the engine or the server ended it.
        """
        if self._first is not None:
            for part in self._parts_of(self._first):
                yield part
        async for event in self._ticket.read():
            if isinstance(event, Failed):
                raise event.error
            for part in self._parts_of(event):
                yield part
            if self._complete:
                break
        self._scheduler.cancel(self._ticket, complete=True)
        for part in self._ending():
            yield part
        self._sum_up()

    async def whole(self) -> Whole:
        """Everything at once.

        Raises:
            EdgekitError, ApiError: the engine or the server ended it.
        """
        whole = Whole()
        async for part in self.parts():
            match part:
                case Text(text, logprobs):
                    whole.text += text
                    whole.logprobs += logprobs
                case Thought(text):
                    whole.thought += text
                case Call(_, call_id, name):
                    whole.calls.append((call_id, name, ""))
                case Arguments(index, text):
                    call_id, name, before = whole.calls[index]
                    whole.calls[index] = (call_id, name, before + text)
                case Again():
                    whole = Whole()
        return whole

    def close(self) -> None:
        """Stop the engine, where it still works on this."""
        self._scheduler.cancel(self._ticket)

    def _parts_of(self, event: Event) -> list[Part]:
        match event:
            case Queued(position):
                self.usage.queue_position = self.usage.queue_position or position
                return [Waiting(position)]
            case Restarted():
                self._reset()
                return [Again()]
            case Tokens(items):
                return [part for item in items if not self._complete for part in self._take(item)]
        return []

    def _take(self, item: Produced) -> list[Part]:
        """One token."""
        self._tokens.append(item.token)
        text = self._stream.push(item.token)
        if self._splitter is not None and self._splitter.thinking:
            self._reasoning += 1
        if item.logprob is not None and item.token not in self._prompter.tokenizer.end_tokens:
            self._logprobs.append(self._logprob(item))
        parts = self._separate(text)
        if self._splitter is not None and not self._splitter.answering:
            self._logprobs = []  # of the thought and its mark
        self._complete = self._stream.finished or self._called
        return parts

    def _separate(self, text: str) -> list[Part]:
        if not text:
            return []
        if self._splitter is None:
            return self._answered(text)
        parts: list[Part] = []
        for thought, piece in self._splitter.push(text):
            parts += [Thought(piece)] if thought else self._answered(piece)
        return parts

    def _answered(self, text: str) -> list[Part]:
        pieces: list[Piece] = [Words(text)] if self._reader is None else self._reader.push(text)
        return self._told(pieces)

    def _told(self, pieces: list[Piece]) -> list[Part]:
        parts: list[Part] = []
        for piece in pieces:
            if self._called:
                break
            match piece:
                case Words(text) if self._prompt.reading.words:
                    parts.append(Text(text, tuple(self._logprobs)))
                case CallBegin(name):
                    form = self._prompt.reading.tools
                    assert form is not None
                    parts.append(Call(self._calls, form.new_id(), name))
                    self._calls += 1
                case CallArguments(text):
                    parts.append(Arguments(self._calls - 1, text))
                case CallEnd():
                    self._called = self._prompt.reading.one_call
            self._logprobs = []
        return parts

    def _ending(self) -> list[Part]:
        """What was held back until the end."""
        parts = [] if self._stream.finished else self._separate(self._stream.flush())
        for thought, piece in self._splitter.flush() if self._splitter else ():
            parts += [Thought(piece)] if thought else self._answered(piece)
        if self._reader is not None:
            parts += self._told(self._reader.flush())
        return parts

    def _sum_up(self) -> None:
        ticket, last = self._ticket, self._tokens[-1:]
        ended = bool(self._prompter.tokenizer.end_tokens.intersection(last))
        if self._calls:
            self.finish = "tool_calls"
        elif not self._complete and not ended and len(self._tokens) >= self._limit:
            self.finish = "length"
        if self._stream.finished and not ended:
            self.stop = self._stop_string()
        self.usage.completion_tokens = len(self._tokens)
        self.usage.reasoning_tokens = self._reasoning
        self.usage.cached_tokens = ticket.cached_tokens
        self.usage.time_to_first_token = ticket.time_to_first_token
        self.usage.tokens_per_second = ticket.tokens_per_second

    def _stop_string(self) -> str | None:
        text = self._prompter.shown.decode(self._tokens)
        found = [(text.find(s), s) for s in self._ticket.job.sampling.stop if s and s in text]
        return min(found)[1] if found else None

    def _logprob(self, item: Produced) -> Logprob:
        def text(token: int) -> str:
            return self._prompter.tokenizer.decode([token], skip_special=False)

        top = tuple(Alternative(text(t), max(p, LOWEST)) for t, p in item.top)
        return Logprob(text(item.token), max(item.logprob or 0.0, LOWEST), top)


class Answerer:
    """Answers questions with the engine of a scheduler."""

    def __init__(self, scheduler: Scheduler) -> None:
        self.scheduler = scheduler
        self._prompter: Prompter | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="tokenizer")

    async def tokenize(self, work: Callable[[Prompter], T]) -> T:
        """Run ``work`` in the tokenizer's thread.

        Raises:
            ApiError: the model is not loaded (503).
        """
        engine = self.scheduler.loaded

        def run() -> T:
            if self._prompter is None:
                self._prompter = Prompter(engine.tokenizer)
            return work(self._prompter)

        return await asyncio.get_running_loop().run_in_executor(self._thread, run)

    async def open(self, question: Question, client: str, streaming: bool) -> Answer:
        """Begin to answer a question.

        Raises:
            EdgekitError, ApiError: it cannot be answered, or not now.
        """
        prompt = await self.tokenize(lambda prompter: prompter.prompt(question))
        return await self.open_prompt(
            prompt, question.sampling, client, streaming, question.top_logprobs
        )

    async def open_prompt(
        self,
        prompt: Prompt,
        sampling: Sampling,
        client: str,
        streaming: bool,
        top_logprobs: int | None = None,
    ) -> Answer:
        """Begin to continue a prompt.

        Raises:
            EdgekitError, ApiError: it cannot be continued, or not now.
        """
        room = self._room(prompt)
        job = Job(prompt.tokens, sampling, prompt.grammar, top_logprobs)
        ticket = self.scheduler.submit(job, client, replayable=not streaming)
        assert self._prompter is not None
        limit = min(room, sampling.max_tokens)
        answer = Answer(self.scheduler, ticket, prompt, self._prompter, limit)
        try:
            await answer.begun()
        except BaseException:  # a client that went away as well
            answer.close()
            raise
        return answer

    def close(self) -> None:
        """Let the thread go."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _room(self, prompt: Prompt) -> int:
        """Tokens that an answer may have."""
        context = self.scheduler.loaded.context_length
        if not prompt.tokens:
            raise BadInputError("the prompt is empty; ask something")
        if len(prompt.tokens) >= context:
            raise ApiError(
                400, "context_length_exceeded",
                f"the prompt has {len(prompt.tokens)} tokens but the model's context is {context}; "
                "shorten it or begin a new conversation",
            )  # fmt: skip
        return context - len(prompt.tokens)
