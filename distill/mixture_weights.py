"""The weights of a mixture: from a checkpoint's tensors and back to them.

A checkpoint has a matrix per expert and projection; a :class:`MixtureBlock` has all experts in one
parameter with the gate's rows before the up's. Families that store gate and up as alternating rows
of one matrix ("gate_up") keep doing so in the checkpoint.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from edgekit.architecture import Architecture, Mixture, TensorSpec
from edgekit.checkpoint import Checkpoint
from edgekit.distill.mixture import MixtureBlock


def is_routed(spec: TensorSpec, architecture: Architecture) -> bool:
    """Whether a tensor belongs to a layer's routed experts or their router."""
    mixture = architecture.layers[spec.layer].mixture if spec.layer >= 0 else None
    if mixture is None:
        return False
    return spec.expert >= 0 or spec.name in _shared_by_experts(mixture)


def read_mixture(
    checkpoint: Checkpoint, layer: int, block: MixtureBlock, device: torch.device
) -> None:
    """Give ``block`` memory and the weights of ``layer``, read an expert at a time."""
    for name, parameter in list(block.named_parameters(recurse=False)):
        empty = torch.empty_like(parameter, device=device)
        setattr(block, name, nn.Parameter(empty, requires_grad=False))
    for spec in checkpoint.specs:
        if spec.layer == layer and is_routed(spec, checkpoint.architecture):
            values = torch.from_numpy(np.array(checkpoint.float32(spec.name), order="C"))
            write_routed(spec, block, values)


@torch.no_grad()
def write_routed(spec: TensorSpec, block: MixtureBlock, values: Tensor) -> None:
    """Put one tensor of the checkpoint in its place in the block."""
    place = _place(spec, block)
    if spec.projection == "gate_up":
        half = len(place) // 2
        place[:half].copy_(values[0::2])
        place[half:].copy_(values[1::2])
    else:
        place.copy_(values.reshape(place.shape))


def routed_tensor(spec: TensorSpec, block: MixtureBlock) -> NDArray[np.float32]:
    """One tensor of the checkpoint, as the block has it now."""
    values = _place(spec, block).detach().float().cpu()
    if spec.projection == "gate_up":
        half = len(values) // 2
        values = torch.stack((values[:half], values[half:]), 1).reshape(values.shape)
    return values.numpy()


def _place(spec: TensorSpec, block: MixtureBlock) -> Tensor:
    """The part of the block's parameters that ``spec`` is."""
    if spec.expert < 0:
        place: Tensor = getattr(block, _shared_by_experts(block.mixture)[spec.name])
        return place
    bias = spec.name.endswith(".bias")
    if spec.projection == "down":
        rows = block.down_bias if bias else block.down
    else:
        rows = block.gate_up_bias if bias else block.gate_up
    assert rows is not None
    half = rows.shape[1] // 2
    chosen = {"gate": slice(0, half), "up": slice(half, 2 * half)}
    return rows[spec.expert, chosen.get(spec.projection, slice(None))]


def _shared_by_experts(mixture: Mixture) -> dict[str, str]:
    """Checkpoint name of what is one tensor for all experts, and the block's name for it."""
    names = {
        mixture.router + ".weight": "router",
        mixture.router + ".bias": "router_bias",
        mixture.correction: "correction",
        mixture.router_scale: "router_scale",
        mixture.expert_scale: "expert_scale",
        mixture.output_bias: "output_bias",
    }
    names.pop("", None)  # what the family does not have
    return names
