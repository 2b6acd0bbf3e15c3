"""A dense feed-forward made of experts: what the plan says, as a model that runs and as tensors.

``down(act(gate x) * up x)`` of experts side by side is their sum, so the rows of gate and up and
the columns of down are concatenated; the constant that stands for a gate is multiplied into down,
or, where a family's gates multiply the experts' inputs, into gate and up. A shared expert comes
after them. Layers that need fewer neurons than the widest are filled with neurons whose columns of
down are zeros, which changes nothing; gate and up have random rows as large as the others, without
which no training could ever move such a neuron.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from edgekit.architecture import FeedForward, Layer, Mixture, TensorSpec
from edgekit.checkpoint import Checkpoint
from edgekit.distill.dense_families import DenseTarget, module_of
from edgekit.distill.merge_tensors import PRECISIONS
from edgekit.distill.mixture import MixtureBlock, gated
from edgekit.distill.open_model import OpenModel
from edgekit.distill.seats import Seat
from edgekit.distill.slice_importance import find_module

OPEN = 100.0  # the logit of a gate of exactly 1


@dataclass(frozen=True)
class Piece:
    """An expert, or the ``neurons`` of it, with what multiplies its input and its output."""

    expert: int
    neurons: tuple[int, ...]  # empty: all
    inside: float
    outside: float


@dataclass(frozen=True)
class LayerPlan:
    """The pieces of a layer in their order, and what multiplies the shared expert's output."""

    pieces: tuple[Piece, ...]
    shared_gate: float = 1.0

    def width(self, mixture: Mixture) -> int:
        """Neurons, the shared expert's included."""
        own = sum(len(piece.neurons) or mixture.intermediate_size for piece in self.pieces)
        return own + (mixture.shared.size if mixture.shared else 0)


Plan = Mapping[int, LayerPlan]  # by sparse layer


@contextmanager
def as_dense(opened: OpenModel, plan: Plan) -> Iterator[None]:
    """Let the model compute what the dense one will, with its own weights in their places, rounded
    as they are written."""
    precision = PRECISIONS[opened.checkpoint.dtype]
    changed: list[Any] = []

    def replace(module: Any, forward: Callable[..., Tensor]) -> None:
        module.forward = forward
        changed.append(module)

    try:
        for layer, block in opened.mixtures.items():
            replace(block, _constant(block, plan[layer], precision))
            gate = _shared_gate(opened, layer)
            if gate is not None:  # the constant is multiplied into down
                assert block.mixture.shared is not None
                down = find_module(opened, block.mixture.shared.down, layer)
                replace(gate, lambda x: x.new_full((*x.shape[:-1], 1), OPEN))
                replace(down, _scaled(down, plan[layer].shared_gate, precision))
        yield
    finally:
        for module in changed:
            del module.forward


def _constant(
    block: MixtureBlock, plan: LayerPlan, precision: torch.dtype
) -> Callable[..., Tensor]:
    def forward(x: Tensor, router_input: Tensor | None = None) -> Tensor:
        flat = x.reshape(-1, x.shape[-1])
        total = torch.zeros_like(flat)
        for piece in plan.pieces:
            gate_up = _rounded(block.gate_up[piece.expert], piece.inside, precision)
            gate, up = functional.linear(flat, gate_up).chunk(2, dim=-1)
            hidden = gated(gate, up, block.mixture.activation)
            down = _rounded(block.down[piece.expert], piece.outside, precision)
            if piece.neurons:
                kept = torch.tensor(piece.neurons, device=hidden.device)
                hidden, down = hidden[:, kept], down[:, kept]
            total = total + functional.linear(hidden, down)
        return total.reshape(x.shape)

    return forward


def _rounded(weight: Tensor, factor: float, precision: torch.dtype) -> Tensor:
    return (weight * factor).to(precision).to(weight.dtype)


