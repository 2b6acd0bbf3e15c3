"""Training state on disk: safetensors and JSON, never a pickle; whole or absent."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

import torch
from pydantic import BaseModel, ConfigDict, Field

from edgekit.distill.divergence import Divergence
from edgekit.distill.sharding import give_shares, split_like, whole
from edgekit.distill.working import Working
from edgekit.tensorfile import TensorFile, TensorFileWriter, TensorInfo

TENSORS, VALUES = "tensors.safetensors", "state.json"
WEIGHT, OPTIMIZER = "weight", "optimizer"  # weight/NAME, optimizer/KEY/NAME


class Evaluation(BaseModel):
    """KL of every student on held-out text after ``step`` steps."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    step: int
    students: tuple[Divergence, ...]

    @property
    def kl(self) -> float:
        """Over all held-out text, in nats per token, the mean of the students."""
        return sum(d.all.value for d in self.students) / len(self.students)


class TrainingState(BaseModel):
    """Everything but the weights and what the optimizer keeps of them.

    ``step`` is the next one to run. ``losses`` (mean over the counted positions), ``rates`` and
    ``norms`` (of the gradient, before it was clipped) have one entry per finished step. ``tokens``
    were trained on in ``seconds``. ``best`` is the step of the best of ``evaluations``, after which
    ``stale`` came without gain; ``stopped`` says that there will be no more steps. ``working`` is
    how gradients were computed, once that was decided.
    """

    step: int = 0
    losses: list[float] = Field(default_factory=list)
    rates: list[float] = Field(default_factory=list)
    norms: list[float] = Field(default_factory=list)
    tokens: int = 0
    seconds: float = 0.0
    evaluations: list[Evaluation] = Field(default_factory=list)
    best: int = 0
    stale: int = 0
    stopped: bool = False
    working: Working | None = None


def save_state(
    directory: Path,
    state: TrainingState,
    parameters: Mapping[str, torch.nn.Parameter],
    optimizer: torch.optim.Optimizer,
    main: bool = True,
) -> None:
    """Replace the saved state; a kill in between leaves the old or the new one whole. Processes
    other than the ``main`` one give their shares."""
    tensors = {f"{WEIGHT}/{name}": p.detach() for name, p in parameters.items()}
    for name, parameter in parameters.items():
        for key, value in optimizer.state[parameter].items():
            tensors[f"{OPTIMIZER}/{key}/{name}"] = value
    if not main:
        give_shares(tensors.values())
        return
    new = directory.with_name(directory.name + ".new")
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(parents=True)
    write_tensors(new / TENSORS, tensors)
    (new / VALUES).write_text(state.model_dump_json())
    old = directory.with_name(directory.name + ".old")
    if directory.exists():  # else the old one is all there is: killed between two renames
        shutil.rmtree(old, ignore_errors=True)
        directory.rename(old)
    new.rename(directory)
    shutil.rmtree(old, ignore_errors=True)


def restore_state(
    directory: Path,
    parameters: Mapping[str, torch.nn.Parameter],
    optimizer: torch.optim.Optimizer,
) -> TrainingState | None:
    """Load a saved state into the model and the optimizer; None when there is none."""
    if not directory.is_dir():
        directory = directory.with_name(directory.name + ".old")  # killed between two renames
        if not directory.is_dir():
            return None
    state = TrainingState.model_validate_json((directory / VALUES).read_text())
    with TensorFile(directory / TENSORS) as file:
        restore_weights(file, parameters)
        for stored in file.tensors:
            if stored.startswith(f"{OPTIMIZER}/"):
                _, key, name = stored.split("/", 2)
                value = torch.from_numpy(file.float32(stored).copy())
                # AdamW counts its steps on the CPU
                kept = value if key == "step" else split_like(value, parameters[name])
                optimizer.state[parameters[name]][key] = kept
    return state


def write_tensors(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Write tensors as float32."""
    layout = [TensorInfo(name, "F32", tuple(t.shape)) for name, t in tensors.items()]
    with TensorFileWriter(path, layout) as writer:
        for name, tensor in tensors.items():
            writer.write(name, whole(tensor).float().cpu().numpy())


@torch.no_grad()
def restore_weights(file: TensorFile, parameters: Mapping[str, torch.nn.Parameter]) -> None:
    """Give ``parameters`` their values in a file that has them under ``weight/``."""
    for name, parameter in parameters.items():
        value = torch.from_numpy(file.float32(f"{WEIGHT}/{name}").copy())
        parameter.copy_(split_like(value, parameter))
