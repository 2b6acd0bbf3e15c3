"""The recommendation follows what was measured."""

from edgekit.bootstrap import Interval
from edgekit.distill.automatic import AutomaticReport, CandidateResult
from edgekit.distill.comparison import Size, points, recommend
from edgekit.distill.divergence import Divergence


def size(experts, share, **worst):
    """A table of criteria and the KL of each on its worst domain."""
    candidates = [
        CandidateResult(
            name=name, control=name.startswith("random"), same_as="",
            divergence=Divergence(
                all=Interval(value=value / 2),
                domains={"a": Interval(value=value, low=value - 0.01), "b": Interval(value=0.0)},
            ),
        )
        for name, value in worst.items()
    ]  # fmt: skip
    eligible = [c for c in candidates if not c.control]
    best = min(eligible, key=lambda c: c.divergence.worst)
    table = AutomaticReport(
        chosen=best.name, reason="", tied=[best.name], beats_chance=True, candidates=candidates,
        sequences={"a": 1},
    )  # fmt: skip
    return Size(experts=experts, share=share, table=table)


def test_the_smallest_size_below_the_limit_is_recommended():
    sizes = [
        size(12, 0.8, reap=0.1, man=0.2),
        size(8, 0.6, reap=0.4, man=0.29),
        size(4, 0.4, man=0.9),
    ]
    found = recommend(sizes, 16, uneven=True)
    assert found.startswith("8 of 16 experts by man: 60% of the parameters for 0.290")
    assert "useful" in found
    assert "hardly told apart" in recommend([size(12, 0.8, reap=0.04)], 16, uneven=True)


def test_nothing_is_left_out_where_it_costs_too_much_or_experts_are_used_alike():
    found = recommend([size(12, 0.8, reap=0.7)], 16, uneven=True)
    assert found.startswith("keep all 16 experts") and "0.700" in found
    assert "used too evenly" in recommend([size(12, 0.8, reap=0.01)], 16, uneven=False)


def test_a_domain_with_too_few_sequences_has_a_point_without_an_interval():
    from types import SimpleNamespace

    made = points(SimpleNamespace(sizes=[size(12, 0.8, reap=0.1, random=3.0)]))
    assert [(p["criterion"], p["worst"], p["low"], p["high"]) for p in made] == [
        ("reap", 0.1, 0.1, 0.1), ("random", 3.0, 3.0, 3.0),
    ]  # fmt: skip
    assert [p["control"] for p in made] == [False, True]
