"""A model that is read a layer at a time is read once for all sequences, and says the same."""

import numpy as np
import pytest
import torch

import edgekit.distill.divergence as divergence_module
import edgekit.distill.head as head_module
import edgekit.distill.resident as module
from edgekit.distill.automatic import Candidate, choose_by_measurement
from edgekit.distill.collect import collect_masked
from edgekit.distill.divergence import measure, remember
from edgekit.distill.masked import masked, measure_masked
from edgekit.distill.open_model import OpenModel, open_model
from edgekit.distill.resident import resident
from edgekit.distill.statistics import ARRAYS
from edgekit.progress import Silent
from edgekit.sequences import TokenSequence

FAMILIES = ["mixtral", "deepseek_v3", "gpt_oss", "gemma4_text", "llama4_text", "longcat_flash",
            "granitemoe", "dbrx", "qwen3_next"]  # fmt: skip


def text():
    """Two lengths; of some sequences only a part counts, of one nothing."""
    rng = np.random.default_rng(1)
    made = [
        TokenSequence(rng.integers(3, 500, 20 + i // 4).astype(np.int32), "ab"[i % 2], True)
        for i in range(8)
    ]
    for number, first in ((2, 7), (5, 30)):
        counted = np.arange(len(made[number].tokens)) >= first
        made[number] = TokenSequence(made[number].tokens, "a", True, counted)
    return made


@pytest.fixture(autouse=True)
def small_batches(monkeypatch):
    """Two sequences run together."""
    monkeypatch.setattr(divergence_module, "FORWARD_TOKENS", 45)


@pytest.fixture
def reads(monkeypatch):
    """The layers that were read, one after another."""
    found, original = [], OpenModel.load_layer

    def load_layer(opened, number):
        found.append(number)
        original(opened, number)

    monkeypatch.setattr(OpenModel, "load_layer", load_layer)
    return found


def half(opened):
    return {
        layer: range(block.mixture.num_experts // 2, block.mixture.num_experts)
        if block.mixture.num_groups == 1
        else range(block.mixture.num_experts)
        for layer, block in opened.mixtures.items()
    }


def told(model, streamed):
    """What a model says, and what leaving half of its experts out costs."""
    with open_model(model, load=False) as opened:
        opened.load_rest()
        with resident(opened, streamed):
            targets = remember(opened, text(), Silent())
            return targets, measure_masked(opened, half(opened), targets, Silent(), "half")


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("in_memory", [1 << 20, 1], ids=["in memory", "in a file"])
def test_a_layer_at_a_time_every_family_says_what_it_says_as_a_whole(
    tiny_model, monkeypatch, family, in_memory
):
    monkeypatch.setattr(module, "IN_MEMORY", in_memory)
    whole, cost = told(tiny_model(family), streamed=False)
    found, same_cost = told(tiny_model(family), streamed=True)
    for one, two in zip(whole.held, found.held, strict=True):
        assert torch.equal(one.ids, two.ids) and torch.equal(one.logprobs, two.logprobs)
    for one, two in zip(cost.values, same_cost.values, strict=True):
        np.testing.assert_array_equal(one, two)
    assert same_cost.domains == cost.domains
    assert [len(v) for v in cost.values] == [s.positions for s in text()]


def test_every_keep_set_is_one_read_of_the_layers(tiny_model, reads):
    with open_model(tiny_model("mixtral"), load=False) as opened:
        opened.load_rest()
        with resident(opened, streamed=True):
            targets = remember(opened, text(), Silent())
            assert reads == [0, 1]
            masks = {"a": [0, 1], "b": [1, 2], "same as a": [0, 1]}
            candidates = {n: Candidate(dict.fromkeys(opened.mixtures, m)) for n, m in masks.items()}
            choose_by_measurement(opened, candidates, targets, Silent())
            assert reads == [0, 1] * 3
            assert all(p.is_meta for p in opened.layers.parameters())
            opened.model(input_ids=torch.tensor([[3, 4]]), use_cache=False)
            assert reads == [0, 1] * 4


def test_who_is_left_is_measured_in_one_read_of_the_layers(tiny_model, reads, monkeypatch):
    monkeypatch.setattr("edgekit.distill.chunks.BATCH_TOKENS", 45)
    calibration = [TokenSequence(s.tokens, s.domain, False) for s in text()]
    found = []
    for streamed in (False, True):
        with open_model(tiny_model("mixtral"), load=False) as opened:
            opened.load_rest()
            with resident(opened, streamed):
                reads.clear()
                found.append(collect_masked(opened, calibration, half(opened), Silent()))
                assert reads == ([0, 1] if streamed else [])
    for name in ARRAYS:
        np.testing.assert_array_equal(*(getattr(f, name) for f in found), err_msg=name)


def test_a_model_in_memory_is_as_it_was_afterwards_and_reads_nothing(tiny_mixtral, reads):
    with open_model(tiny_mixtral) as opened, torch.inference_mode():
        ids = torch.tensor([[3, 4, 5]])
        before = opened.model(ids, use_cache=False).logits
        reads.clear()
        measure_masked(opened, None, remember(opened, text(), Silent()), Silent(), "it")
        assert torch.equal(opened.model(ids, use_cache=False).logits, before) and not reads


@pytest.mark.parametrize("family", FAMILIES)
def test_the_head_in_parts_says_what_transformers_says(tiny_model, monkeypatch, family):
    monkeypatch.setattr(head_module, "CHUNK_BYTES", 7 * 4 * 512)  # seven positions
    with open_model(tiny_model(family)) as opened:
        whole = remember(opened.model, text(), Silent())
        parts = remember(opened, text(), Silent())
        for one, two in zip(whole.held, parts.held, strict=True):
            dense = [torch.zeros(len(t), 512).scatter(1, t.ids, t.logprobs) for t in (one, two)]
            torch.testing.assert_close(*dense, atol=1e-4, rtol=1e-4)
        with masked(opened, half(opened)):
            expected = measure(opened.model, whole, Silent())
            found = measure(opened, whole, Silent())
    for one, two in zip(expected.values, found.values, strict=True):
        np.testing.assert_allclose(one, two, atol=1e-5, rtol=1e-4)
    for one, two in zip(expected.accepted, found.accepted, strict=True):
        np.testing.assert_allclose(one, two, atol=1e-4)
