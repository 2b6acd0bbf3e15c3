"""Neurons of two experts are brought in one order: the best of all, and a known one exactly."""

import dataclasses
import itertools

import numpy as np
import pytest
import torch
from torch import nn

from edgekit.checkpoint import Checkpoint
from edgekit.distill.merge_alignment import (
    MergedExpert,
    align,
    in_order,
    matching,
    merged_tensor,
)
from edgekit.distill.merge_groups import Group
from edgekit.distill.mixture import MixtureBlock
from edgekit.distill.mixture_weights import routed_tensor, write_routed

FAMILIES = ["mixtral", "gpt_oss", "dbrx"]  # a matrix each; alternating rows and biases; transposed


def random_block(model, seed=0):
    """A layer of ``model`` with random experts, and its architecture."""
    with Checkpoint(model) as checkpoint:
        architecture = checkpoint.architecture
    torch.manual_seed(seed)
    block = MixtureBlock(architecture.layers[0].mixture, architecture.hidden_size, torch.float32)
    for name, parameter in list(block.named_parameters(recurse=False)):
        values = nn.Parameter(torch.randn(parameter.shape), requires_grad=False)
        setattr(block, name, values)
    return architecture, block


def experts_tensors(architecture, expert):
    return [s for s in architecture.specs if s.layer == 0 and s.expert == expert]


def permute(architecture, block, expert, source, order):
    """Make ``expert`` what ``source`` is, with its neurons in another order."""
    rows = [*order, *(len(order) + order)]
    block.gate_up[expert] = block.gate_up[source][rows]
    block.down[expert] = block.down[source][:, order]
    if block.gate_up_bias is not None:
        block.gate_up_bias[expert] = block.gate_up_bias[source][rows]
        block.down_bias[expert] = block.down_bias[source]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("noise", [0.0, 0.1])
def test_a_known_permutation_of_neurons_is_undone_exactly(tiny_model, family, noise):
    architecture, block = random_block(tiny_model(family))
    order = np.random.default_rng(1).permutation(block.mixture.intermediate_size)
    permute(architecture, block, 2, 1, order)
    block.gate_up[2] += noise * torch.randn_like(block.gate_up[2])
    x = torch.randn(50, architecture.hidden_size)
    merged = align(block, Group((1, 2), (0.5, 0.5)), x)
    assert merged.neurons[0].tolist() == list(range(len(order)))
    assert order[merged.neurons[1]].tolist() == list(range(len(order)))


def test_neurons_that_never_fire_are_matched_by_their_weights(tiny_mixtral):
    architecture, block = random_block(tiny_mixtral)
    order = np.random.default_rng(1).permutation(block.mixture.intermediate_size)
    permute(architecture, block, 0, 3, order)
    merged = align(block, Group((3, 0), (0.5, 0.5)), torch.zeros(5, architecture.hidden_size))
    assert order[merged.neurons[1]].tolist() == list(range(len(order)))


def test_the_matching_has_the_least_cost_of_all_permutations():
    cost = np.random.default_rng(0).random((5, 6, 6)).astype(np.float32)
    for one in cost:
        best = min(sum(one[range(6), p]) for p in itertools.permutations(range(6)))
        assert one[range(6), matching(one)].sum() == pytest.approx(best)


@pytest.mark.parametrize("family", FAMILIES)
def test_an_expert_computes_the_same_with_its_tensors_in_any_order_of_neurons(tiny_model, family):
    architecture, block = random_block(tiny_model(family))
    order = np.random.default_rng(1).permutation(block.mixture.intermediate_size)
    x = torch.randn(9, architecture.hidden_size)
    expected = block.output(block.hidden(x, 1), 1)
    for spec in experts_tensors(architecture, 1):
        values = in_order(spec, routed_tensor(spec, block), order)
        write_routed(spec, block, torch.from_numpy(np.array(values)))
    torch.testing.assert_close(block.output(block.hidden(x, 1), 1), expected, atol=1e-3, rtol=1e-4)
    fired = block.hidden(x, 1)
    permute(architecture, block, 2, 1, np.argsort(order))  # back again
    torch.testing.assert_close(block.hidden(x, 2), fired[:, np.argsort(order)])


@pytest.mark.parametrize("family", FAMILIES)
def test_equal_experts_are_their_own_average_and_one_expert_is_itself(tiny_model, family):
    architecture, block = random_block(tiny_model(family))
    rng = np.random.default_rng(1)
    for expert in (1, 2):
        permute(architecture, block, expert, 0, rng.permutation(block.mixture.intermediate_size))
    merged = align(block, Group((0, 1, 2), (0.5, 0.3, 0.2)), torch.randn(50, 64))
    alone = MergedExpert(Group((3,), (1.0,)), merged.neurons[:1])
    for spec in experts_tensors(architecture, 0):

        def member(expert, spec=spec):
            return routed_tensor(dataclasses.replace(spec, expert=expert), block)

        np.testing.assert_allclose(merged_tensor(spec, merged, member), member(0), rtol=1e-6)
        assert np.array_equal(merged_tensor(spec, alone, member), member(3))


def test_the_average_is_weighted_neuron_by_neuron(tiny_mixtral):
    architecture, block = random_block(tiny_mixtral)
    order = np.random.default_rng(1).permutation(block.mixture.intermediate_size)
    merged = MergedExpert(Group((1, 3), (0.75, 0.25)), np.stack([np.arange(len(order)), order]))
    for spec in experts_tensors(architecture, 0):

        def member(expert, spec=spec):
            return routed_tensor(dataclasses.replace(spec, expert=expert), block)

        found = merged_tensor(spec, merged, member)
        one, other = member(1), member(3)
        for neuron, partner in enumerate(order):
            if spec.projection == "down":
                expected = 0.75 * one[:, neuron] + 0.25 * other[:, partner]
                np.testing.assert_allclose(found[:, neuron], expected, rtol=1e-5, atol=1e-6)
            else:
                expected = 0.75 * one[neuron] + 0.25 * other[partner]
                np.testing.assert_allclose(found[neuron], expected, rtol=1e-5, atol=1e-6)
