"""Run the teacher once over the sequences and keep its logits."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from edgekit.atomic import link_or_copy
from edgekit.checkpoint import read_json
from edgekit.distill.cache import (
    CacheIndex,
    TeacherTargets,
    shard_path,
    top_k_targets,
    write_index,
    write_shard,
)
from edgekit.distill.loading import Model, load_model
from edgekit.progress import Progress
from edgekit.sequences import (
    FILE_NAME,
    equal_length_runs,
    read_sequences,
    sequences_digest,
    stacked,
)
from edgekit.tensorfile import TensorFile

SEQUENCES_PER_SHARD = 16
BATCH_TOKENS = 1024


@dataclass(frozen=True)
class CaptureReport:
    """Size of the cache; ``tail_mass`` is the mean probability outside the top k."""

    positions: int
    top_k: int
    size_bytes: int
    tail_mass: float


def capture(
    teacher: Path,
    sequences: Path,
    top_k: int,
    out: Path,
    progress: Progress,
    scratch: Path | None = None,
) -> CaptureReport:
    """Write the logit cache of ``sequences/sequences.safetensors`` into ``out``.

    Shards that an interrupted run finished are taken from ``scratch``.

    Raises:
        BadInputError: the teacher or the sequences cannot be read.
    """
    text = read_sequences(sequences / FILE_NAME)
    work = scratch or out
    shards = [
        (begin, min(begin + SEQUENCES_PER_SHARD, len(text)))
        for begin in range(0, len(text), SEQUENCES_PER_SHARD)
    ]
    model: Model | None = None
    with progress.task("capture the teacher's logits", sum(len(s.tokens) for s in text)) as task:
        for number, (begin, end) in enumerate(shards):
            path = shard_path(work, number)
            if not path.is_file():
                model = model or load_model(teacher)
                targets = []
                for first, last in equal_length_runs(text[begin:end], BATCH_TOKENS):
                    targets += _targets(model, stacked(text[begin + first : begin + last]), top_k)
                    task.advance(sum(len(s.tokens) for s in text[begin + first : begin + last]))
                partial = path.with_suffix(".partial")
                write_shard(partial, targets)
                partial.replace(path)
            if work != out:
                link_or_copy(path, shard_path(out, number))
    link_or_copy(sequences / FILE_NAME, out / FILE_NAME)
    config = (teacher / "config.json").read_bytes()
    vocab = int(read_json(teacher / "config.json")["vocab_size"])
    digest = hashlib.sha256(config).hexdigest()
    index = CacheIndex(min(top_k, vocab), vocab, digest, sequences_digest(text), tuple(shards))
    write_index(out, index)
    return _report(out, index)


@torch.inference_mode()
def _targets(model: Model, ids: NDArray[np.int64], top_k: int) -> list[TeacherTargets]:
    """Targets of sequences [B, T]."""
    logits = model(input_ids=torch.from_numpy(ids), use_cache=False).logits
    return [top_k_targets(rows, top_k) for rows in logits]


def _report(out: Path, index: CacheIndex) -> CaptureReport:
    mass, positions, size = 0.0, 0, 0
    for number in range(len(index.shards)):
        with TensorFile(shard_path(out, number)) as file:
            tail = np.exp(file.float32("tail").astype(np.float64))
            mass, positions = mass + float(tail.sum()), positions + len(tail)
            size += file.path.stat().st_size
    return CaptureReport(positions, index.top_k, size, mass / positions)
