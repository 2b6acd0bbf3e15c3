"""Hidden states of a text between two layers of a model, kept on disk.

So a model of any size runs over a text a layer at a time, and a layer may be run more than once
before the text goes on to the next. The decoder prepares masks and positions as ever; it runs with
one layer in place, which is given the stored states, while all others are passed through. Memory:
a layer, embedding and head, and the activations of one batch. Disk: tokens times hidden size times
four bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from edgekit.atomic import disk_errors
from edgekit.distill.open_model import OpenModel
from edgekit.progress import Task
from edgekit.sequences import TokenSequence, equal_length_runs, stacked

BATCH_TOKENS = 1024
FLOAT = 4  # bytes


class LayerStates:
    """The states of ``sequences`` before the next layer of ``opened``, at first the embeddings.

    Embedding, norm and head of ``opened`` have to be loaded. As a context manager it removes its
    file at the end.
    """

    def __init__(self, opened: OpenModel, sequences: Sequence[TokenSequence], path: Path) -> None:
        self.opened = opened
        self.sequences = sequences
        self.tokens = sum(len(s.tokens) for s in sequences)
        self._width = opened.architecture.hidden_size
        self._path = path
        with disk_errors(path):
            self._file = path.open("w+b")

    def __enter__(self) -> LayerStates:
        for ids, first in self._batches():
            seen: list[Tensor] = []

            def embedded(hidden: Tensor, *_: Any, out: list[Tensor] = seen, **__: Any) -> Tensor:
                out.append(hidden)
                return hidden

            self._decode(0, embedded, ids)
            self._write(first, seen[0])
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        self._path.unlink(missing_ok=True)

    def run(self, number: int, task: Task, *, keep: bool) -> None:
        """Run layer ``number`` over all text; with ``keep`` its results become the states."""
        forward = self.opened.layers[number].forward
        for ids, first in self._batches():
            hidden = self._read(first, ids)
            result: list[Tensor] = []

            def stored(
                _: Tensor, *args: Any, x: Tensor = hidden, out: list[Tensor] = result, **named: Any
            ) -> Tensor:
                out.append(forward(x, *args, **named))
                return out[0]

            self._decode(number, stored, ids)
            if keep:
                self._write(first, result[0])
            task.advance(ids.numel())

    @torch.inference_mode()
    def logits(self) -> Tensor:
        """What the head says of the states of the first sequence: float32 [T, V]."""
        ids = torch.from_numpy(stacked(self.sequences[:1])).to(self.opened.device)
        states = self._read(0, ids)
        with _in_place(self.opened.layers, 0, lambda *_, **__: states):
            found: Tensor = self.opened.model(input_ids=ids, use_cache=False).logits[0]
        return found.float().cpu()

    @torch.inference_mode()
    def _decode(self, number: int, forward: Callable[..., Tensor], ids: Tensor) -> None:
        with _in_place(self.opened.layers, number, forward):
            self.opened.decoder(input_ids=ids, use_cache=False)

    def _batches(self) -> Iterator[tuple[Tensor, int]]:
        """Token ids [B, T] and the number of the first of them in the text."""
        first = 0
        for begin, end in equal_length_runs(self.sequences, BATCH_TOKENS):
            ids = torch.from_numpy(stacked(self.sequences[begin:end])).to(self.opened.device)
            yield ids, first
            first += ids.numel()

    def _read(self, first: int, ids: Tensor) -> Tensor:
        self._file.seek(first * self._width * FLOAT)
        values = np.fromfile(self._file, np.float32, ids.numel() * self._width)
        states = torch.from_numpy(values).reshape(*ids.shape, self._width)
        return states.to(self.opened.device, self.opened.dtype)

    def _write(self, first: int, states: Tensor) -> None:
        with disk_errors(self._path):
            self._file.seek(first * self._width * FLOAT)
            self._file.write(states.float().cpu().numpy().tobytes())
            self._file.flush()  # numpy reads beside the buffer


@contextmanager
def _in_place(layers: nn.ModuleList, number: int, forward: Callable[..., Tensor]) -> Iterator[None]:
    """Run ``forward`` in the place of one layer and pass the states through all others."""
    for index, layer in enumerate(layers):
        layer.forward = forward if index == number else _through
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


def _through(hidden_states: Tensor, *_: Any, **__: Any) -> Tensor:
    return hidden_states
