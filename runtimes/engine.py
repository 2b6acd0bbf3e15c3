"""The engine interface: a loaded variant on a device that turns messages into tokens.

Engines are made by :func:`load_engine`; both runtimes share the tokenizer and chat template of
:mod:`edgekit.text`, so a prompt is the same token ids whichever runtime runs it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol, TypedDict

import numpy as np
from numpy.typing import NDArray

from edgekit.errors import BadInputError
from edgekit.text import ChatTokenizer


class Message(TypedDict):
    """One turn of a conversation."""

    role: Literal["system", "user", "assistant"]
    content: str


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen.

    ``temperature`` 0 is greedy. ``top_k`` 0 and ``top_p`` 1 switch the filter off.
    ``repetition_penalty`` 1 is none; ``presence_penalty`` and ``frequency_penalty`` 0 are none.
    ``seed`` makes sampling repeatable on one engine.
    ``stop`` strings end the answer and are not part of it.
    """

    max_tokens: int = 512
    temperature: float = 0.7
    top_p: float = 0.9
    top_k: int = 40
    repetition_penalty: float = 1.1
    seed: int | None = None
    stop: tuple[str, ...] = ()
    ignore_end: bool = False  # go on past end tokens, to measure speed
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0

    def __post_init__(self) -> None:
        limits: dict[str, tuple[float, float]] = {
            "max_tokens": (1, 1 << 20),
            "temperature": (0.0, 5.0),
            "top_p": (1e-6, 1.0),
            "top_k": (0, 1 << 20),
            "repetition_penalty": (0.1, 10.0),
            "presence_penalty": (-2.0, 2.0),
            "frequency_penalty": (-2.0, 2.0),
        }
        for name, (low, high) in limits.items():
            value = getattr(self, name)
            if not low <= value <= high:  # also refuses NaN
                raise BadInputError(f"{name} is {value}; choose a value from {low} to {high}")


@dataclass
class Stats:
    """What one answer cost; times in seconds."""

    prompt_tokens: int = 0
    generated_tokens: int = 0
    time_to_first_token: float = 0.0
    decode_seconds: float = 0.0  # from the first token to the last
    peak_memory_bytes: int = 0  # of the process

    @property
    def tokens_per_second(self) -> float:
        """Decode rate after the first token; 0 when fewer than two tokens came."""
        if self.generated_tokens < 2 or self.decode_seconds <= 0:
            return 0.0
        return (self.generated_tokens - 1) / self.decode_seconds


@dataclass(frozen=True)
class TokenEvent:
    """A piece of the answer: ``text`` may be empty while a character is incomplete.

    The last event has ``finish`` "stop" (end token or stop string) or "length", and ``stats``.
    """

    text: str
    token: int = -1
    finish: Literal["", "stop", "length"] = ""
    stats: Stats = field(default_factory=Stats)


class LoadedModel(Protocol):
    """What every loaded model says of itself."""

    tokenizer: ChatTokenizer

    @property
    def runtime(self) -> str:
        """Either "openvino" or "onnx"."""

    @property
    def device(self) -> str:
        """The device that runs it, such as "CPU"."""

    @property
    def context_length(self) -> int:
        """Tokens of prompt and answer together."""

    def close(self) -> None:
        """Free the model."""


class Engine(LoadedModel, Protocol):
    """A loaded variant. Not thread safe; one answer at a time."""

    def generate(
        self, messages: Sequence[Message], sampling: Sampling = Sampling()
    ) -> Iterator[TokenEvent]:
        """Answer a conversation, token by token; closing the iterator stops the engine."""

    def generate_tokens(
        self, prompt: Sequence[int], sampling: Sampling = Sampling()
    ) -> Iterator[TokenEvent]:
        """Continue token ids."""

    def logits(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """Logits [len(tokens), vocab_size] of one sequence from position 0, without a cache."""

    def count_tokens(self, messages: Sequence[Message]) -> int:
        """Tokens of the rendered conversation."""


def load_engine(directory: Path, target: str = "openvino-cpu") -> Engine:
    """Load a compiled variant for ``target`` ("openvino-cpu", "openvino-gpu", "openvino-npu",
    "onnx-cpu", "onnx-dml").

    Raises:
        BadInputError: the directory has no graph for the target, or the target is unknown.
        MissingRuntimeError: the runtime or the device is not there.
    """
    runtime, _, device = target.partition("-")
    if runtime == "openvino" and device:
        from edgekit.runtimes.openvino_engine import OpenVINOEngine

        return OpenVINOEngine(directory, device.upper())
    if runtime == "onnx" and device:
        from edgekit.runtimes.onnx_engine import OnnxEngine

        return OnnxEngine(directory, device.upper())
    raise BadInputError(f"target {target!r} is not known; see `edgekit plan --rules`")
