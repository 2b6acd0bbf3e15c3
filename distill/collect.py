"""The calibration pass: run the text through the model once and write what its experts did.

The text is cut into chunks that depend on the text alone. Each chunk's sums are a file of their
own, written whole or not at all, so an interrupted pass continues, several workers each take a
share, and their result is the same as that of one, bit for bit.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from edgekit.atomic import disk_errors
from edgekit.checkpoint import read_config, shard_names
from edgekit.digests import json_digest
from edgekit.distill.accumulate import HALVES, LayerSums, TokenClasses
from edgekit.distill.open_model import OpenModel, open_model
from edgekit.distill.statistics import Statistics, StatisticsInfo, add_up
from edgekit.errors import BadInputError
from edgekit.progress import Progress, Task
from edgekit.sequences import TokenSequence, equal_length_runs, sequences_digest, stacked
from edgekit.tensorfile import read_header

BATCH_TOKENS = 1024
MAX_CHUNKS = 32
SAMPLE_BYTES = 1 << 16  # of each end of a weights file that enter the digest


@dataclass(frozen=True)
class Share:
    """This worker's part of the chunks: number ``rank`` of ``workers``."""

    rank: int = 0
    workers: int = 1

    @classmethod
    def of_process(cls) -> Share:
        """As ``accelerate launch`` and ``torchrun`` say."""
        return cls(int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1)))


def collect(
    model: Path,
    sequences: Sequence[TokenSequence],
    scratch: Path,
    progress: Progress,
    share: Share | None = None,
) -> Statistics:
    """Statistics of ``model`` on ``sequences``; held-out ones are left out.

    Chunks that lie in ``scratch`` already are not run again. A worker returns what is there after
    its share; :func:`edgekit.distill.statistics.require_whole` says whether that is all.

    Raises:
        BadInputError: the model is dense, there is no text, a sequence is longer than the context,
            or weights or activations are not finite.
    """
    share = share or Share()
    text = [s for s in sequences if not s.held_out]
    if not text:
        raise BadInputError("no calibration text; raise [data] tokens")
    scratch.mkdir(parents=True, exist_ok=True)
    digest = checkpoint_digest(model)
    key = json_digest([digest, sequences_digest(text)])[:16]
    chunks = chunk_bounds(len(text))
    files = [scratch / f"chunk-{key}-{number:02}.safetensors" for number in range(len(chunks))]
    mine = [n for n in range(len(chunks)) if n % share.workers == share.rank]
    missing = [number for number in mine if not files[number].is_file()]
    if missing:
        with open_model(model) as opened:
            _require_fit(opened, text)
            total = sum(len(s.tokens) for n in missing for s in text[slice(*chunks[n])])
            with progress.task("measure the experts", total) as task:
                for number in missing:
                    part = run_chunk(opened, digest, text, chunks, number, task)
                    with disk_errors(files[number]):
                        partial = files[number].with_suffix(".partial")
                        part.save(partial)
                        partial.replace(files[number])
    return add_up([Statistics.load(file) for file in files if file.is_file()])


