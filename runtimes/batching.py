"""Many answers at once on one model: what the server asks of a runtime.

The server's engine thread owns a :class:`BatchEngine`: it starts jobs while there is room, calls
``step`` until nothing runs, and reads from every run what came. Nothing here is thread safe.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from edgekit.runtimes.engine import LoadedModel, Sampling


@dataclass(frozen=True)
class Tag:
    """A part of an answer between two literal texts that is JSON of ``schema``: a tool call."""

    begin: str
    schema: Mapping[str, Any]
    end: str


@dataclass(frozen=True)
class Grammar:
    """What an answer must look like; exactly one of the two is given.

    ``schema``: the whole answer is JSON of this schema (``{"type": "object"}`` for any object),
    followed to the letter or refused; schemas of tags are followed in their structure.
    ``tags``: with ``required`` the answer is one or more of these tags and nothing else (just one
    when ``single``); without it the answer is free text in which a tag, once begun, is completed.
    """

    schema: Mapping[str, Any] | None = None
    tags: tuple[Tag, ...] = ()
    required: bool = False
    single: bool = False


@dataclass(frozen=True)
class Job:
    """One answer to compute.

    ``prompt`` are token ids. ``top_logprobs`` None computes no log-probabilities, 0 that of the
    chosen token, N those of the N most probable tokens as well.
    """

    prompt: tuple[int, ...]
    sampling: Sampling
    grammar: Grammar | None = None
    top_logprobs: int | None = None


@dataclass(frozen=True)
class Produced:
    """One token of an answer.

    ``logprob`` is the natural logarithm of the model's own probability: the softmax of its logits
    before grammar, penalties, filters and temperature. ``top`` holds (token, logprob) pairs, most
    probable first.
    """

    token: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


class Run(Protocol):
    """An answer under way."""

    @property
    def done(self) -> bool:
        """No more tokens will come: an end token, the token limit, or cancelled."""

    @property
    def cached_tokens(self) -> int:
        """Tokens of the prompt that a cache already held; 0 where the runtime does not say."""

    def read(self) -> list[Produced]:
        """What came since the last call; end tokens included."""

    def cancel(self) -> None:
        """Stop it and free its memory; safe to call twice."""


class BatchEngine(LoadedModel, Protocol):
    """A loaded model that advances up to ``capacity`` answers together."""

    @property
    def capacity(self) -> int:
        """Answers that may run at the same time; 1 where the runtime cannot batch."""

    def start(self, job: Job) -> Run:
        """Begin an answer.

        Raises:
            BadInputError: the prompt is empty or too long, or the grammar cannot be followed.
        """

    def step(self) -> None:
        """Advance every run by a token or a piece of its prompt.

        Raises:
            MissingRuntimeError: the device failed; every run is lost and the engine is of no use.
        """
