"""Masks cost what pruning costs, and the choice among them follows what was measured."""

import numpy as np
import pytest
import torch

from edgekit.checkpoint import Checkpoint
from edgekit.distill.automatic import Candidate, choose_by_measurement
from edgekit.distill.divergence import remember
from edgekit.distill.masked import masked, measure_masked
from edgekit.distill.open_model import open_model
from edgekit.distill.prune import write_pruned
from edgekit.errors import BadInputError
from edgekit.progress import Silent
from edgekit.sequences import TokenSequence

IDS = torch.arange(3, 43)[None]


def sequences(per_domain=6, held_out=True):
    """Two domains that use different halves of the vocabulary."""
    rng = np.random.default_rng(2)
    return [
        TokenSequence(rng.integers(low, low + 240, 20).astype(np.int32), domain, held_out)
        for domain, low in (("low", 3), ("high", 260))
        for _ in range(per_domain)
    ]


@pytest.fixture
def teacher(tiny_model):
    with open_model(tiny_model("mixtral", num_local_experts=8, num_experts=8)) as opened:
        yield opened


@pytest.fixture
def targets(teacher):
    return remember(teacher.model, sequences(), Silent())


def keep(opened, *experts):
    return {layer: list(experts) for layer in opened.mixtures}


def test_the_mask_of_all_experts_costs_nothing(teacher, targets):
    for mask in (None, keep(teacher, *range(8))):
        found = measure_masked(teacher, mask, targets, Silent(), "all").divergence()
        assert abs(found.all.value) < 1e-6


def test_the_divergence_is_the_kl_over_the_whole_vocabulary(teacher, targets):
    mask = keep(teacher, 1, 4, 5, 6)
    found = measure_masked(teacher, mask, targets, Silent(), "mask").divergence()
    expected = {"low": [], "high": []}
    with torch.no_grad():
        for sequence in targets.sequences:
            ids = torch.from_numpy(sequence.tokens.astype(np.int64))[None]
            p = teacher.model(ids, use_cache=False).logits[0].double().log_softmax(-1)
            with masked(teacher, mask):
                q = teacher.model(ids, use_cache=False).logits[0].double().log_softmax(-1)
            expected[sequence.domain].append((p.exp() * (p - q)).sum(-1).mean().item())
    for domain, values in expected.items():
        assert found.domains[domain].value == pytest.approx(np.mean(values), rel=1e-4)
        assert found.domains[domain].low < found.domains[domain].value
    assert found.worst == max(found.domains[d].value for d in expected)


@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe"])
def test_a_masked_model_is_the_pruned_one(tiny_model, tmp_path, family):
    directory = tiny_model(family, num_local_experts=8, num_experts=8)
    kept = {0: [0, 2, 3, 7], 1: [1, 2, 4, 5]}
    with Checkpoint(directory) as checkpoint:
        write_pruned(checkpoint, kept, tmp_path, Silent())
    with (
        open_model(directory) as opened,
        open_model(tmp_path) as pruned,
        masked(opened, kept),
        torch.no_grad(),
    ):
        found = opened.model(IDS, use_cache=False).logits
        expected = pruned.model(IDS, use_cache=False).logits
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_a_mask_is_lifted_when_its_measurement_fails(teacher):
    with pytest.raises(RuntimeError), masked(teacher, keep(teacher, 0, 1)):
        raise RuntimeError
    assert all(block.allowed is None for block in teacher.mixtures.values())


def test_a_mask_below_top_k_is_refused(teacher, targets):
    with pytest.raises(BadInputError, match="1 experts would stay, fewer than the 2"):
        measure_masked(teacher, keep(teacher, 3), targets, Silent(), "mask")


def test_the_planted_best_mask_wins_and_the_worst_domain_is_named(teacher):
    domains = sequences()
    with torch.no_grad():
        for block in teacher.mixtures.values():
            for silent in (6, 7):  # they add nothing, and the rest divides their gates anew
                block.down[silent] = 0.0
    targets = remember(teacher.model, domains, Silent())
    masks = {
        "first": keep(teacher, 0, 1, 2, 3, 4, 5),
        "last": keep(teacher, 2, 3, 4, 5, 6, 7),
        "middle": keep(teacher, 1, 2, 3, 4, 5, 6),
        "again": keep(teacher, 5, 4, 3, 2, 1, 0),
    }
    candidates = {name: Candidate(mask) for name, mask in masks.items()}
    candidates["random"] = Candidate(keep(teacher, 0, 2, 4, 5, 6, 7), control=True)
    report = choose_by_measurement(teacher, candidates, targets, Silent())
    found = {c.name: c.divergence for c in report.candidates}
    means = {name: found[name].all.value for name in masks}
    assert report.chosen == min(means, key=means.get)
