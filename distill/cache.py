"""The logit cache: what the teacher said, kept once and read back in every epoch.

Per position the ``top_k`` largest log-probabilities and the logarithm of the mass of all others.
``index.json`` names the shards; shard ``i`` holds the positions of a run of sequences:

    ids       int32   [T, K]  token ids, most probable first
    logprobs  float16 [T, K]
    tail      float16 [T]     log(1 - sum of the K probabilities)

The sequences themselves lie beside it, so a cache is all that training needs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from edgekit.atomic import write_json
from edgekit.checkpoint import read_json
from edgekit.errors import BadInputError
from edgekit.sequences import FILE_NAME, TokenSequence, read_sequences, sequences_digest
from edgekit.tensorfile import TensorFile, TensorFileWriter, TensorInfo

INDEX = "index.json"
LOWEST = -60.0  # log-probability of a tail that rounds to nothing; finite in float16


@dataclass(frozen=True)
class CacheIndex:
    """``index.json`` of a cache."""

    top_k: int
    vocab_size: int
    teacher: str
    sequences_digest: str
    shards: tuple[tuple[int, int], ...]  # sequences [begin, end) of each shard


@dataclass(frozen=True)
class TeacherTargets:
    """The teacher's distribution over the next token at each of T positions (see the module)."""

    ids: torch.Tensor  # int64 [T, K]
    logprobs: torch.Tensor  # float32 [T, K]
    tail: torch.Tensor  # float32 [T]


def top_k_targets(logits: torch.Tensor, top_k: int) -> TeacherTargets:
    """Reduce logits [T, V] to the ``top_k`` most probable tokens and the mass of the rest."""
    logits = logits.float()
    whole = logits.logsumexp(-1, keepdim=True)
    values, ids = logits.topk(min(top_k, logits.shape[-1]), dim=-1)
    rest = logits.scatter(-1, ids, -torch.inf).logsumexp(-1) - whole[..., 0]
    return TeacherTargets(ids, values - whole, rest.clamp(min=LOWEST))


def shard_path(directory: Path, number: int) -> Path:
    """File of a shard."""
    return directory / f"shard-{number:05d}.safetensors"


def write_shard(path: Path, targets: Sequence[TeacherTargets]) -> None:
    """Write the positions of several sequences to one file."""
    ids = torch.cat([t.ids for t in targets]).numpy().astype(np.int32)
    logprobs = torch.cat([t.logprobs for t in targets]).numpy().astype(np.float16)
    tail = torch.cat([t.tail for t in targets]).numpy().astype(np.float16)
    arrays: dict[str, tuple[str, NDArray[np.generic]]] = {
        "ids": ("I32", ids), "logprobs": ("F16", logprobs), "tail": ("F16", tail)
    }  # fmt: skip
    layout = [TensorInfo(name, kind, array.shape) for name, (kind, array) in arrays.items()]
    with TensorFileWriter(path, layout) as writer:
        for name, (_, array) in arrays.items():
            writer.write(name, array)


def write_index(directory: Path, index: CacheIndex) -> None:
    """Write ``index.json``; the cache is whole from here on."""
    write_json(directory / INDEX, asdict(index))


class LogitCache:
    """An opened cache: ``sequences`` and, by number, the teacher's targets for each."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        values = read_json(directory / INDEX)
        try:
            shards = tuple((int(a), int(b)) for a, b in values.pop("shards"))
            self.index = CacheIndex(shards=shards, **values)
        except (KeyError, TypeError, ValueError) as error:
            raise BadInputError(
                f"{directory / INDEX}: not the index of a logit cache; capture it again"
            ) from error
        self.sequences: list[TokenSequence] = read_sequences(directory / FILE_NAME)
        if sequences_digest(self.sequences) != self.index.sequences_digest:
            raise BadInputError(
                f"{directory / FILE_NAME}: not the sequences that the cache was captured on; "
                "capture it again"
            )
        self._place: dict[int, tuple[Path, int]] = {}  # shard and first position
        for shard, (begin, end) in enumerate(shards):
            path = shard_path(directory, shard)
            start = 0
            for number in range(begin, end):
                self._place[number] = (path, start)
                start += len(self.sequences[number].tokens)
            with TensorFile(path) as file:
                if file.info("tail").shape != (start,):
                    raise BadInputError(f"{path}: holds too few positions; capture it again")

    def targets(self, number: int) -> TeacherTargets:
        """Targets of sequence ``number``: position t is the distribution of token t + 1."""
        path, start = self._place[number]
        rows = slice(start, start + len(self.sequences[number].tokens))
        with TensorFile(path) as file:  # opened each time: a large cache has thousands of shards
            return TeacherTargets(
                torch.from_numpy(file.array("ids")[rows].astype(np.int64)),
                torch.from_numpy(file.array("logprobs")[rows].astype(np.float32)),
                torch.from_numpy(file.array("tail")[rows].astype(np.float32)),
            )
