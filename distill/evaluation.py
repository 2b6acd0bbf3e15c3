"""How good a student is while it is trained, and the best that it was."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from torch import nn

from edgekit.distill.divergence import Divergence, Measured, Targets, held_out_numbers, measure
from edgekit.distill.masked import Mask, masked
from edgekit.distill.open_model import OpenModel
from edgekit.distill.processes import Processes
from edgekit.distill.sharding import give_shares
from edgekit.distill.state import WEIGHT, TrainingState, restore_weights, write_tensors
from edgekit.progress import Progress
from edgekit.tensorfile import TensorFile

BEST = "best-{step}.safetensors"


def divergence(
    opened: OpenModel,
    mask: Mask | None,
    held_out: Targets,
    processes: Processes,
    progress: Progress,
) -> Divergence:
    """KL under ``mask`` on the held-out sequences, of which every process measures a share, or all
    where the student is split."""
    numbers = held_out_numbers(held_out)
    if not processes.sharded:
        numbers = np.array_split(numbers, processes.count)[processes.rank].tolist()
    with masked(opened, mask):
        part = measure(opened.model, held_out, progress, "the student", numbers)
    if processes.sharded:  # all decide by the same figures
        return processes.of_main(part.divergence())
    parts = processes.gathered(part)
    return Measured(
        tuple(domain for part in parts for domain in part.domains),
        tuple(values for part in parts for values in part.values),
        tuple(accepted for part in parts for accepted in part.accepted),
    ).divergence()


class BestWeights:
    """The weights of the best evaluation, in a file of ``directory`` that is named by its step.

    A better one is written beside it, and it goes when a saved state names the better one, so that
    what a state names is always there.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def write(self, step: int, parameters: dict[str, nn.Parameter], main: bool = True) -> None:
        """Keep the weights as they are after ``step`` steps; processes other than the ``main`` one
        give their shares."""
        weights = {f"{WEIGHT}/{name}": p.detach() for name, p in parameters.items()}
        if not main:
            give_shares(weights.values())
            return
        self._directory.mkdir(parents=True, exist_ok=True)
        path = self._path(step)
        new = path.with_suffix(".new")
        write_tensors(new, weights)
        new.replace(path)

    def forget_others(self, step: int) -> None:
        """Drop all but the weights of ``step``."""
        for path in self._directory.glob(BEST.format(step="*")):
            if path != self._path(step):
                path.unlink()

    def restore(self, step: int, parameters: dict[str, nn.Parameter]) -> None:
        """Put the weights of ``step`` back."""
        with TensorFile(self._path(step)) as file:
            restore_weights(file, parameters)

    def _path(self, step: int) -> Path:
        return self._directory / BEST.format(step=step)


def note_evaluation(state: TrainingState, patience: int) -> bool:
    """Whether the last evaluation of ``state`` is the best so far; counts those since the best and
    stops the training after ``patience`` of them (0: never)."""
    last = state.evaluations[-1]
    best = next((e for e in state.evaluations if e.step == state.best), last)
    if last is best or last.kl < best.kl:
        state.best, state.stale = last.step, 0
        return True
    state.stale += 1
    state.stopped = bool(patience) and state.stale >= patience
    return False
