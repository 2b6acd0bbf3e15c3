"""Training state on disk: safetensors and JSON, never a pickle; whole or absent."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from edgekit.tensorfile import TensorFile, TensorFileWriter, TensorInfo

TENSORS = "tensors.safetensors"
MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass
class TrainingState:
    """``step`` is the next one to run; ``losses`` has one entry per finished step; ``before`` is
    what was measured first, as JSON."""

    step: int
    losses: list[float]
    before: list[Any]


def save_state(
    directory: Path,
    state: TrainingState,
    parameters: Mapping[str, torch.nn.Parameter],
    optimizer: torch.optim.Optimizer,
) -> None:
    """Replace the saved state; a kill in between leaves the old or the new one whole."""
    new = directory.with_name(directory.name + ".new")
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(parents=True)
    tensors = {f"weight/{name}": p.detach() for name, p in parameters.items()}
    for name, parameter in parameters.items():
        for moment in MOMENTS:
            tensors[f"{moment}/{name}"] = optimizer.state[parameter][moment]
    layout = [TensorInfo(name, "F32", tuple(t.shape)) for name, t in tensors.items()]
    with TensorFileWriter(new / TENSORS, layout) as writer:
        for name, tensor in tensors.items():
            writer.write(name, tensor.cpu().numpy())
    values = {"step": state.step, "losses": state.losses, "before": state.before}
    (new / "state.json").write_text(json.dumps(values))
    old = directory.with_name(directory.name + ".old")
    shutil.rmtree(old, ignore_errors=True)
    if directory.exists():
        directory.rename(old)
    new.rename(directory)
    shutil.rmtree(old, ignore_errors=True)


def restore_state(
    directory: Path | None,
    parameters: Mapping[str, torch.nn.Parameter],
    optimizer: torch.optim.Optimizer,
) -> TrainingState | None:
    """Load a saved state into the model and the optimizer; None when there is none."""
    if directory is None:
        return None
    if not directory.is_dir():
        directory = directory.with_name(directory.name + ".old")  # killed between two renames
        if not directory.is_dir():
            return None
    values = json.loads((directory / "state.json").read_text())
    with torch.no_grad(), TensorFile(directory / TENSORS) as file:
        for name, parameter in parameters.items():
            parameter.copy_(torch.from_numpy(file.float32(f"weight/{name}").copy()))
            optimizer.state[parameter] = {
                "step": torch.tensor(float(values["step"])),
                **{
                    moment: torch.from_numpy(file.float32(f"{moment}/{name}").copy()).to(parameter)
                    for moment in MOMENTS
                },
            }
    return TrainingState(values["step"], values["losses"], values["before"])
