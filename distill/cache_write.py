"""Writing a logit cache: shards that are whole or absent, and the index over them.

A shard's name is a digest of its sequences and of how they were captured. So an interrupted capture
continues, workers share a directory or have one each, and a cache to which text is added keeps the
shards that it has.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from edgekit.atomic import PARTIAL, disk_errors, link_or_copy, write_json
from edgekit.digests import file_sha256, json_digest
from edgekit.distill.cache import INDEX, CacheIndex, CacheShard, LogitCache, is_whole
from edgekit.distill.targets import WHOLE, SampledTargets, TeacherTargets, TopTargets
from edgekit.errors import BadInputError
from edgekit.progress import Progress
from edgekit.sequences import FILE_NAME, TokenSequence, sequences_digest, write_sequences
from edgekit.tensorfile import TensorFileWriter, TensorInfo

SHARD_TOKENS = 1 << 15

# what a shard's bytes depend on beside its sequences
SETTINGS = ("version", "teacher", "tokenizer", "vocab_size", "temperature", "targets",
            "bytes_per_token", "probabilities", "seed")  # fmt: skip


@dataclass(frozen=True)
class PlannedShard:
    """Sequences that follow on each other in their split, and the name that they give the file."""

    file: str
    sequences: tuple[TokenSequence, ...]
    held_out: bool

    @property
    def tokens(self) -> int:
        """Tokens that the teacher reads for it."""
        return sum(len(s.tokens) for s in self.sequences)


def plan_shards(sequences: Sequence[TokenSequence], settings: CacheIndex) -> list[PlannedShard]:
    """The shards of a cache of ``sequences``, those of held-out text last.

    ``settings`` is the index that the cache will have, but for its shards.
    """
    values = {name: getattr(settings, name) for name in SETTINGS}
    planned = []
    for held_out in (False, True):
        for run in _runs([s for s in sequences if s.held_out == held_out]):
            drawn = settings.targets == "sampled" and not held_out
            kind = {} if drawn else {"top_k": settings.top_k}
            key = json_digest([values, kind, sequences_digest(run)])
            planned.append(PlannedShard(f"shard-{key[:16]}.safetensors", tuple(run), held_out))
    return planned


def write_shard(path: Path, targets: Sequence[TeacherTargets], settings: CacheIndex) -> None:
    """Write the targets of several sequences, which are of one kind, whole or not at all.

    Raises:
        OutOfResourcesError: the disk is full.
    """
    width = id_bytes(settings.vocab_size)
    drawn = [t for t in targets if isinstance(t, SampledTargets)]
    tops = [t for t in targets if isinstance(t, TopTargets)]
    if drawn:
        arrays = _drawn_arrays(drawn, width, settings.probabilities)
    else:
        arrays = _top_arrays(tops, width)
    layout = [
        TensorInfo(name, "U8" if a.dtype == np.uint8 else "F16", a.shape)
        for name, a in arrays.items()
    ]
    partial = path.with_name(f"{path.name}.{os.getpid()}{PARTIAL}")
    with disk_errors(path):
        with TensorFileWriter(partial, layout) as writer:
            for name, array in arrays.items():
                writer.write(name, array)
        partial.replace(path)


def finish_cache(
    out: Path,
    settings: CacheIndex,
    sequences: Sequence[TokenSequence],
    sources: Sequence[Path],
    progress: Progress,
) -> CacheIndex:
    """Gather the shards from ``sources`` in ``out`` and write the index; the cache is whole then.

    Raises:
        BadInputError: a shard is in none of the sources.
    """
    planned = plan_shards(sequences, settings)
    places = [find_shard(shard.file, [out, *sources]) for shard in planned]
    files = [place for place in places if place]
    if len(files) < len(planned):
        raise BadInputError(
            f"{len(planned) - len(files)} of {len(planned)} shards are not there yet, "
            f"{planned[places.index(None)].file} the first; let every worker finish, then gather "
            "again"
        )
    found: dict[bool, list[CacheShard]] = {False: [], True: []}
    with progress.task("put the cache together", len(planned)) as task:
        for shard, source in zip(planned, files, strict=True):
            if source.parent != out:
                link_or_copy(source, out / shard.file)
            found[shard.held_out].append(
                CacheShard(
                    file=shard.file,
                    sequences=len(shard.sequences),
                    positions=sum(s.positions for s in shard.sequences),
                    sha256=file_sha256(out / shard.file),
                )
            )
            task.advance()
    (out / FILE_NAME).unlink(missing_ok=True)
    write_sequences(out / FILE_NAME, sequences)
    shards = {"training": tuple(found[False]), "held_out": tuple(found[True])}
    index = settings.model_copy(update={"sequences": sequences_digest(sequences), **shards})
    write_json(out / INDEX, index.model_dump(mode="json"))
    return index


def find_shard(name: str, places: Sequence[Path]) -> Path | None:
    """The shard ``name`` in the first of the directories where it is whole."""
    return next((place / name for place in places if is_whole(place / name)), None)


def damaged_shards(cache: LogitCache, progress: Progress) -> list[str]:
    """The shards whose bytes are not those that were captured; those among them that ``cache`` was
    opened without."""
    damaged = []
    shards = [*cache.index.training, *cache.index.held_out]
    with progress.task("verify the cache", len(shards)) as task:
        for shard in shards:
            # what is missing on an object store cannot be fetched
            missing = shard.file in cache.missing
            if missing or file_sha256(cache.local(shard.file)) != shard.sha256:
                damaged.append(shard.file)
            task.advance()
    return damaged


def id_bytes(vocab_size: int) -> int:
    """Bytes of a token id: 2 up to 65,536 tokens, else 3."""
    return max(2, (max(vocab_size - 1, 1).bit_length() + 7) // 8)


def _runs(sequences: Sequence[TokenSequence]) -> Iterator[list[TokenSequence]]:
    run: list[TokenSequence] = []
    tokens = 0
    for sequence in sequences:
        run.append(sequence)
        tokens += len(sequence.tokens)
        if tokens >= SHARD_TOKENS:
            yield run
            run, tokens = [], 0
    if run:
        yield run


def _top_arrays(targets: Sequence[TopTargets], width: int) -> dict[str, NDArray[Any]]:
    return {
        "ids": _id_array(torch.cat([t.ids for t in targets]), width),
        "logprobs": _halves(torch.cat([t.logprobs for t in targets])),
        "tail": _halves(torch.cat([t.tail for t in targets])),
    }


def _drawn_arrays(
    targets: Sequence[SampledTargets], width: int, probabilities: bool
) -> dict[str, NDArray[Any]]:
    kept = [t.kept for t in targets]
    drawn = [(t.shares > 0) & ~t.kept for t in targets]
    taken = [a | b for a, b in zip(kept, drawn, strict=True)]

    def entries(values: Sequence[torch.Tensor], masks: Sequence[torch.Tensor]) -> torch.Tensor:
        return torch.cat([v[m] for v, m in zip(values, masks, strict=True)])

    def numbers(masks: Sequence[torch.Tensor]) -> NDArray[np.uint8]:
        return torch.cat([m.sum(-1) for m in masks]).numpy().astype(np.uint8)

    shares = entries([t.shares for t in targets], kept)
    arrays = {
        "kept": numbers(kept),
        "drawn": numbers(drawn),
        "entropy": _halves(torch.cat([t.entropy for t in targets])),
        "ids": _id_array(entries([t.ids for t in targets], taken), width),
        "shares": (WHOLE * shares).round().numpy().astype(np.uint8),
    }
    if probabilities:
        arrays["logprobs"] = _halves(entries([t.logprobs for t in targets], taken))
    return arrays


def _id_array(ids: torch.Tensor, width: int) -> NDArray[np.uint8]:
    """Little-endian bytes [..., width]."""
    wide = np.ascontiguousarray(ids.numpy().astype("<i8"))
    return np.ascontiguousarray(wide.view(np.uint8).reshape(*ids.shape, 8)[..., :width])


def _halves(values: torch.Tensor) -> NDArray[np.float16]:
    return values.numpy().astype(np.float16)
