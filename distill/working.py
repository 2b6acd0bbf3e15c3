"""How the gradient of a step is computed: it decides speed and memory, and no more than rounding of
the result."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict
from torch import nn
from torch.utils.checkpoint import checkpoint

Precision = Literal["float32", "bfloat16"]


class Working(BaseModel):
    """``threads`` are of a CPU; 0 leaves them as torch has them. ``tokens_per_second`` is what a
    trial measured, 0 where there was none."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    micro_batch_tokens: int
    precision: Precision = "float32"
    threads: int = 0
    tokens_per_second: float = 0.0

    @property
    def sentence(self) -> str:
        """For a person."""
        threads = f", threads: {self.threads}" if self.threads else ""
        return f"micro-batches of {self.micro_batch_tokens} tokens in {self.precision}{threads}"


@contextmanager
def using_threads(count: int) -> Iterator[None]:
    """Compute on so many threads for a while (0: as many as now)."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def recomputed(layers: Sequence[nn.Module]) -> Iterator[None]:
    """Keep the inputs of ``layers`` alone; the backward pass computes again what is inside."""

    def twice(forward: Any) -> Any:
        # nothing in a layer is random, so there is no state of a generator to put back
        def run(*arguments: Any, **options: Any) -> Any:
            return checkpoint(
                forward, *arguments, use_reentrant=False, preserve_rng_state=False, **options
            )

        return run

    for layer in layers:
        layer.forward = twice(layer.forward)
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward  # the class's own again
