"""The published rules group experts as naive transcriptions of them do."""

import itertools

import numpy as np
import pytest

from edgekit.distill.merge_groups import (
    METHODS,
    Evidence,
    group_experts,
    hc_smoe_groups,
    m_smoe_groups,
    ream_group_size,
    ream_groups,
)
from edgekit.errors import BadInputError


def measured(experts, seed=0, tokens=40, hidden=5):
    """Evidence of random experts, and the router logits [T, E] that it came from."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(tokens, experts)) + rng.normal(size=experts)
    used = rng.integers(1, 10 * experts, experts).astype(np.float64)
    gated, mean = rng.normal(size=(2, experts, hidden))
    found = Evidence(used, rng.random(experts), gated, mean, logits.T @ logits)
    return found, logits


def part_of(found, experts):
    """The evidence of some experts, as if there were no others."""
    pairs = np.array([[found.logit_gram[a, b] for b in experts] for a in experts])
    values = (found.tokens, found.saliency, found.gated_output, found.mean_output)
    return Evidence(*(np.array([value[e] for e in experts]) for value in values), pairs)


def partition(groups):
    return {frozenset(group) for group in groups}


def ream_by_hand(found, logits, keep, limit):
    """From the most salient centre on, each takes the most similar expert that is left, one after
    another, until it has ``limit`` members."""
    experts = range(len(found.tokens))
    columns = [logits[:, e] / np.linalg.norm(logits[:, e]) for e in experts]
    furthest = max(np.linalg.norm(a - b) for a in columns for b in columns)

    def similarity(a, b):
        one, other = found.gated_output[a], found.gated_output[b]
        cosine = one @ other / np.linalg.norm(one) / np.linalg.norm(other)
        near = 1 - np.linalg.norm(columns[a] - columns[b]) / furthest
        return ((1 + cosine) / 2 + near) / 2

    order = sorted(experts, key=lambda e: -found.saliency[e])
    left = order[keep:]
    groups = []
    for centre in order[:keep]:
        group = [centre]
        while left and len(group) < limit:
            best = max(left, key=lambda e: similarity(centre, e))
            left.remove(best)
            group.append(best)
        groups.append(group)
    assert not left
    return groups


@pytest.mark.parametrize(
    ("experts", "keep", "limit"), [(8, 6, 2), (16, 12, 2), (16, 8, 3), (32, 16, 4), (128, 96, 16)]
)
def test_ream_walks_from_the_most_salient_centre_and_fills_its_group(experts, keep, limit):
    for seed in range(5):
        found, logits = measured(experts, seed)
        assert ream_groups(found, keep) == ream_by_hand(found, logits, keep, limit)


def test_reams_groups_have_the_published_size_and_most_stay_single():
    assert [ream_group_size(e, e * 3 // 4) for e in (64, 128, 256)] == [8, 16, 32]
    for experts, keep in itertools.product((4, 8, 16, 60, 128), range(1, 129)):
        if keep <= experts:
            limit = ream_group_size(experts, keep)
            assert keep * (limit - 1) >= experts - keep  # there is a place for everyone
            filled = -(-(experts - keep) // (limit - 1))
            assert filled <= -(-keep // 2)


def linkage_by_hand(features, keep):
    """Join the two clusters with the least mean distance between their members, again and again."""
    clusters = [[e] for e in range(len(features))]
    while len(clusters) > keep:
        a, b = min(
            itertools.combinations(clusters, 2),
            key=lambda pair: np.mean(
                [np.linalg.norm(features[i] - features[j]) for i in pair[0] for j in pair[1]]
            ),
        )
        clusters = [c for c in clusters if c not in (a, b)] + [a + b]
    return clusters


@pytest.mark.parametrize("experts", [2, 5, 9])
def test_hc_smoe_clusters_are_those_of_an_exhaustive_average_linkage(experts):
    for seed, keep in itertools.product(range(5), range(1, experts + 1)):
        found, _ = measured(experts, seed)
        groups = hc_smoe_groups(found, keep)
        assert partition(groups) == partition(linkage_by_hand(found.mean_output, keep))
        for group in groups:
            assert found.tokens[group[0]] == max(found.tokens[group])


def test_m_smoe_joins_each_expert_to_the_centre_whose_router_logits_are_most_like_its_own():
    for seed, keep in itertools.product(range(5), (1, 3, 6)):
        found, logits = measured(8, seed)
        order = sorted(range(8), key=lambda e: -found.tokens[e])
        unit = logits / np.linalg.norm(logits, axis=0)
        expected = {centre: [centre] for centre in order[:keep]}
        for expert in order[keep:]:
            expected[max(expected, key=lambda c: unit[:, c] @ unit[:, expert])].append(expert)
        assert m_smoe_groups(found, keep) == list(expected.values())


@pytest.mark.parametrize("method", METHODS)
def test_every_expert_is_in_one_group_and_weights_are_shares(method):
    for seed, keep in itertools.product(range(3), range(1, 13)):
        found, _ = measured(12, seed)
        groups = group_experts(found, method, keep)
        worth = found.saliency if method == "ream" else found.tokens
        assert len(groups) == keep
        assert sorted(e for group in groups for e in group.members) == list(range(12))
        assert [g.centre for g in groups] == sorted(g.centre for g in groups)
        for group in groups:
            members = list(group.members)
            np.testing.assert_allclose(group.weights, worth[members] / worth[members].sum())


@pytest.mark.parametrize("method", METHODS)
def test_keeping_all_makes_groups_of_one(method):
    found, _ = measured(6)
    groups = group_experts(found, method, 6)
    assert [(g.members, g.weights) for g in groups] == [((e,), (1.0,)) for e in range(6)]


@pytest.mark.parametrize("method", METHODS)
def test_experts_that_nothing_is_known_of_are_averaged_equally(method):
    nothing = Evidence(*np.zeros((2, 4)), *np.zeros((2, 4, 3)), np.zeros((4, 4)))
    groups = group_experts(nothing, method, 2)
    assert sorted(e for group in groups for e in group.members) == [0, 1, 2, 3]
    for group in groups:
        assert group.weights == pytest.approx([1 / len(group.members)] * len(group.members))


@pytest.mark.parametrize("method", METHODS)
def test_the_groups_of_a_router_lose_as_many_and_know_nothing_of_each_other(method):
    found, _ = measured(12)
    groups = group_experts(found, method, 6, router_groups=3)
    for first in (0, 4, 8):
        part = group_experts(part_of(found, range(first, first + 4)), method, 2)
        mine = [g for g in groups if first <= g.centre < first + 4]
        assert [tuple(e - first for e in g.members) for g in mine] == [g.members for g in part]
        assert [g.weights for g in mine] == [g.weights for g in part]


@pytest.mark.parametrize("method", METHODS)
def test_protected_experts_stay_alone_and_the_rest_is_grouped_as_if_they_were_not_there(method):
    found, _ = measured(10)
    rest = np.array([0, 1, 3, 4, 5, 7, 8, 9])
    groups = group_experts(found, method, 6, verbatim=[2, 6])
    assert {(2,), (6,)} <= {g.members for g in groups}
    part = group_experts(part_of(found, rest), method, 4)
    assert {g.members for g in groups} - {(2,), (6,)} == {
        tuple(rest[list(g.members)].tolist()) for g in part
    }


def test_what_cannot_be_grouped_is_refused():
    found, _ = measured(8)
    with pytest.raises(BadInputError, match=r"5 of 8 experts cannot be kept.* multiple of 4"):
        group_experts(found, "ream", 5, router_groups=4)
    with pytest.raises(BadInputError, match="3 experts of 8 are protected and 3 are to be kept"):
        group_experts(found, "hc_smoe", 3, verbatim=[0, 1, 2])
    with pytest.raises(BadInputError, match="3 experts of 4 are protected and 2 are to be kept"):
        group_experts(found, "m_smoe", 4, router_groups=2, verbatim=[0, 1, 2])
