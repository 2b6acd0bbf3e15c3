"""What any of the APIs asks, in one form."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from edgekit.runtimes.engine import Sampling

NO_PENALTY = 1.0


@dataclass(frozen=True)
class Function:
    """A function that the model may call; ``parameters`` is a JSON schema of an object."""

    name: str
    description: str = ""
    parameters: Mapping[str, Any] = field(default_factory=lambda: {"type": "object"})

    @property
    def definition(self) -> dict[str, Any]:
        """As OpenAI writes it, which is what chat templates take."""
        function: dict[str, Any] = {"name": self.name, "description": self.description}
        return {"type": "function", "function": {**function, "parameters": dict(self.parameters)}}


@dataclass(frozen=True)
class ToolChoice:
    """Whether functions may, must or must not be called; ``name`` is the one that must."""

    mode: Literal["auto", "none", "required"] = "auto"
    name: str = ""
    parallel: bool = True  # more than one call in an answer


@dataclass(frozen=True)
class Question:
    """A conversation to answer.

    Attributes:
        messages: as chat templates take them; a call's arguments are an object, not text.
        schema: what the whole answer must look like, unless it is a call.
        top_logprobs: as in :class:`~edgekit.runtimes.batching.Job`.
        thinking: whether the model may think first; None leaves it to the chat template.
    """

    messages: tuple[dict[str, Any], ...]
    sampling: Sampling
    tools: tuple[Function, ...] = ()
    choice: ToolChoice = ToolChoice()
    schema: Mapping[str, Any] | None = None
    top_logprobs: int | None = None
    thinking: bool | None = None

    @property
    def callable(self) -> tuple[Function, ...]:
        """The functions that the answer may call."""
        if self.choice.mode == "none":
            return ()
        return tuple(t for t in self.tools if self.choice.name in ("", t.name))


def sampling(
    *,
    max_tokens: int,
    temperature: float | None = None,
    top_p: float | None = None,
    top_k: int | None = None,
    repetition_penalty: float | None = None,
    presence_penalty: float | None = None,
    frequency_penalty: float | None = None,
    seed: int | None = None,
    stop: tuple[str, ...] = (),
    exact: bool = False,
) -> Sampling:
    """Sampling with edgekit's defaults for what a request leaves open.

    ``exact``: JSON or calls are asked for, which repeat their own punctuation and the words of the
    conversation, so that nothing is penalised for coming again. Nor is it twice, where the request
    has penalties of its own.
    """
    default = Sampling()
    penalties = presence_penalty is not None or frequency_penalty is not None
    usual = NO_PENALTY if exact or penalties else default.repetition_penalty
    return Sampling(
        max_tokens=max_tokens,
        temperature=default.temperature if temperature is None else temperature,
        top_p=default.top_p if top_p is None else max(top_p, 1e-6),  # 0 means the first token
        top_k=default.top_k if top_k is None else top_k,
        repetition_penalty=usual if repetition_penalty is None else repetition_penalty,
        seed=None if seed is None else seed % (1 << 31),
        stop=stop,
        presence_penalty=presence_penalty or 0.0,
        frequency_penalty=frequency_penalty or 0.0,
    )
