"""Criteria are their formulas, and the choice keeps to the router's rules."""

import dataclasses

import numpy as np
import pytest
from pydantic import ValidationError

from edgekit.distill.criteria import CRITERIA, scores
from edgekit.distill.keep import choose, enough_text, require_count, super_experts
from edgekit.distill.skew import gini, skew
from edgekit.distill.statistics import ARRAYS, Statistics, StatisticsInfo
from edgekit.errors import BadInputError
from edgekit.recipe import ShrinkSection


class Router:
    """The part of a mixture that the choice reads."""

    def __init__(self, experts, top_k=2, groups=1, top_groups=1, group_score="top2"):
        self.num_experts, self.num_experts_per_tok = experts, top_k
        self.num_groups, self.top_groups, self.group_score = groups, top_groups, group_score
        self.num_identities = 0


def made(layers=4, experts=8, domains=2, seed=0, **changes):
    """Statistics of drawn tokens: every expert has gates and norms of its own."""
    rng = np.random.default_rng(seed)
    shape = (layers, 2, domains, experts)
    arrays = dict.fromkeys(ARRAYS, np.zeros(1))
    count = rng.integers(1, 50, shape)
    arrays |= {
        "tokens": count,
        "gate_sum": count * rng.uniform(0.1, 1, shape),
        "norm_sum": count * rng.uniform(1, 3, shape),
        "norm_sq_sum": count * rng.uniform(4, 9, shape),
        "gated_sum": count * rng.uniform(0.1, 2, shape),
        "gated_sq_sum": count * rng.uniform(0.1, 2, shape),
        "output_max": np.ones(shape),  # nothing stands out
        "seen": np.full((2, domains), 100),
    }
    arrays |= changes
    names = tuple(f"d{i}" for i in range(domains))
    info = StatisticsInfo(
        checkpoint="c", sequences="s", model_type="m", layers=tuple(range(layers)), domains=names,
        chunks=(0,), total_chunks=1,
    )  # fmt: skip
    return Statistics(info, **arrays)


def test_criteria_are_their_formulas():
    statistics = made()
    n, g, f, f2, gf = (
        getattr(statistics, name).sum((1, 2))
        for name in ("tokens", "gate_sum", "norm_sum", "norm_sq_sum", "gated_sum")
    )
    expected = {
        "reap": gf / n, "ean": f, "gated_ean": gf, "man": f / n, "msan": f2 / n, "frequency": n,
        "cp": g / n, "acp": g / n * np.sqrt(f2 / n),
    }  # fmt: skip
    for name, values in expected.items():
        np.testing.assert_allclose(scores(statistics, name), values, err_msg=name)
    one, again, other = (scores(statistics, "random", seed) for seed in (1, 1, 2))
    assert np.array_equal(one, again) and not np.array_equal(one, other)


def test_coverage_takes_the_favourites_of_every_domain_in_turn():
    gated = np.zeros((1, 2, 2, 6))
    gated[0, :, 0] = [9, 8, 7, 1, 1, 1]
    gated[0, :, 1] = [0, 0, 0, 2, 3, 4]
    statistics = made(1, 6, tokens=np.ones((1, 2, 2, 6), int), gated_sum=gated)
    kept = choose(statistics, Router(6), 4, "coverage").kept[0]
    assert kept == [0, 1, 4, 5]
    assert choose(statistics, Router(6), 3, "reap").kept[0] == [0, 1, 2]


@pytest.mark.parametrize("criterion", [c for c in CRITERIA if c != "random"])
def test_an_expert_that_nothing_reaches_goes_first(criterion):
    statistics = made()
    arrays = {}
    for name in ("tokens", "gate_sum", "norm_sum", "norm_sq_sum", "gated_sum", "output_max"):
        arrays[name] = getattr(statistics, name).copy()
        arrays[name][..., 3] = 0
    choice = choose(dataclasses.replace(statistics, **arrays), Router(8), 7, criterion)
    assert all(kept == [0, 1, 2, 4, 5, 6, 7] for kept in choice.kept.values())


def test_a_super_expert_stays_whatever_it_is_worth():
    statistics = made(8, 64)
    largest, gated = statistics.output_max.copy(), statistics.gated_sum.copy()
    largest[2, :, :, 5] *= 20
    gated[2, :, :, 5] = 0
    largest[7, :, :, 9] *= 20  # in the last quarter: common there, and harmless
    planted = dataclasses.replace(statistics, output_max=largest, gated_sum=gated)
    assert super_experts(planted) == {2: [5]}
    choice = choose(planted, Router(64), 32, "reap")
    assert choice.protected == {2: [5]} and 5 in choice.kept[2]


def test_survivors_are_in_their_order_and_ties_go_by_number():
    same = made(2, 8, gated_sum=np.ones((2, 2, 2, 8)), tokens=np.ones((2, 2, 2, 8), int))
    assert choose(same, Router(8), 3, "reap").kept == {0: [0, 1, 2], 1: [0, 1, 2]}
    for kept in choose(made(), Router(8), 5, "man").kept.values():
        assert kept == sorted(set(kept)) and len(kept) == 5


