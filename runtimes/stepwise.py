"""Answers computed token by token under our own sampler: every logit is at hand.

That is what grammars by llguidance, the log-probabilities of other tokens than the chosen one, and
penalties need where a runtime's own loop does not offer them. Several answers advance in turn over
one model, each with a cache of its own, a token or a piece of a prompt per step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from edgekit.errors import BadInputError
from edgekit.runtimes.answers import bounded_tokens
from edgekit.runtimes.batching import Job, Produced
from edgekit.runtimes.engine import Sampling
from edgekit.runtimes.guidance import GrammarCompiler, Guide
from edgekit.runtimes.sampler import Sampler

PIECE = 256  # tokens of a prompt per step, so that one long prompt does not stop the others


class Text(Protocol):
    """A text that grows on one model, with its cache."""

    def feed(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """Append tokens; logits [V] after the last.

        Raises:
            MissingRuntimeError: the device failed.
        """

    def close(self) -> None:
        """Free the cache."""


class Stepper(Protocol):
    """A loaded model."""

    def open(self, tokens: int) -> Text:
        """An empty text that may grow to ``tokens``."""

    def close(self) -> None:
        """Free the model."""


class StepwiseRun:
    """An answer under way; it has no cache until it is its turn.

    ``most_tokens`` are those of its prompt and the longest answer.
    """

    cached_tokens = 0

    def __init__(self, job: Job, limit: int, ends: frozenset[int], guide: Guide | None) -> None:
        self._job, self._limit = job, limit
        # under a grammar an end token is all that can follow when the answer is complete
        self._ends = ends if guide or not job.sampling.ignore_end else frozenset[int]()
        self._guide = guide
        self._sampler = Sampler(job.sampling, job.prompt, job.top_logprobs)
        self.most_tokens = len(job.prompt) + limit
        self._text: Text | None = None
        self._fed = 0
        self._answer: list[int] = []
        self._unread: list[Produced] = []
        self.done = False

    def read(self) -> list[Produced]:
        """What came since the last call."""
        unread, self._unread = self._unread, []
        return unread

    def cancel(self) -> None:
        """Stop it and free its cache."""
        self.done = True
        if self._text is not None:
            self._text.close()
            self._text = None

    def advance(self, stepper: Stepper) -> None:
        """Feed a piece of the prompt or the last token; choose the next token if one is due."""
        if self._text is None:
            self._text = stepper.open(self.most_tokens)
        tokens = self._job.prompt[self._fed : self._fed + PIECE] or self._answer[-1:]
        logits = self._text.feed(tokens)
        self._fed += len(tokens)
        if self._fed >= len(self._job.prompt):
            self._take(logits)

    def _take(self, logits: NDArray[np.float32]) -> None:
        try:
            allowed = self._guide.allowed() if self._guide else None
        except BadInputError:  # its grammar outgrew llguidance's limits: the others shall go on
            self.cancel()
            return
        chosen = self._sampler.choose(logits, allowed)
        self._answer.append(chosen.token)
        self._unread.append(chosen)
        if self._guide:
            self._guide.accept(chosen.token)
        if chosen.token in self._ends or len(self._answer) == self._limit:
            self.cancel()


class StepwiseLoop:
    """Advances answers over one model in turn; those without room wait in order.

    At most ``slots`` answers advance, and no more than have room in ``cache_tokens`` (though one
    always does). ``grammars`` makes the compiler at the first grammar.
    """

    def __init__(
        self,
        stepper: Stepper,
        end_tokens: frozenset[int],
        grammars: Callable[[], GrammarCompiler],
        context_length: int,
        slots: int,
        cache_tokens: int,
    ) -> None:
        self._stepper, self._end_tokens = stepper, end_tokens
        self._grammars = grammars
        self._compiler: GrammarCompiler | None = None
        self._context_length, self._slots = context_length, slots
        self._cache_tokens = cache_tokens
        self._runs: list[StepwiseRun] = []

    def start(self, job: Job) -> StepwiseRun:
        """Begin an answer.

        Raises:
            BadInputError: the prompt is empty or too long, or the grammar cannot be followed.
        """
        limit = bounded_tokens(len(job.prompt), job.sampling, self._context_length)
        guide = None
        if job.grammar is not None:
            self._compiler = self._compiler or self._grammars()
            guide = self._compiler.guide(job.grammar)
        run = StepwiseRun(job, limit, self._end_tokens, guide)
        self._runs.append(run)
        return run

    def step(self) -> None:
        """Advance the answers that have room.

        Raises:
            MissingRuntimeError: the device failed.
        """
        self._runs = [run for run in self._runs if not run.done]
        room = self._cache_tokens
        for number, run in enumerate(self._runs[: self._slots]):
            room -= run.most_tokens
            if room < 0 and number > 0:
                break
            run.advance(self._stepper)

    def close(self) -> None:
        """Free the caches and the model."""
        for run in self._runs:
            run.cancel()
        self._stepper.close()


def stepwise_tokens(
    stepper: Stepper, prompt: Sequence[int], sampling: Sampling, end_tokens: frozenset[int]
) -> Iterator[int]:
    """The tokens of one answer of at most ``sampling.max_tokens``."""
    run = StepwiseRun(Job(tuple(prompt), sampling), sampling.max_tokens, end_tokens, None)
    try:
        while not run.done:
            run.advance(stepper)
            yield from (produced.token for produced in run.read())
    finally:
        run.cancel()
