"""Prefixes of an order of experts, measured and healed beside keep-sets chosen for one size."""

import numpy as np
import pytest
import torch

from edgekit.distill.cache import LogitCache
from edgekit.distill.capture import CaptureOptions, capture
from edgekit.distill.collect import collect
from edgekit.distill.criteria import scores
from edgekit.distill.divergence import remember
from edgekit.distill.keep import choose, super_experts
from edgekit.distill.masked import measure_masked
from edgekit.distill.nested import (
    NestedReport,
    compare,
    compare_healed,
    order_experts,
    prefix,
    ranked_by,
)
from edgekit.distill.open_model import open_model
from edgekit.progress import Silent
from edgekit.recipe import DistillSection
from edgekit.sequences import FILE_NAME, TokenSequence, write_sequences

EIGHT = {"num_local_experts": 8, "num_experts": 8}
SIZES = (8, 6, 4)


@pytest.fixture(scope="module")
def text():
    """Few tokens, so that what is learnt from some sequences holds for others."""
    rng = np.random.default_rng(1)
    return [
        TokenSequence(rng.integers(3, 9, 16).astype(np.int32), "ab"[i % 2], i % 8 > 5)
        for i in range(96)
    ]


@pytest.fixture(scope="module")
def teacher(tiny_model):
    return tiny_model("mixtral", **EIGHT)


@pytest.fixture(scope="module")
def statistics(teacher, text, tmp_path_factory):
    return collect(teacher, text, tmp_path_factory.mktemp("scratch"), Silent())


@pytest.fixture(scope="module")
def order(statistics):
    """By REAP, without measuring anew."""

    def ranking(left, _):
        return ranked_by(scores(statistics, "reap"), statistics.layers, left, {1: [6]})

    return order_experts(statistics.layers, 8, SIZES, ranking)


def test_every_prefix_is_part_of_the_next_and_the_last_is_everything(order):
    for experts in order.values():
        assert sorted(experts) == list(range(8))
    small, middle = prefix(order, 4), prefix(order, 6)
    assert all(middle[layer][:4] == small[layer] for layer in order)
    assert order[1][0] == 6  # protected


def test_without_measuring_anew_prefixes_are_the_keep_sets_of_their_size(teacher, statistics, text):
    def ranking(left, _):
        protected = super_experts(statistics)  # as the keep-sets protect
        return ranked_by(scores(statistics, "reap"), statistics.layers, left, protected)

    order = order_experts(statistics.layers, 8, SIZES, ranking)
    with open_model(teacher) as opened:
        mixture = opened.architecture.moe
        separate = {size: choose(statistics, mixture, size, "reap").kept for size in SIZES}
        targets = remember(opened.model, [s for s in text if s.held_out], Silent())
        rows = compare(opened, order, separate, targets, Silent())
        direct = measure_masked(opened, separate[4], targets, Silent(), "4").divergence()
    assert [row.experts for row in rows] == [8, 6, 4]
    assert [row.share for row in rows] == [1.0, 0.75, 0.5]
    assert abs(rows[0].prefix.all.value) < 1e-6
    assert rows[1].prefix.all.value < rows[2].prefix.all.value
    assert rows[0].healed is None and rows[0].healed_separate is None
    assert rows[2].separate == direct
    for row in rows:
        assert row.shared_experts == 1.0
        assert row.prefix.all.value == pytest.approx(row.separate.all.value, abs=1e-6)


def test_an_expert_that_must_stay_is_in_every_prefix_and_costs_what_it_displaces(
    teacher, statistics, text, order
):
    with open_model(teacher) as opened:
        kept = choose(statistics, opened.architecture.moe, 4, "reap").kept
        targets = remember(opened, [s for s in text if s.held_out], Silent())
        (row,) = compare(opened, order, {4: kept}, targets, Silent())
    assert 6 not in kept[1]  # by its worth it would go
    assert row.shared_experts == 7 / 8
    assert row.prefix.all.value != row.separate.all.value


def test_healing_is_compared_and_leaves_the_teacher_as_it_was(
    teacher, statistics, text, order, tmp_path
):
    write_sequences(tmp_path / FILE_NAME, text)
    (tmp_path / "cache").mkdir()
    capture(teacher, tmp_path, CaptureOptions("top_k", top_k=512), tmp_path / "cache", Silent())
    with open_model(teacher) as opened:
        mixture = opened.architecture.moe
        separate = {size: choose(statistics, mixture, size, "random").kept for size in (6, 4)}
        targets = LogitCache(tmp_path / "cache")
        before = {n: p.clone() for n, p in opened.model.named_parameters()}
        params = DistillSection(
            steps=20, batch_tokens=192, learning_rate=2e-3, trainable=("experts", "router")
        )
        short = params.model_copy(update={"steps": 1})
        prefixes = compare(opened, order, separate, targets, Silent(), short)
        report = NestedReport(criterion="reap", order=order, prefixes=prefixes)
        again = NestedReport.model_validate_json(report.model_dump_json())
        assert again == report
        for name, parameter in opened.model.named_parameters():
            assert torch.equal(parameter, before[name])
    healed = compare_healed(teacher, again, tmp_path / "cache", params, Silent())
    assert healed.steps == 20 and healed.order == report.order
    for row, unhealed in zip(healed.prefixes, report.prefixes, strict=True):
        assert row.separate_experts == unhealed.separate_experts
        assert row.prefix == unhealed.prefix
        assert row.healed.all.value < 0.95 * row.prefix.all.value
        assert row.healed_separate.all.value < 0.95 * row.separate.all.value
