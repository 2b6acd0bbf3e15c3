"""A model that was opened without its layers, made callable.

It is loaded whole where that takes less than half of the memory that is free; else a layer is read
when it runs, and only one is in memory. Many sequences go through each layer together
(:func:`head_inputs`), so that the checkpoint is read once for all of them.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from edgekit.atomic import disk_errors
from edgekit.distill.layerwise import Layerwise
from edgekit.distill.open_model import OpenModel
from edgekit.memory import available_memory
from edgekit.progress import Task
from edgekit.sequences import TokenSequence, stacked

FLOAT = 4  # bytes
IN_MEMORY = 1 << 28  # bytes of hidden states between two layers; more are in a file


@contextmanager
def resident(opened: OpenModel, streamed: bool = False) -> Iterator[None]:
    """Let ``opened.model`` be called; embedding, norm and head have to be loaded. Afterwards no
    layer is in memory. With ``streamed`` it is never loaded whole."""
    whole = not streamed and 2 * FLOAT * opened.architecture.parameters() < available_memory()
    for number, layer in enumerate(opened.layers):
        if whole:
            opened.load_layer(number)
        else:
            layer.forward = _reading(opened, number)
    try:
        yield
    finally:
        for number, layer in enumerate(opened.layers):
            vars(layer).pop("forward", None)
            opened.drop_layer(number)


def in_memory(opened: OpenModel) -> bool:
    """Whether all layers are loaded."""
    return not any(parameter.is_meta for parameter in opened.layers.parameters())


@torch.inference_mode()
def head_inputs(
    opened: OpenModel, groups: Sequence[Sequence[TokenSequence]], task: Task
) -> Iterator[list[Tensor]]:
    """For each group of sequences of one length what the head reads: [T, H] of each sequence.

    Layers that are not in memory are read once for all groups. ``task`` advances by tokens.

    Raises:
        OutOfResourcesError: the disk is too small for the hidden states.
    """
    if not in_memory(opened):
        yield from _layer_by_layer(opened, groups, task)
        return
    for group in groups:
        ids = torch.from_numpy(stacked(group)).to(opened.device)
        yield list(opened.decoder(input_ids=ids, use_cache=False).last_hidden_state)
        task.advance(ids.numel())


def _layer_by_layer(
    opened: OpenModel, groups: Sequence[Sequence[TokenSequence]], task: Task
) -> Iterator[list[Tensor]]:
    layerwise, layers = Layerwise(opened), range(len(opened.layers))
    numbers = range(len(groups))
    with tempfile.SpooledTemporaryFile(IN_MEMORY) as file:
        states = _States(opened, groups, file)
        for number, group in enumerate(groups):
            ids = torch.from_numpy(stacked(group)).to(opened.device)
            states.write(number, layerwise.embed(ids))
        for layer in layers:
            with _loaded(opened, layer):
                for number in numbers:
                    hidden = states.read(number)
                    states.write(number, layerwise.run(layer, hidden))
                    task.advance(hidden.shape[0] * hidden.shape[1] / len(layers))
        for number in numbers:
            yield list(layerwise.normed(states.read(number)))


class _States:
    """Hidden states of groups of sequences between two layers, float32 [B, T, H] each, in ``file``,
    which is in memory while they are few."""

    def __init__(
        self,
        opened: OpenModel,
        groups: Sequence[Sequence[TokenSequence]],
        file: tempfile.SpooledTemporaryFile[bytes],
    ) -> None:
        width = opened.architecture.hidden_size
        self._shapes = [(len(group), len(group[0].tokens), width) for group in groups]
        sizes = [FLOAT * int(np.prod(shape)) for shape in self._shapes]
        self._places = np.cumsum([0, *sizes]).tolist()
        self._device, self._dtype = opened.device, opened.dtype
        self._file = file

    def read(self, number: int) -> Tensor:
        """What the next layer reads of a group."""
        values = np.empty(self._shapes[number], np.float32)
        self._file.seek(self._places[number])
        self._file.readinto(values.data)
        return torch.from_numpy(values).to(self._device, self._dtype)

    def write(self, number: int, hidden: Tensor) -> None:
        """Keep what a layer made of a group, in the place of what it read."""
        with disk_errors(Path(tempfile.gettempdir())):
            self._file.seek(self._places[number])
            self._file.write(hidden.float().cpu().contiguous().numpy().data)


@contextmanager
def _loaded(opened: OpenModel, number: int) -> Iterator[None]:
    """Have a layer in memory, for a while if it is not there."""
    missing = any(parameter.is_meta for parameter in opened.layers[number].parameters())
    if missing:
        opened.load_layer(number)
    try:
        yield
    finally:
        if missing:
            opened.drop_layer(number)


def _reading(opened: OpenModel, number: int) -> Callable[..., Tensor]:
    """A layer's forward that reads its weights first."""
    forward = opened.layers[number].forward

    def read_and_run(*args: Any, **named: Any) -> Tensor:
        with _loaded(opened, number):
            result: Tensor = forward(*args, **named)
        return result

    return read_and_run
