"""One answer at a time behind the interface of many: the NPU, whose pipeline holds one."""

from __future__ import annotations

from collections.abc import Iterator

from edgekit.errors import BadInputError
from edgekit.runtimes.batching import Job, Produced
from edgekit.runtimes.engine import Engine, Sampling, TokenEvent


class SingleRun:
    """An answer that is pulled from the engine token by token."""

    cached_tokens = 0

    def __init__(self, events: Iterator[TokenEvent]) -> None:
        self._events = events
        self._unread: list[Produced] = []
        self.done = False

    def read(self) -> list[Produced]:
        """What came since the last call."""
        unread, self._unread = self._unread, []
        return unread

    def cancel(self) -> None:
        """Stop it."""
        self.done = True
        close = getattr(self._events, "close", None)
        if close is not None:
            close()

    def advance(self) -> None:
        """Wait for the next token."""
        event = next(self._events)
        if event.token >= 0:
            self._unread.append(Produced(event.token))
        self.done = bool(event.finish)


class SingleBatchEngine:
    """A :class:`~edgekit.runtimes.batching.BatchEngine` over an engine of one answer."""

    capacity = 1

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._runs: list[SingleRun] = []
        self.tokenizer = engine.tokenizer
        self.runtime, self.device = engine.runtime, engine.device
        self.context_length = engine.context_length

    def start(self, job: Job) -> SingleRun:
        """Begin an answer, which comes after those that were begun before it.

        Raises:
            BadInputError: the prompt does not fit, or the job needs logits.
        """
        if job.grammar is not None or job.top_logprobs is not None:
            raise BadInputError(
                f"{self.device}: this device gives no logits, so neither tools and JSON schemas "
                "with a fixed form nor log-probabilities work on it; choose openvino-cpu for them"
            )
        sampling = Sampling(**{**vars(job.sampling), "stop": ()})  # the caller looks for these
        run = SingleRun(self._engine.generate_tokens(job.prompt, sampling))
        self._runs.append(run)
        return run

    def step(self) -> None:
        """Advance the oldest answer by a token.

        Raises:
            MissingRuntimeError: the device failed.
        """
        self._runs = [run for run in self._runs if not run.done]
        if self._runs:
            self._runs[0].advance()

    def close(self) -> None:
        """Free the model."""
        for run in self._runs:
            run.cancel()
        self._engine.close()
