"""What shrinking costs, on a sparse model of a million parameters that is trained in two minutes.

Only gaps that were wide with every seed of ``benchmarks/miniature.py`` are asserted.
"""

import sys
from pathlib import Path

import pytest
import torch

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

pytestmark = pytest.mark.slow
STEPS = 600


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    from miniature_corpus import read_corpus
    from miniature_experiments import miniature
    from miniature_teacher import train_teacher

    from edgekit.progress import Silent

    torch.set_num_threads(1)
    corpus, directory = read_corpus(), tmp_path_factory.mktemp("teacher")
    train_teacher(directory, corpus, STEPS, 0, Silent())
    with miniature(directory, corpus) as found:
        yield found


def test_a_choice_by_worth_beats_chance_and_merging(small):
    from miniature_experiments import merged

    chosen, chance = {}, {}
    for keep in (12, 8):
        chosen[keep] = small.kl_masked(small.kept("reap", keep))
        masks = [small.kept("random", keep, seed) for seed in range(3)]
        chance[keep] = [small.kl_masked(mask) for mask in masks]
    assert chosen[12] < 0.6 * min(chance[12])
    assert chosen[8] < 0.9 * sum(chance[8]) / 3  # one lucky mask of three may come near
    assert chosen[8] < small.kl(merged(small, "m_smoe", 8))


def test_four_bits_cost_far_less_than_a_quarter_of_the_experts(small):
    from miniature_experiments import rounded

    from edgekit.scheme import Packing

    rounded_kl = small.kl(rounded(small, Packing(4, 32), "mse"))
    assert rounded_kl < 0.25 * small.kl_masked(small.kept("reap", 12))


def test_all_weights_heal_more_than_the_router_and_the_router_a_little(small):
    from miniature_experiments import HEALING_STEPS

    student = small.pruned(small.kept("reap", 8))
    before = small.kl(student)
    router = small.healed(student, "router", HEALING_STEPS)
    whole = small.healed(student, "all", HEALING_STEPS)
    assert whole < router < before and whole < 0.75 * before


def test_a_dense_student_of_experts_learns_faster_than_one_of_random_neurons(small):
    from miniature_experiments import DENSE_STEPS, dense, without_feed_forward

    student = dense(small, "do_acp", 2)
    experts = small.healed(student, "all", DENSE_STEPS)
    blank = small.healed(without_feed_forward(small, student), "all", DENSE_STEPS)
    assert experts < 0.9 * blank
