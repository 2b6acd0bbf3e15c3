"""Bring the neurons of experts in one order, and average their weights.

An expert computes the same whatever the order of its neurons, so before two are averaged the
neurons of one are permuted to resemble the other's: an assignment problem, solved exactly. As in
REAM, two neurons are alike if they fire alike on a sample of tokens and if their weights (their
rows of gate and up, their column of down, and biases) point the same way.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn import functional

from edgekit.architecture import TensorSpec
from edgekit.distill.merge_groups import Group
from edgekit.distill.mixture import MixtureBlock


@dataclass(frozen=True)
class MergedExpert:
    """A group whose neurons are matched: ``neurons`` int64 [members, I]; neuron n of the result is
    the average of neuron ``neurons[m, n]`` of each member m."""

    group: Group
    neurons: NDArray[np.int64]


@torch.inference_mode()
def align(block: MixtureBlock, group: Group, x: Tensor) -> MergedExpert:
    """Match the neurons of a group's members to its centre's; x [T, H] is a sample of tokens."""
    order = [np.arange(block.mixture.intermediate_size)]
    if len(group.members) > 1:
        centre = neuron_features(block, group.centre, x)
        for member in group.members[1:]:
            order.append(matching(_cost(centre, neuron_features(block, member, x))))
    return MergedExpert(group, np.stack(order))


def neuron_features(block: MixtureBlock, expert: int, x: Tensor) -> tuple[Tensor, Tensor]:
    """Unit vectors of each neuron: what it does for x [T, H], float32 [I, T], and its weights,
    float32 [I, 3 H] (with biases [I, 3 H + 2])."""
    gate, up = block.gate_up[expert].float().chunk(2)
    parts = [gate, up, block.down[expert].float().T]
    if block.gate_up_bias is not None:
        parts.append(block.gate_up_bias[expert].float().reshape(2, -1).T)
    fired = block.hidden(x, expert).float().T
    return functional.normalize(fired, dim=1), functional.normalize(torch.cat(parts, 1), dim=1)


def _cost(centre: tuple[Tensor, Tensor], member: tuple[Tensor, Tensor]) -> NDArray[np.float32]:
    pairs = zip(centre, member, strict=True)
    distances = [(2 - 2 * one @ other.T).clamp(min=0).sqrt() for one, other in pairs]
    result: NDArray[np.float32] = sum(distances[1:], distances[0]).cpu().numpy()
    return result


def matching(cost: NDArray[np.float32]) -> NDArray[np.int64]:
    """The column for each row of ``cost`` [I, I] with the least sum."""
    columns: NDArray[np.int64] = linear_sum_assignment(cost)[1]
    return columns


def merged_tensor(
    spec: TensorSpec, merged: MergedExpert, member: Callable[[int], NDArray[np.float32]]
) -> NDArray[np.float32]:
    """One tensor of a merged expert from the same tensor of its members."""
    group = merged.group
    if len(group.members) == 1:
        return member(group.centre)
    total = np.zeros(spec.shape, np.float32)
    for expert, weight, order in zip(group.members, group.weights, merged.neurons, strict=True):
        total += np.float32(weight) * in_order(spec, member(expert), order)
    return total


def in_order(
    spec: TensorSpec, values: NDArray[np.float32], order: NDArray[np.int64]
) -> NDArray[np.float32]:
    """A tensor of an expert with its neurons in another order."""
    if spec.projection == "down":
        return values if spec.name.endswith(".bias") else values[:, order]
    if spec.projection == "gate_up":  # alternating rows
        return values.reshape(len(order), 2, -1)[order].reshape(values.shape)
    return values[order]
