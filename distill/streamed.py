"""A calibration pass over a model that does not fit in memory: one layer after another.

All of a worker's text goes through a layer before the next is read. Between layers the hidden
states lie on disk in a file per layer, of which there are two at a time: that which is read stays
whole until the next is. A chunk's sums in a layer become a file once its states are on disk, so a
pass that was killed continues in the same layer, behind the last chunk that was finished. When all
layers are done the sums of each chunk are put together as if the model had been in memory.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from edgekit.atomic import PARTIAL, disk_errors
from edgekit.distill.accumulate import LayerSums, TokenClasses, add_cosines
from edgekit.distill.chunks import Text, assembled, require_finite
from edgekit.distill.layerwise import Layerwise
from edgekit.distill.open_model import OpenModel
from edgekit.distill.statistics import read_arrays, save_whole, write_arrays
from edgekit.progress import Task

FLOAT32_BYTES = 4
COSINES = "cosines"


class StoredStates:
    """Hidden states of a worker's chunks between two layers, float32, in a file per layer."""

    def __init__(self, directory: Path, text: Text, chunks: Sequence[int], opened: OpenModel):
        self.directory = directory
        self._row = opened.architecture.hidden_size * FLOAT32_BYTES
        self._device, self._dtype = opened.device, opened.dtype
        sizes = [text.size(number) for number in chunks]
        starts = np.cumsum([0, *sizes[:-1]]).tolist()
        self._starts = dict(zip(chunks, starts, strict=True))

    def path(self, layer: int) -> Path:
        """The whole file of what ``layer`` reads."""
        return self.directory / f"states-{layer:03}.f32"

    def newest(self) -> int:
        """The last layer whose input is there whole; -1 for none. Older files go."""
        found = sorted(self.directory.glob("states-*.f32"))
        for path in found[:-1]:
            path.unlink()
        return int(found[-1].stem.partition("-")[2]) if found else -1

    def begin(self, layer: int) -> bool:
        """Have a file for what ``layer`` will read; whether it was there, in part."""
        partial = self.path(layer).with_suffix(PARTIAL)
        if partial.is_file():
            return True
        with disk_errors(partial):
            partial.touch()
        return False

    def finish(self, layer: int) -> None:
        """What ``layer`` reads is whole; what the layer before it read goes."""
        self.path(layer).with_suffix(PARTIAL).replace(self.path(layer))
        if layer:
            self.path(layer - 1).unlink()

    def read(self, layer: int, chunk: int, first: int, ids: Tensor) -> Tensor:
        """What ``layer`` reads for ``ids`` [B, T], which begin at token ``first`` of the chunk."""
        count = ids.numel() * self._row // FLOAT32_BYTES
        offset = (self._starts[chunk] + first) * self._row
        values = np.fromfile(self.path(layer), np.float32, count, offset=offset)
        states = torch.from_numpy(values).reshape(*ids.shape, -1)
        return states.to(self._device, self._dtype)

    def write(self, layer: int, chunk: int, batches: Sequence[Tensor]) -> None:
        """Keep what ``layer`` will read of a chunk; it is on disk afterwards."""
        partial = self.path(layer).with_suffix(PARTIAL)
        with disk_errors(partial), partial.open("r+b") as file:
            file.seek(self._starts[chunk] * self._row)
            for states in batches:
                file.write(states.float().cpu().contiguous().numpy().data)
            file.flush()
            os.fsync(file.fileno())


@torch.inference_mode()
def run_streamed(
    opened: OpenModel,
    digest: str,
    text: Text,
    mine: Sequence[int],
    files: Sequence[Path],
    directory: Path,
    task: Task,
) -> None:
    """Write the statistics of the chunks ``mine`` that have no file yet.

    ``opened`` is not loaded. ``directory`` keeps what an interrupted pass continues from, and goes
    when all is done; ``files`` are the chunks'. ``digest`` is the checkpoint's.

    Raises:
        BadInputError: weights or activations are not finite.
        OutOfResourcesError: the disk is full.
    """
    with disk_errors(directory):
        directory.mkdir(parents=True, exist_ok=True)
    missing = [number for number in mine if not files[number].is_file()]
    states = StoredStates(directory, text, mine, opened)
    layerwise = Layerwise(opened)
    first = first_layer(layerwise, states, text, missing)
    for layer in range(first, len(opened.layers)):
        _run_layer(layerwise, layer, text, missing, states, task)
    for chunk in missing:
        _put_together(opened, digest, text, chunk, directory, files[chunk])
    shutil.rmtree(directory)


