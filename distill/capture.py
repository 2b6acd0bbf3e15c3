"""Run the teacher once over the sequences and keep its logits."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

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
from edgekit.sequences import FILE_NAME, read_sequences, sequences_digest
from edgekit.tensorfile import TensorFile

SEQUENCES_PER_SHARD = 16


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
                for sequence in text[begin:end]:
                    targets.append(_targets(model, sequence.tokens, top_k))
                    task.advance(len(sequence.tokens))
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
def _targets(model: Model, tokens: np.ndarray, top_k: int) -> TeacherTargets:
    ids = torch.from_numpy(tokens.astype(np.int64))[None]
    return top_k_targets(model(input_ids=ids, use_cache=False).logits[0], top_k)


def _report(out: Path, index: CacheIndex) -> CaptureReport:
    mass, positions, size = 0.0, 0, 0
    for number in range(len(index.shards)):
        with TensorFile(shard_path(out, number)) as file:
            tail = np.exp(file.float32("tail").astype(np.float64))
            mass, positions = mass + float(tail.sum()), positions + len(tail)
            size += file.path.stat().st_size
    return CaptureReport(positions, index.top_k, size, mass / positions)
