"""What a model's head reads, for many sequences: of a model in memory, or of one layer after
another, with the hidden states on disk between them."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from edgekit.atomic import disk_errors, write_json
from edgekit.checkpoint import read_json
from edgekit.distill.chunks import Text, not_finite
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
GROUPS = "groups.json"  # whose states a directory has
Groups = Mapping[str, Sequence[TokenSequence]]  # sequences by the name of their group


def final_states(
    opened: OpenModel,
    groups: Groups,
    wanted: Sequence[str],
    running: PassOptions,
    scratch: Path,
    task: Task,
) -> Iterator[tuple[str, list[Tensor]]]:
    """For each of the ``groups`` that is ``wanted``, what the head reads: [T, H] of each sequence.

    ``opened`` is not loaded yet; afterwards its head is. ``scratch``, which is for these groups
    alone, keeps the states between two layers until the caller removes it. An interrupted pass
    continues with the layer that it was in, though fewer groups may be wanted by then.

    Raises:
        BadInputError: a layer gives values that are not finite.
        OutOfResourcesError: memory or disk are too small.
    """
    chosen = {name: groups[name] for name in wanted}
    if _streams(opened, _text(chosen), running, scratch):
        yield from _streamed(opened, groups, wanted, scratch, task)
    else:
        yield from zip(wanted, _whole(opened, _text(chosen), task), strict=True)


def _text(groups: Groups) -> Text:
    sequences = [sequence for group in groups.values() for sequence in group]
    bounds, begin = [], 0
    for group in groups.values():
        bounds.append((begin, begin + len(group)))
        begin += len(group)
    return Text.of(sequences, bounds)


def _streams(opened: OpenModel, text: Text, running: PassOptions, scratch: Path) -> bool:
    """Whether to stream; refuses what will not fit."""
    weights = weight_needs(opened)
    state_bytes = opened.architecture.hidden_size * FLOAT32_BYTES
    largest = max(map(text.size, range(len(text.chunks))))  # whose states are in memory at once
    batch = batch_bytes(opened.architecture, text) + largest * state_bytes
    whole = BASE_MEMORY + weights.whole + batch
    streamed = BASE_MEMORY + max(weights.largest_layer, weights.rest) + batch
    tokens = sum(len(s.tokens) for s in text.sequences)
    disk = 2 * tokens * state_bytes
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
def _streamed(
    opened: OpenModel, groups: Groups, wanted: Sequence[str], scratch: Path, task: Task
) -> Iterator[tuple[str, list[Tensor]]]:
    names = _begun(scratch, wanted)
    text = _text({name: groups[name] for name in names})
    chunks = range(len(text.chunks))
    states = StoredStates(scratch, text, chunks, opened)
    layerwise = Layerwise(opened)
    last = len(opened.layers)
    first = first_layer(layerwise, states, text, chunks)
    tokens = sum(map(text.size, chunks))
    shown = sum(len(s.tokens) for name in wanted for s in groups[name]) / tokens / last
    task.advance(tokens * first * shown)
    for layer in range(first, last):
        states.begin(layer + 1)
        opened.load_layer(layer)
        for chunk in chunks:
            results = [
                layerwise.run(layer, states.read(layer, chunk, begin, ids))
                for begin, ids in _placed(text, chunk)
            ]
            if not all(bool(result.isfinite().all()) for result in results):
                raise not_finite(str(opened.path), f"layer {layer}")
            states.write(layer + 1, chunk, results)
            task.advance(text.size(chunk) * shown)
        opened.drop_layer(layer)
        states.finish(layer + 1)
    opened.load_rest()
    for chunk, name in enumerate(names):
        if name in wanted:
            yield (
                name,
                [
                    row
                    for begin, ids in _placed(text, chunk)
                    for row in layerwise.normed(states.read(last, chunk, begin, ids))
                ],
            )


def _begun(scratch: Path, wanted: Sequence[str]) -> list[str]:
    """The groups whose states are in ``scratch``, in their order there; where the ``wanted`` ones
    are not all among them, these, and nothing is there."""
    path = scratch / GROUPS
    if path.is_file():
        names: list[str] = read_json(path)["groups"]
        if set(wanted) <= set(names):
            return names
    with disk_errors(scratch):
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir(parents=True)
        write_json(path, {"groups": wanted})
    return list(wanted)


def _placed(text: Text, chunk: int) -> Iterator[tuple[int, Tensor]]:
    """The batches of a chunk with the place of their first token in it."""
    begin = 0
    for ids, _ in text.batches(chunk):
        yield begin, ids
        begin += ids.numel()