def first_layer(
    layerwise: Layerwise, states: StoredStates, text: Text, chunks: Sequence[int]
) -> int:
    """The layer to begin with: behind what is on disk, or the first, whose input is made."""
    first = states.newest()
    if first >= 0:
        return first
    device = layerwise.opened.device
    states.begin(0)
    for chunk in chunks:
        batches = text.batches(chunk)
        states.write(0, chunk, [layerwise.embed(ids.to(device)) for ids, _ in batches])
    states.finish(0)
    return 0


def _run_layer(
    layerwise: Layerwise,
    layer: int,
    text: Text,
    chunks: Sequence[int],
    states: StoredStates,
    task: Task,
) -> None:
    """Run the chunks through one layer, but for those that an interrupted pass has finished."""
    opened = layerwise.opened
    continued = states.begin(layer + 1)
    left = chunks
    if continued:
        left = [c for c in chunks if not _sums_file(states.directory, layer, c).is_file()]
    task.advance(sum(text.size(c) for c in set(chunks) - set(left)) / len(opened.layers))
    opened.load_layer(layer)
    for chunk in left:
        _run_chunk(layerwise, layer, text, chunk, states, task)
    opened.drop_layer(layer)
    states.finish(layer + 1)


def _run_chunk(
    layerwise: Layerwise, layer: int, text: Text, chunk: int, states: StoredStates, task: Task
) -> None:
    opened = layerwise.opened
    device = opened.device
    current = TokenClasses(len(text.domains), torch.zeros(0, dtype=torch.int64))
    numbers = range(layer * opened.parts, (layer + 1) * opened.parts)
    blocks = {number: opened.mixtures[number] for number in numbers if number in opened.mixtures}
    sums = {}
    for number, block in blocks.items():
        block.observer = sums[number] = LayerSums(
            block.mixture, opened.architecture.hidden_size, current, device
        )
    cosines = torch.zeros(len(text.domains), dtype=torch.float64, device=device)
    results, begin = [], 0
    try:
        for ids, classes in text.batches(chunk):
            current.of_tokens = classes.to(device)
            before = states.read(layer, chunk, begin, ids)
            after = layerwise.run(layer, before)
            add_cosines(cosines, current, before, after)
            results.append(after.float().cpu())
            begin += ids.numel()
            task.advance(ids.numel() / len(opened.layers))
    finally:
        for block in blocks.values():
            block.observer = None
    found = {number: layer_sums.arrays() for number, layer_sums in sums.items()}
    alike = cosines.cpu().numpy()
    require_finite(found, alike, layer, str(opened.path))
    states.write(layer + 1, chunk, results)
    named = {f"{number}.{name}": a for number, sums in found.items() for name, a in sums.items()}
    write_arrays(_sums_file(states.directory, layer, chunk), {**named, COSINES: alike})


def _put_together(
    opened: OpenModel, digest: str, text: Text, chunk: int, directory: Path, file: Path
) -> None:
    """Write the statistics of a chunk from its sums in each layer."""
    found: dict[int, dict[str, np.ndarray]] = {number: {} for number in opened.mixtures}
    cosines = []
    parts = [_sums_file(directory, layer, chunk) for layer in range(len(opened.layers))]
    for part in parts:
        arrays = read_arrays(part)
        cosines.append(arrays.pop(COSINES))
        for name, values in arrays.items():
            number, _, field = name.partition(".")
            found[int(number)][field] = values
    info = text.info(chunk, digest, opened.architecture.model_type, tuple(found))
    statistics = assembled(info, text.seen(chunk), list(found.values()), np.stack(cosines))
    save_whole(statistics, file)
    for part in parts:  # so that the disk never holds two copies of all chunks
        part.unlink()


def _sums_file(directory: Path, layer: int, chunk: int) -> Path:
    return directory / f"sums-{layer:03}-{chunk:02}.safetensors"
