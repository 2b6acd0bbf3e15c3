"""One dense feed-forward that learns what a mixture says.

The down projection is solved for; gate and up, on which the output does not depend linearly, are
trained with it. Both keep what was there unless text that was not learnt from is better for it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from edgekit.architecture import FeedForward
from edgekit.checkpoint import Checkpoint
from edgekit.distill.merge_tensors import PRECISIONS
from edgekit.distill.mixture import gated

COSINE = 0.05  # weight of the direction beside the squared error
RIDGES = (1e-4, 1e-3, 1e-2, 1e-1)  # of the mean square of a neuron
CHECKS = 4  # times that a layer is measured while it is trained
ROWS = 2048  # tokens whose neurons are in memory at once; they are many times wider than x
Place = tuple[str, str]  # projection, "weight" or "bias"


@dataclass(frozen=True)
class WarmUpOptions:
    """``steps`` of ``batch_tokens`` each for every layer; 0 only solves for down. ``force`` goes on
    where memory or disk seem too small."""

    steps: int = 200
    batch_tokens: int = 512
    learning_rate: float = 5e-4
    seed: int = 0
    force: bool = False


@dataclass(frozen=True)
class Lesson:
    """What a feed-forward reads and is to say: ``x`` and ``y`` [T, H]."""

    x: Tensor
    y: Tensor

    def parts(self) -> Iterator[Lesson]:
        """All of its tokens, some at a time."""
        for rows in range(0, len(self.x), ROWS):
            yield Lesson(self.x[rows : rows + ROWS], self.y[rows : rows + ROWS])


class DenseModule:
    """The feed-forward of a dense layer; ``names`` are those of its ``weights`` in the file."""

    def __init__(self, checkpoint: Checkpoint, part: FeedForward) -> None:
        modules = {"gate": part.gate, "up": part.up, "down": part.down}
        self.names: dict[str, Place] = {
            f"{module}.{kind}": (projection, kind)
            for projection, module in modules.items()
            for kind in ("weight", "bias")
            if f"{module}.{kind}" in checkpoint.architecture.by_name
        }
        self.weights: dict[Place, Tensor] = {
            place: torch.from_numpy(checkpoint.float32(name).copy())
            for name, place in self.names.items()
        }
        self._activation = part.activation

    def hidden(self, x: Tensor) -> Tensor:
        """The neurons [T, I] for x [T, H]."""
        return gated(self._linear("gate", x), self._linear("up", x), self._activation)

    def __call__(self, x: Tensor) -> Tensor:
        """x [T, H] to [T, H]."""
        return self._linear("down", self.hidden(x))

    @torch.no_grad()
    def round_as(self, checkpoint: Checkpoint) -> None:
        """Round the weights as ``checkpoint`` stores those that it has in their places."""
        stored = checkpoint.dtypes
        for name, place in self.names.items():
            kind = stored.get(checkpoint.architecture.by_name[name].source.tensor, checkpoint.dtype)
            self.weights[place] = self.weights[place].to(PRECISIONS[kind]).float()

    def _linear(self, projection: str, x: Tensor) -> Tensor:
        weight = self.weights[projection, "weight"]
        return functional.linear(x, weight, self.weights.get((projection, "bias")))


@torch.no_grad()
def relative_error(module: DenseModule, lesson: Lesson) -> float:
    """Squared error of the output, relative to the squared output (if that is not zero)."""
    error = power = 0.0
    for part in lesson.parts():
        error += float((module(part.x) - part.y).double().square().sum())
        power += float(part.y.double().square().sum())
    return error / (power or 1.0)


@torch.no_grad()
def solve_down(module: DenseModule, learnt: Lesson, unseen: Lesson) -> None:
    """Change down by the least squares of what is missing, held back by the best of ``RIDGES``.

    With N the neurons [T, I] and R the missing output [T, H], the change is
    ``(N^T N + ridge I)^-1 N^T R``.
    """
    place = ("down", "weight")
    gram, right = _normal_equations(module, learnt)
    size = float(gram.diagonal().mean())
    before = best = module.weights[place]
    least = relative_error(module, unseen)
    for ridge in RIDGES if size > 0 else ():
        shifted = gram + ridge * size * torch.eye(len(gram), dtype=gram.dtype)
        change = torch.linalg.solve(shifted, right).T
        module.weights[place] = before + change.float()
        error = relative_error(module, unseen)
        if error < least:
            best, least = module.weights[place], error
    module.weights[place] = best


def _normal_equations(module: DenseModule, learnt: Lesson) -> tuple[Tensor, Tensor]:
    """``N^T N`` [I, I] and ``N^T R`` [I, H]."""
    hidden_size, wide = module.weights["down", "weight"].shape
    gram = torch.zeros(wide, wide, dtype=torch.float64)
    right = torch.zeros(wide, hidden_size, dtype=torch.float64)
    for part in learnt.parts():
        neurons = module.hidden(part.x).double()
        gram += neurons.T @ neurons
        right += neurons.T @ (part.y - module(part.x)).double()
    return gram, right


def train_layer(
    module: DenseModule, learnt: Lesson, unseen: Lesson, options: WarmUpOptions
) -> None:
    """Train all weights; the best of ``CHECKS`` states and the first one stays."""
    best = {place: weight.clone() for place, weight in module.weights.items()}
    least = relative_error(module, unseen)
    for weight in module.weights.values():
        weight.requires_grad_(True)
    optimizer = torch.optim.Adam(module.weights.values(), options.learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(1, options.steps))
    generator = torch.Generator().manual_seed(options.seed)
    mean_square = float(learnt.y.square().mean()) or 1.0
    for step in range(options.steps):
        rows = torch.randint(len(learnt.x), (options.batch_tokens,), generator=generator)
        found, wanted = module(learnt.x[rows]), learnt.y[rows]
        error = (found - wanted).square().mean() / mean_square
        direction = 1 - torch.cosine_similarity(found, wanted, dim=-1).mean()
        optimizer.zero_grad(set_to_none=True)
        (error + COSINE * direction).backward()
        optimizer.step()
        schedule.step()
        if (step + 1) * CHECKS // options.steps > step * CHECKS // options.steps:
            error_now = relative_error(module, unseen)
            if error_now < least:
                least = error_now
                best = {place: weight.detach().clone() for place, weight in module.weights.items()}
    module.weights = best