def chunk_bounds(count: int) -> list[tuple[int, int]]:
    """Ranges [begin, end) of ``count`` sequences: at most ``MAX_CHUNKS``, of one size."""
    size = -(-count // MAX_CHUNKS)
    return [(begin, min(begin + size, count)) for begin in range(0, count, size)]


@torch.inference_mode()
def run_chunk(
    opened: OpenModel,
    digest: str,
    text: Sequence[TokenSequence],
    chunks: Sequence[tuple[int, int]],
    number: int,
    task: Task | None = None,
) -> Statistics:
    """The sums of one chunk of ``text``; ``digest`` is the checkpoint's."""
    domains = sorted({s.domain for s in text})
    classes = _classes(text, domains)
    begin, end = chunks[number]
    current = TokenClasses(len(domains), torch.zeros(0, dtype=torch.int64))
    sums = {
        layer: LayerSums(block.mixture, opened.architecture.hidden_size, current)
        for layer, block in opened.mixtures.items()
    }
    cosines = torch.zeros(len(opened.layers), len(domains), dtype=torch.float64)
    seen = np.zeros((HALVES, len(domains)), np.int64)
    with _watching(opened, sums, _block_cosines(cosines, current)):
        for first, last in equal_length_runs(text[begin:end], BATCH_TOKENS):
            batch = text[begin + first : begin + last]
            per_sequence = classes[begin + first : begin + last]
            length = len(batch[0].tokens)
            current.of_tokens = torch.from_numpy(np.repeat(per_sequence, length))
            np.add.at(seen.reshape(-1), per_sequence, length)
            opened.decoder(input_ids=torch.from_numpy(stacked(batch)), use_cache=False)
            if task:
                task.advance(length * len(batch))
    info = StatisticsInfo(
        checkpoint=digest,
        sequences=sequences_digest(text),
        model_type=opened.architecture.model_type,
        layers=tuple(sums),
        domains=tuple(domains),
        chunks=(number,),
        total_chunks=len(chunks),
    )
    arrays = {
        name: torch.stack([s.tensors()[name] for s in sums.values()]).numpy()
        for name in next(iter(sums.values())).tensors()
    }
    for name in ("tokens", "coactivation"):
        arrays[name] = arrays[name].astype(np.int64)
    statistics = Statistics(info, seen=seen, block_cosine_sum=cosines.numpy(), **arrays)
    _require_finite(statistics, opened.path)
    return statistics


def _classes(text: Sequence[TokenSequence], domains: Sequence[str]) -> np.ndarray:
    """The class of each sequence: every second one of a domain is in the other half."""
    counts = dict.fromkeys(domains, 0)
    result = np.empty(len(text), np.int64)
    for number, sequence in enumerate(text):
        half = counts[sequence.domain] % HALVES
        counts[sequence.domain] += 1
        result[number] = half * len(domains) + domains.index(sequence.domain)
    return result


@contextmanager
def _watching(
    opened: OpenModel, sums: dict[int, LayerSums], layer_hook: Callable[[int], Callable[..., None]]
) -> Iterator[None]:
    handles = []
    for number, layer in enumerate(opened.layers):
        handles.append(layer.register_forward_hook(layer_hook(number)))
    for layer, block in opened.mixtures.items():
        block.observer = sums[layer]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        for block in opened.mixtures.values():
            block.observer = None


def _block_cosines(sums: Tensor, classes: TokenClasses) -> Callable[[int], Callable[..., None]]:
    """Hooks that add up, per layer and domain, how alike a layer's input and output are."""

    def of_layer(number: int) -> Callable[..., None]:
        def hook(_: object, arguments: tuple[Tensor, ...], output: Tensor) -> None:
            result = output[0] if isinstance(output, tuple) else output
            alike = torch.cosine_similarity(arguments[0].float(), result.float(), dim=-1)
            domain = classes.of_tokens % classes.domains
            sums[number].index_add_(0, domain, alike.reshape(-1).double())

        return hook

    return of_layer


def _require_fit(opened: OpenModel, text: Sequence[TokenSequence]) -> None:
    architecture = opened.architecture
    if not opened.mixtures:
        raise BadInputError(
            f"{opened.path}: a dense {architecture.model_type} has no experts to measure"
        )
    longest = max(len(s.tokens) for s in text)
    if longest > architecture.context_length:
        raise BadInputError(
            f"{opened.path}: a sequence of {longest} tokens is longer than the context of "
            f"{architecture.context_length}; lower [data] sequence_length"
        )


def _require_finite(statistics: Statistics, path: Path) -> None:
    sums = statistics.total("gated_sum") + statistics.total("output_max")
    for layer, row, logits in zip(statistics.layers, sums, statistics.logit_gram, strict=True):
        if np.isfinite(row).all() and np.isfinite(logits).all():
            continue
        bad = np.flatnonzero(~np.isfinite(row))
        part = f"expert {bad[0]}" if len(bad) else "the router"
        raise BadInputError(
            f"{path}: {part} of layer {layer} gives values that are not finite; the weights are "
            "damaged, download them again"
        )


def checkpoint_digest(directory: Path) -> str:
    """Names a checkpoint without reading all of it: config, every tensor's name, type, shape and
    place, each file's size, and 64 KiB at either end of its data."""
    parts: list[object] = [read_config(directory)]
    for name in shard_names(directory):
        path = directory / name
        tensors, _ = read_header(path)
        size = path.stat().st_size
        with path.open("rb") as file:
            head = file.read(SAMPLE_BYTES)
            file.seek(max(0, size - SAMPLE_BYTES))
            tail = file.read(SAMPLE_BYTES)
        described = [[t, info.dtype, list(info.shape)] for t, info in tensors.items()]
        parts.append([name, size, described, head.hex(), tail.hex()])
    return json_digest(parts)
