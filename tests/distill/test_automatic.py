"""Masks cost what pruning costs, and the choice among them follows what was measured."""

import numpy as np
import pytest
import torch

from edgekit.checkpoint import Checkpoint
from edgekit.distill.automatic import Candidate, choose_by_measurement
from edgekit.distill.divergence import Measured, held_out_sequences, measure, remember
from edgekit.distill.masked import masked, measure_masked
from edgekit.distill.open_model import open_model
from edgekit.distill.prune import write_pruned
from edgekit.errors import BadInputError
from edgekit.progress import Silent
from edgekit.sequences import TokenSequence

IDS = torch.arange(3, 43)[None]
EIGHT = {
    "num_local_experts": 8, "num_experts": 8, "n_routed_experts": 8, "n_group": 2, "topk_group": 1,
}  # fmt: skip


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


FAMILIES = ["mixtral", "deepseek_v3", "gpt_oss", "gemma4_text", "llama4_text", "phimoe"]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_masked_model_is_the_pruned_one(tiny_model, tmp_path, family):
    directory = tiny_model(family, **EIGHT)
    with Checkpoint(directory) as checkpoint:
        sparse = [layer.index for layer in checkpoint.architecture.layers if layer.mixture]
        # of two groups, where there are some, two experts each
        kept = {layer: ([0, 3, 5, 6], [1, 2, 4, 7])[layer % 2] for layer in sparse}
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


def test_the_keep_set_without_the_planted_dead_experts_wins(tiny_model):
    with open_model(tiny_model("gpt_oss", num_local_experts=8, num_experts=8)) as teacher:
        for block in teacher.mixtures.values():
            block.router_bias[[2, 5]] = -1e4  # no token ever chooses them
        targets = remember(teacher.model, sequences(), Silent())
        masks = {
            "first": keep(teacher, 0, 1, 2, 3, 4, 5),
            "alive": keep(teacher, 0, 1, 3, 4, 6, 7),
            "last": keep(teacher, 2, 3, 4, 5, 6, 7),
            "same": keep(teacher, 7, 6, 4, 3, 1, 0),
        }
        candidates = {name: Candidate(mask) for name, mask in masks.items()}
        candidates["random 0"] = Candidate(keep(teacher, 0, 2, 4, 5, 6, 7), control=True)
        report = choose_by_measurement(teacher, candidates, targets, Silent())
    found = {c.name: c for c in report.candidates}
    assert report.chosen == "alive" and report.tied == ["alive", "same"]
    assert found["alive"].divergence.worst < 1e-6 < 1e-2 < found["first"].divergence.worst
    assert found["same"].same_as == "alive"
    assert report.beats_chance and report.sequences == {"high": 6, "low": 6}
    worst = [c.divergence.worst for c in report.candidates]
    assert worst == sorted(worst)


def choose_among(monkeypatch, costs, controls=()):
    """The report when each candidate costs, in each domain, what ``costs`` says per sequence."""
    import edgekit.distill.automatic as module

    def measured(_opened, _mask, _targets, _progress, name):
        domains = [d for d, values in costs[name].items() for _ in values]
        values = [np.full(4, v) for values in costs[name].values() for v in values]
        return Measured(tuple(domains), tuple(values))

    monkeypatch.setattr(module, "measure_masked", measured)
    candidates = {
        name: Candidate({0: [number]}, name in controls) for number, name in enumerate(costs)
    }
    return module.choose_by_measurement(None, candidates, None, Silent())


HARD = np.linspace(0.1, 1.0, 8)  # what makes a sequence hard is hard for every candidate


def test_the_worst_domain_counts_more_than_the_mean(monkeypatch):
    costs = {
        "even": {"code": HARD, "prose": HARD},
        "uneven": {"code": HARD * 0.1, "prose": HARD * 1.3},
    }
    report = choose_among(monkeypatch, costs)
    assert report.chosen == "even" and report.tied == ["even"]
    assert "0.5500 nats per token on its worst domain, code" in report.reason


def test_what_cannot_be_told_apart_on_the_worst_domain_is_told_apart_by_the_mean(monkeypatch):
    noise = np.tile([0.05, -0.05], 4)
    costs = {
        "best by chance": {"code": HARD + noise - 0.001, "prose": HARD * 0.9},
        "better mean": {"code": HARD - noise, "prose": HARD * 0.5},
    }
    report = choose_among(monkeypatch, costs)
    assert report.chosen == "better mean" and len(report.tied) == 2


def test_too_few_sequences_for_a_comparison_leave_no_ties_and_are_told(monkeypatch):
    costs = {
        "lower": {"code": HARD[:4] - 0.001, "prose": HARD[:5] * 0.2},
        "higher": {"code": HARD[:4] + 0.001, "prose": HARD[:5] * 0.1},
        "random 0": {"code": HARD[:4] + 9, "prose": HARD[:5]},
    }
    report = choose_among(monkeypatch, costs, controls=["random 0"])
    assert report.tied == ["lower"] and report.beats_chance is None
    assert "Fewer than 5 held-out sequences of code: " in report.reason
    costs = {name: {"code": HARD + values["code"][0]} for name, values in costs.items()}
    report = choose_among(monkeypatch, costs, controls=["random 0"])
    assert report.beats_chance is True and "Fewer" not in report.reason


def test_a_control_that_wins_is_not_chosen_but_told(monkeypatch):
    costs = {"reap": {"code": HARD}, "random 0": {"code": HARD * 0.8}}
    report = choose_among(monkeypatch, costs, controls=["random 0"])
    assert report.chosen == "reap" and report.beats_chance is False
    assert "random choice" in report.reason


def test_a_domain_without_held_out_text_is_refused():
    text = [*sequences(), TokenSequence(np.arange(9, dtype=np.int32), "math", False)]
    with pytest.raises(BadInputError, match="'math' has no held-out sequence"):
        held_out_sequences(text)
    assert len(held_out_sequences(sequences(), per_domain=4)) == 8


def test_large_vocabularies_are_remembered_in_part_and_bound_the_divergence(
    teacher, targets, monkeypatch
):
    import edgekit.distill.divergence as module

    monkeypatch.setattr(module, "EXACT_BYTES", 0)
    monkeypatch.setattr(module, "REMEMBERED", 128)
    partly = remember(teacher.model, sequences(), Silent())
    assert (targets.top_k, partly.top_k) == (512, 128)
    with masked(teacher, keep(teacher, 0, 1, 2)):
        whole = measure(teacher.model, targets, Silent()).divergence().all.value
        bound = measure(teacher.model, partly, Silent()).divergence().all.value
    assert 0.3 * whole < bound < whole
