"""Training state on disk: safetensors and JSON, never a pickle; whole or absent."""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass
class TrainingState:
    """``step`` is the next one to run; ``losses`` has one entry per finished step."""

    step: int
    losses: list[float]
    kl_before: float


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
    try:
        save_file(tensors, new / "tensors.safetensors")
    except SafetensorError as error:  # it hides the system's error number
        raise OSError(errno.EIO, str(error), str(new)) from error
    values = {"step": state.step, "losses": state.losses, "kl_before": state.kl_before}
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
    tensors = load_file(directory / "tensors.safetensors")
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(tensors[f"weight/{name}"])
            optimizer.state[parameter] = {
                "step": torch.tensor(float(values["step"])),
                **{moment: tensors[f"{moment}/{name}"].clone() for moment in MOMENTS},
            }
    return TrainingState(values["step"], values["losses"], values["kl_before"])
