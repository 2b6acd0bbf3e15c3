"""Every prefix of a nested student is the pruned model of its size."""

import numpy as np
import pytest
import torch

from edgekit.checkpoint import Checkpoint, read_config
from edgekit.distill.keep import choose
from edgekit.distill.masked import masked
from edgekit.distill.nested import nested_sizes, order_experts, ranked_by
from edgekit.distill.open_model import open_model
from edgekit.distill.shrink import measure_experts, shrink
from edgekit.distill.statistics import Statistics
from edgekit.errors import BadInputError
from edgekit.progress import Silent
from edgekit.recipe import ShrinkSection, checked
from edgekit.sequences import FILE_NAME, TokenSequence, write_sequences

EIGHT = {"num_local_experts": 8, "num_experts": 8, "n_routed_experts": 8}


def test_the_least_worthy_are_last_and_those_that_are_left_are_rated_anew():
    asked = []

    def ranking(left, size):
        asked.append((sorted(left[0]), size))
        # who is worth most changes once 0 and 1 are gone
        worth = {8: range(8), 6: [0, 0, 1, 9, 2, 3, 4, 5]}[len(left[0])]
        return ranked_by(np.array([list(worth)], float), [0], left, {0: [2]})

    order = order_experts([0], 8, [8, 6, 4], ranking)
    assert asked == [(list(range(8)), 6), ([2, 3, 4, 5, 6, 7], 4)]
    assert order == {0: [2, 3, 7, 6, 5, 4, 1, 0]}  # 2 is protected, 3 the best of what is left


def test_sizes_that_no_prefix_can_have_are_refused(tiny_model):
    def sizes(family, shares, **options):
        with open_model(tiny_model(family, **options)) as opened:
            return nested_sizes(opened.architecture, shares, "m")

    assert sizes("mixtral", (0.5, 1.0, 0.75), **EIGHT) == [8, 6, 4]
    with pytest.raises(BadInputError, match="fewer than the 2"):
        sizes("mixtral", (1.0, 0.125), **EIGHT)
    with pytest.raises(BadInputError, match="two different numbers"):
        sizes("mixtral", (1.0, 1.0), **EIGHT)
    with pytest.raises(BadInputError, match="chooses 2 of 4 groups"):
        sizes("deepseek_v3", (1.0, 0.5))


def mixture(model):
    with Checkpoint(model) as checkpoint:
        return checkpoint.architecture.moe


@pytest.mark.parametrize("family", ["mixtral", "qwen2_moe", "gpt_oss"])
def test_a_nested_student_holds_a_pruned_one_in_every_prefix(tiny_model, tmp_path, family):
    teacher, out = tiny_model(family, **EIGHT), tmp_path / "out"
    out.mkdir()
    rng = np.random.default_rng(3)
    made = [
        TokenSequence(rng.integers(3, 500, 24).astype(np.int32), "text", i % 3 == 2)
        for i in range(12)
    ]
    write_sequences(tmp_path / FILE_NAME, made)
    section = ShrinkSection(keep=1.0, nested=(1.0, 0.75, 0.5))
    measure_experts(teacher, tmp_path, tmp_path, Silent(), tmp_path / "scratch")
    report = shrink(teacher, tmp_path, section, out, Silent(), tmp_path / "scratch", tmp_path)
    assert read_config(out)["edgekit_nested"] == [8, 6, 4]
    assert [p.experts for p in report.nested.prefixes] == [8, 6, 4]
    assert abs(report.nested.prefixes[0].prefix.all.value) < 1e-5
    smallest = choose(
        Statistics.load(tmp_path / "statistics.safetensors"), mixture(teacher), 4, "reap"
    )
    assert report.overlap == smallest.overlap  # not that of all experts, which always agrees
    ids = torch.from_numpy(made[0].tokens.astype(np.int64))[None]
    with open_model(teacher) as whole, open_model(out) as student, torch.inference_mode():
        for size in (8, 6, 4):
            chosen = {layer: experts[:size] for layer, experts in report.kept.items()}
            with masked(whole, chosen):
                expected = whole.model(ids, use_cache=False).logits
            with masked(student, {layer: range(size) for layer in chosen}):
                found = student.model(ids, use_cache=False).logits
            torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_nested_needs_its_largest_share_as_keep_an_order_and_no_earlier_choice():
    with pytest.raises(BadInputError, match="must be keep"):
        checked(ShrinkSection, keep=0.5, nested=(1.0, 0.5))
    with pytest.raises(BadInputError, match="name a criterion"):
        checked(ShrinkSection, keep=1.0, nested=(1.0, 0.5), criterion="auto")
    with pytest.raises(BadInputError, match="previous: an order of all experts"):
        checked(ShrinkSection, keep=1.0, nested=(1.0, 0.5), previous="student")