def _shared_gate(opened: OpenModel, layer: int) -> Any:
    """The module that gates the shared expert; None where there is none."""
    for module in opened.layers[layer // opened.parts].modules():
        if isinstance(module, Seat) and module.mixture is opened.mixtures[layer]:
            return getattr(module, "shared_expert_gate", None)
    return None


def _scaled(module: Any, factor: float, precision: torch.dtype) -> Callable[[Tensor], Tensor]:
    def forward(x: Tensor) -> Tensor:
        bias = None if module.bias is None else _rounded(module.bias, factor, precision)
        return functional.linear(x, _rounded(module.weight, factor, precision), bias)

    return forward


def dense_tensors(
    checkpoint: Checkpoint, target: DenseTarget, plan: Plan
) -> Callable[[TensorSpec], NDArray[np.float32]]:
    """Gives the tensors of the dense model, each made when it is asked for."""

    def tensor(spec: TensorSpec) -> NDArray[np.float32]:
        if spec.name in target.source_names:
            return checkpoint.float32(target.source_names[spec.name])
        layer = checkpoint.architecture.layers[spec.layer]
        dense = target.architecture.layers[spec.layer].dense
        assert dense is not None
        projection = {dense.gate: "gate", dense.up: "up", dense.down: "down"}[module_of(spec)]
        if spec.role == "bias":
            return _bias(checkpoint, layer, plan, projection, spec.shape[0])
        filled = np.zeros(spec.shape, np.float32)
        rows = filled.T if projection == "down" else filled  # of neurons
        first = 0
        for values in _matrices(checkpoint, layer, plan, projection):
            rows[first : first + len(values)] = values
            first += len(values)
        if projection != "down":
            rng = np.random.default_rng((spec.layer, projection == "up"))
            size = np.sqrt(np.square(rows[:first], dtype=np.float64).mean()).astype(np.float32)
            rows[first:] = size * rng.standard_normal(rows[first:].shape, np.float32)
        return filled

    return tensor


def _matrices(
    checkpoint: Checkpoint, layer: Layer, plan: Plan, projection: str
) -> Iterator[NDArray[np.float32]]:
    """The rows of neurons [n, H] of each piece of a layer, down's turned."""

    precision = PRECISIONS[checkpoint.dtype]

    def rows(module: str) -> NDArray[np.float32]:
        values = checkpoint.float32(module + ".weight")
        if checkpoint.source.method != "none":  # rounded once more when a constant is in it
            values = torch.from_numpy(np.array(values)).to(precision).float().numpy()
        return values.T if projection == "down" else values

    mixture = layer.mixture
    if mixture is None:
        assert layer.dense is not None
        yield rows(_module(layer.dense, projection))
        return
    for piece in plan[layer.index].pieces:
        values = rows(mixture.expert(piece.expert, projection))
        factor = piece.outside if projection == "down" else piece.inside
        yield (values[list(piece.neurons)] if piece.neurons else values) * np.float32(factor)
    if mixture.shared:
        factor = plan[layer.index].shared_gate if projection == "down" else 1.0
        yield rows(_module(mixture.shared, projection)) * np.float32(factor)


def _bias(
    checkpoint: Checkpoint, layer: Layer, plan: Plan, projection: str, size: int
) -> NDArray[np.float32]:
    """The bias of a projection: that of the dense or shared part, which comes after the experts."""
    filled = np.zeros(size, np.float32)
    part = layer.mixture.shared if layer.mixture else layer.dense
    if part is None or not part.bias:
        return filled
    values = checkpoint.float32(_module(part, projection) + ".bias")
    if layer.mixture is None:
        filled[: len(values)] = values
    elif projection == "down":
        filled[:] = values * np.float32(plan[layer.index].shared_gate)
    else:
        last = plan[layer.index].width(layer.mixture)
        filled[last - len(values) : last] = values
    return filled


def _module(part: FeedForward, projection: str) -> str:
    return {"gate": part.gate, "up": part.up, "down": part.down}[projection]
