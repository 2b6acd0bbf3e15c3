"""The usual way to measure experts, which benchmarks compare with, agrees with edgekit's pass."""

import sys
from pathlib import Path

import numpy as np
import pytest

from edgekit.distill.collect import collect
from edgekit.distill.criteria import scores
from edgekit.progress import Silent
from edgekit.sequences import TokenSequence

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

import usual_script

IDS = np.random.default_rng(0).integers(3, 500, (6, 40))


@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe"])
def test_running_every_expert_on_every_token_gives_the_same_saliency(tiny_model, family, tmp_path):
    model = tiny_model(family)
    text = [TokenSequence(row.astype(np.int32), "all", False) for row in IDS]
    ours = scores(collect(model, text, tmp_path, Silent()), "reap")
    usual = usual_script.saliencies(usual_script.load(model), IDS, batch=4)
    np.testing.assert_allclose(usual, ours, rtol=1e-4)


def test_the_experts_with_the_largest_saliency_stay_in_their_order():
    saliency = np.array([[0.1, 0.9, 0.2, 0.8], [0.5, 0.5, 0.4, 0.6]], np.float32)
    assert usual_script.keep_set(saliency, 2) == [[1, 3], [0, 3]]
