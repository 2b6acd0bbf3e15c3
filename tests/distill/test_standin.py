"""The stand-in MoE: its construction on a layer small enough to check."""

import dataclasses

import numpy as np
import pytest
import torch

from edgekit.checkpoint import Checkpoint
from edgekit.distill.standin import StandInOptions, make_standin, split_layer
from edgekit.errors import BadInputError
from edgekit.progress import Silent
from edgekit.sequences import TokenSequence

OPTIONS = StandInOptions(experts=4, neurons=32)


@pytest.fixture
def layer():
    generator = torch.Generator().manual_seed(0)
    gate, up, down = (
        torch.randn(*s, generator=generator) / 5 for s in ((64, 16), (64, 16), (16, 64))
    )
    centres = torch.randn(3, 16, generator=generator) * 2
    x = torch.cat([c + torch.randn(200, 16, generator=generator) for c in centres])
    return gate, up, down, torch.nn.functional.normalize(x, dim=-1) * 4


def split(layer, options=OPTIONS):
    return split_layer(*layer, options, torch.Generator().manual_seed(1))


def output(experts, x, k=2):
    gates, chosen = (x @ experts.router.T).softmax(-1).topk(k, -1)
    gates = gates / gates.sum(-1, keepdim=True)
    result = torch.zeros(len(x), 16)
    for slot in range(k):
        for e in range(len(experts.router)):
            t = chosen[:, slot] == e
            h = torch.nn.functional.silu(x[t] @ experts.gate[e].T) * (x[t] @ experts.up[e].T)
            result[t] += gates[t, slot, None] * (h @ experts.down[e].T)
    return result, chosen


def test_the_common_expert_is_chosen_for_nearly_every_token(layer):
    _, chosen = output(split(layer), layer[3])
    assert (chosen == 0).any(-1).float().mean() > 0.95


def test_the_mixture_approximates_the_dense_layer(layer):
    gate, up, down, x = layer
    dense = (torch.nn.functional.silu(x @ gate.T) * (x @ up.T)) @ down.T
    mixed, _ = output(split(layer), x)
    assert ((mixed - dense) ** 2).sum() < 0.05 * (dense**2).sum()


def test_without_the_common_expert_the_output_is_far_off(layer):
    gate, up, down, x = layer
    dense = (torch.nn.functional.silu(x @ gate.T) * (x @ up.T)) @ down.T
    experts = split(layer)
    router = experts.router.clone()
    router[0] = -1e4 * x.mean(0)
    experts = dataclasses.replace(experts, router=router)
    broken, _ = output(experts, x)
    assert ((broken - dense) ** 2).sum() > 0.2 * (dense**2).sum()


def test_specialists_hold_none_of_the_common_neurons(layer):
    experts = split(layer)
    common = {tuple(row) for row in experts.gate[0].tolist()}
    for e in range(1, 4):
        assert not common & {tuple(row) for row in experts.gate[e].tolist()}


def test_it_is_the_same_for_the_same_seed(layer):
    a, b = split(layer), split(layer)
    assert torch.equal(a.router, b.router) and torch.equal(a.down, b.down)


def test_a_whole_stand_in_is_a_mixtral_that_loads(tiny_llama, tmp_path):
    rng = np.random.default_rng(0)
    sequences = [
        TokenSequence(rng.integers(3, 500, 40).astype(np.int32), "x", i % 4 == 3) for i in range(12)
    ]
    options = StandInOptions(experts=4, neurons=64)
    report = make_standin(tiny_llama, sequences, tmp_path, Silent(), options)
    with Checkpoint(tmp_path) as made, Checkpoint(tiny_llama) as dense:
        assert made.architecture.model_type == "mixtral"
        assert made.architecture.moe.num_experts == 4
        name = "model.layers.1.self_attn.k_proj.weight"
        np.testing.assert_allclose(made.float32(name), dense.float32(name), rtol=1e-2)
    assert report.perplexity < 1.5 * report.dense_perplexity


def test_a_moe_is_refused(tiny_mixtral, tmp_path):
    with pytest.raises(BadInputError, match="dense llama"):
        make_standin(tiny_mixtral, [], tmp_path, Silent())
