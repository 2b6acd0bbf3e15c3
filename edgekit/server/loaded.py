"""What is known of an engine once it is loaded."""

from __future__ import annotations

from dataclasses import dataclass

from edgekit.runtimes.batching import BatchEngine
from edgekit.text import ChatTokenizer


@dataclass(frozen=True)
class Loaded:
    """An engine's properties; nobody but its own thread touches the engine itself."""

    tokenizer: ChatTokenizer
    runtime: str
    device: str
    context_length: int
    capacity: int

    @classmethod
    def of(cls, engine: BatchEngine) -> Loaded:
        """The properties of ``engine``, read in its thread."""
        return cls(
            engine.tokenizer,
            engine.runtime,
            engine.device,
            engine.context_length,
            engine.capacity,
        )
