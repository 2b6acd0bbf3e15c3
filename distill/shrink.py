"""Fewer experts: choose which stay, and write the smaller checkpoint.

The experts that stay are stored in the order of their worth, so that every prefix of them is the
choice one would have made for a smaller student.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekit.architecture import Architecture, TensorSpec
from edgekit.atomic import write_json
from edgekit.checkpoint import Checkpoint, copy_tokenizer, write_checkpoint
from edgekit.describe import describe
from edgekit.distill.loading import load_model
from edgekit.distill.statistics import ExpertStatistics, collect_statistics
from edgekit.progress import Progress
from edgekit.recipe import ShrinkSection
from edgekit.rules import experts_to_keep
from edgekit.sequences import FILE_NAME, read_sequences

USAGE_SEQUENCES = 16
Kept = dict[int, list[int]]  # sparse layer -> original experts, most worthy first


@dataclass(frozen=True)
class ShrinkReport:
    """What was kept. ``usage_*`` are shares of routed tokens [layers][experts]."""

    criterion: str
    experts_before: int
    experts_after: int
    parameters_before: int
    parameters_after: int
    kept: Kept
    usage_before: list[list[float]]
    usage_after: list[list[float]]


def shrink(
    model: Path, sequences: Path, params: ShrinkSection, out: Path, progress: Progress
) -> ShrinkReport:
    """Write ``model`` with a part of its experts into the existing, empty directory ``out``.

    Raises:
        BadInputError: the model is dense, or too few experts would stay for its ``top_k``.
    """
    with Checkpoint(model) as checkpoint:
        architecture = checkpoint.architecture
        keep = experts_to_keep(architecture, params.keep, str(model))
        text = [s for s in read_sequences(sequences / FILE_NAME) if not s.held_out]
        loaded = load_model(model)
        before = collect_statistics(loaded, architecture, text, progress)
        del loaded
        kept = choose(before, keep, params)
        smaller = write_with_experts(checkpoint, kept, out, progress)
    copy_tokenizer(model, out)
    sample = text[:: max(1, len(text) // USAGE_SEQUENCES)]  # a picture, not a decision
    after = collect_statistics(load_model(out), smaller, sample, progress, "measure what is left")
    report = ShrinkReport(
        criterion=params.criterion,
        experts_before=before.tokens.shape[1],
        experts_after=keep,
        parameters_before=architecture.parameters(),
        parameters_after=smaller.parameters(),
        kept=kept,
        usage_before=_rounded(before.frequency),
        usage_after=_rounded(after.frequency),
    )
    write_json(out / "experts.json", dataclasses.asdict(report))
    return report


def choose(statistics: ExpertStatistics, keep: int, params: ShrinkSection) -> Kept:
    """The ``keep`` most worthy experts of each layer, most worthy first; ties by index."""
    worth = _worth(statistics, params)
    order = np.argsort(-worth, axis=1, kind="stable")[:, :keep]
    return {layer: row.tolist() for layer, row in zip(statistics.layers, order, strict=True)}


def _worth(statistics: ExpertStatistics, params: ShrinkSection) -> NDArray[np.float64]:
    if params.criterion == "reap":
        return statistics.reap
    if params.criterion == "frequency":
        return statistics.frequency
    return np.random.default_rng(params.seed).random(statistics.tokens.shape)


def write_with_experts(
    checkpoint: Checkpoint, kept: Kept, out: Path, progress: Progress
) -> Architecture:
    """Write the checkpoint with the experts of ``kept``, one tensor at a time."""
    config = shrunk_config(checkpoint.config, checkpoint.architecture, kept)
    smaller = describe(config)

    def tensor(spec: TensorSpec) -> NDArray[np.float32]:
        if spec.expert >= 0:
            module = checkpoint.architecture.expert(
                spec.layer, kept[spec.layer][spec.expert], spec.projection
            )
            return checkpoint.float32(module + "." + spec.name.rpartition(".")[2])
        values = checkpoint.float32(spec.name)
        return values[kept[spec.layer]] if spec.role == "router" else values

    with progress.task("write the smaller model", len(smaller.tensors())) as task:
        write_checkpoint(out, config, tensor, checkpoint.dtype, task.advance)
    return smaller


def shrunk_config(
    config: Mapping[str, Any], architecture: Architecture, kept: Kept
) -> dict[str, Any]:
    """``config`` with the new number of experts under every key that states it."""
    count = len(next(iter(kept.values())))
    result = copy.deepcopy(dict(config))
    for key in architecture.expert_count_keys:
        *path, leaf = key.split(".")
        inner: Any = result
        for step in path:
            inner = inner.get(step, {})
        if leaf in inner:
            inner[leaf] = count
    return result


def _rounded(values: NDArray[np.float64]) -> list[list[float]]:
    return [[round(float(v), 5) for v in row] for row in values]
