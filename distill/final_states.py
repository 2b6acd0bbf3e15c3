"""What a model's head reads, for many sequences: of a model in memory, or of one layer after
another, with the hidden states on disk between them."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from edgekit.atomic import disk_errors
from edgekit.distill.chunks import Text
from edgekit.distill.collect import PassOptions
from edgekit.distill.layerwise import Layerwise
from edgekit.distill.open_model import OpenModel
from edgekit.distill.pass_memory import SHARE, batch_bytes, free_memory, weight_needs
from edgekit.distill.streamed import StoredStates, first_layer
from edgekit.memory import require_disk, require_memory
from edgekit.plan import BASE_MEMORY
from edgekit.progress import Task
from edgekit.sequences import TokenSequence

FLOAT32_BYTES = 4


def final_states(
    opened: OpenModel,
    groups: Sequence[Sequence[TokenSequence]],
    running: PassOptions,
    scratch: Path,
    task: Task,
) -> Iterator[list[Tensor]]:
    """For each group of sequences, what the head reads: [T, H] of each sequence.

    ``opened`` is not loaded yet; afterwards its head is. ``scratch`` keeps the states between two
    layers, and an interrupted pass over the same groups continues with the layer that it was in.

    Raises:
        OutOfResourcesError: memory or disk are too small.
    """
    text = _text(groups)
    if _streams(opened, text, running, scratch):
        yield from _streamed(opened, text, scratch, task)
    else:
        yield from _whole(opened, text, task)


def _text(groups: Sequence[Sequence[TokenSequence]]) -> Text:
    sequences = [sequence for group in groups for sequence in group]
    bounds, begin = [], 0
    for group in groups:
        bounds.append((begin, begin + len(group)))
        begin += len(group)
    return Text.of(sequences, bounds)


def _streams(opened: OpenModel, text: Text, running: PassOptions, scratch: Path) -> bool:
    """Whether to stream; refuses what will not fit."""
    weights = weight_needs(opened)
    batch = batch_bytes(opened.architecture, text)
    whole = BASE_MEMORY + weights.whole + batch
    streamed = BASE_MEMORY + max(weights.largest_layer, weights.rest) + batch
    tokens = sum(len(s.tokens) for s in text.sequences)
    disk = 2 * tokens * opened.architecture.hidden_size * FLOAT32_BYTES
    stream = running.mode == "streamed" or (
        running.mode == "auto" and whole > SHARE * free_memory(opened.device)
    )
    what = f"{opened.path}: running the {'streamed' if stream else 'whole'} teacher"
    if opened.device.type == "cpu":
        require_memory(streamed if stream else whole, what, running.force)
    if stream and not running.force:
        require_disk(scratch, disk, what)
    return stream


@torch.inference_mode()
def _whole(opened: OpenModel, text: Text, task: Task) -> Iterator[list[Tensor]]:
    opened.load()
    for chunk in range(len(text.chunks)):
        found: list[Tensor] = []
        for ids, _ in text.batches(chunk):
            states = opened.decoder(input_ids=ids.to(opened.device), use_cache=False)
            found += list(states.last_hidden_state)
            task.advance(ids.numel())
        yield found


@torch.inference_mode()
def _streamed(opened: OpenModel, text: Text, scratch: Path, task: Task) -> Iterator[list[Tensor]]:
    with disk_errors(scratch):
        scratch.mkdir(parents=True, exist_ok=True)
    chunks = range(len(text.chunks))
    states = StoredStates(scratch, text, chunks, opened)
    layerwise = Layerwise(opened)
    last = len(opened.layers)
    first = first_layer(layerwise, states, text, chunks)
    task.advance(sum(map(text.size, chunks)) * first / last)
    for layer in range(first, last):
        states.begin(layer + 1)
        opened.load_layer(layer)
        for chunk in chunks:
            results = [
                layerwise.run(layer, states.read(layer, chunk, begin, ids))
                for begin, ids in _placed(text, chunk)
            ]
            states.write(layer + 1, chunk, results)
            task.advance(text.size(chunk) / last)
        opened.drop_layer(layer)
        states.finish(layer + 1)
    opened.load_rest()
    for chunk in chunks:
        yield [
            row
            for begin, ids in _placed(text, chunk)
            for row in layerwise.normed(states.read(last, chunk, begin, ids))
        ]
    shutil.rmtree(scratch)


def _placed(text: Text, chunk: int) -> Iterator[tuple[int, Tensor]]:
    """The batches of a chunk with the place of their first token in it."""
    begin = 0
    for ids, _ in text.batches(chunk):
        yield begin, ids
        begin += ids.numel()