def test_every_group_of_a_router_loses_the_same_number():
    choice = choose(made(4, 16), Router(16, top_k=3, groups=4, top_groups=2), 12, "reap")
    for kept in choice.kept.values():
        assert np.bincount(np.array(kept) // 4).tolist() == [3, 3, 3, 3]
    worth = scores(made(4, 16), "reap")[0].reshape(4, 4)
    expected = [g * 4 + e for g in range(4) for e in range(4) if e != worth[g].argmin()]
    assert choice.kept[0] == expected


@pytest.mark.parametrize(
    ("router", "keep", "sentence"),
    [
        (Router(8, 2), 1, "choose among 1, fewer than its 2"),
        (Router(16, 4, 4, 2), 10, "do not divide into the router's 4 groups; keep 8 or 12"),
        (Router(16, 4, 4, 2), 4, "keep at least 8"),
        (Router(16, 2, 4, 2), 4, "keep at least 8"),  # a group is rated by its best two
    ],
)
def test_counts_that_the_router_cannot_work_with_are_refused(router, keep, sentence):
    with pytest.raises(BadInputError, match=sentence):
        require_count(router, keep)


def test_an_earlier_choice_changes_only_where_another_expert_is_clearly_better():
    gated = np.ones((1, 2, 1, 6)) * np.array([10, 9, 8, 7.9, 7.8, 1])
    statistics = made(1, 6, 1, tokens=np.ones((1, 2, 1, 6), int), gated_sum=gated)
    previous = {0: [0, 1, 4]}  # 4 is worth 2.5 % less than 2 and stays
    choice = choose(statistics, Router(6), 3, "reap", previous=previous)
    assert choice.kept == {0: [0, 1, 4]} and choice.exchanged == {0: []}
    choice = choose(statistics, Router(6), 3, "reap", previous=previous, margin=0.02)
    assert choice.kept == {0: [0, 1, 2]} and choice.exchanged == {0: [2]}
    choice = choose(statistics, Router(6), 3, "reap", previous={0: [0, 1, 5]})
    assert choice.kept == {0: [0, 1, 2]}


def test_halves_of_the_text_say_whether_it_is_enough():
    def chosen(gated, keep=4, criterion="reap"):
        statistics = made(2, 8, 1, tokens=np.ones((2, 2, 1, 8), int), gated_sum=gated)
        choice = choose(statistics, Router(8), keep, criterion)
        return choice.overlap, enough_text(choice, statistics)

    gated = np.tile(np.arange(8.0, 0, -1), (2, 2, 1, 1))
    overlap, (note,) = chosen(gated)
    assert overlap == [1.0, 1.0] and "it is enough" in note
    assert chosen(gated, keep=8) == ([], [])  # nothing was chosen
    assert chosen(gated, criterion="random") == ([], [])
    gated = gated.copy()
    gated[:, 1] = gated[:, 1, :, ::-1] * 1.1  # the other half says the opposite
    overlap, (note,) = chosen(gated)
    assert overlap == [0.0, 0.0] and "partly noise" in note


def test_a_text_with_one_half_says_nothing_but_that_it_is_too_little():
    statistics = made(seen=np.array([[100, 100], [0, 0]]))
    choice = choose(statistics, Router(8), 4, "reap")
    (note,) = enough_text(choice, statistics)
    assert choice.overlap == [] and "one half of it has no tokens" in note


def test_a_criterion_that_rates_all_alike_is_told():
    """As the mean gate does where every gate is 1."""
    tokens = np.ones((2, 2, 2, 8), int)
    tokens[..., 7] = 0  # what nothing reaches is worth less, and that is no tie
    gates = np.where(tokens > 0, 1.0, 0.0)
    gates[1] *= np.linspace(1, 2, 8)
    statistics = made(2, 8, tokens=tokens, gate_sum=gates)
    choice = choose(statistics, Router(8), 4, "cp")
    alike, agreement = enough_text(choice, statistics)
    assert choice.tied == (0,) and "cp rates all experts alike in layers 0" in alike
    assert "it is enough" in agreement
    assert choose(statistics, Router(8), 7, "cp").tied == ()  # what goes is what nothing reaches
    gates[1] = gates[0]
    statistics = dataclasses.replace(statistics, gate_sum=gates)
    (alike,) = enough_text(choose(statistics, Router(8), 4, "cp"), statistics)
    assert "every layer" in alike


def test_skew_is_none_for_equal_use_and_all_for_one_expert():
    assert gini(np.ones(8) / 8) == pytest.approx(0)
    assert gini(np.array([0, 0, 0, 1.0])) == pytest.approx(0.75)  # 1 - 1/n
    even = skew(made(2, 8, tokens=np.full((2, 2, 2, 8), 5)))
    assert not even.uneven and "not justified" in even.sentence
    assert even.entropy == pytest.approx([1, 1]) and even.top_share == pytest.approx([0.25, 0.25])
    tokens = np.zeros((2, 2, 2, 8), int)
    tokens[..., 1] = 5
    assert skew(made(2, 8, tokens=tokens)).uneven


def test_an_unknown_criterion_is_refused_by_name():
    with pytest.raises(ValidationError, match="'gated_ean'"):
        ShrinkSection(keep=0.5, criterion="best")
