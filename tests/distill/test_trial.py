"""A trial chooses what is faster here, once."""

import pytest
import torch
from training_runs import captured, healed, interrupted_in

from edgekit.distill.trial import choose
from edgekit.distill.working import Working
from edgekit.recipe import DistillSection


@pytest.fixture(scope="module")
def cache(tiny_mixtral, tmp_path_factory):
    return captured(tiny_mixtral, tmp_path_factory.mktemp("captured"))


@pytest.fixture(scope="module")
def student(tiny_model):
    return tiny_model("mixtral", seed=3)


def test_a_trial_keeps_what_is_measurably_faster():
    speeds = {
        (512, "float32", 4): 100.0, (512, "float32", 2): 101.0, (512, "bfloat16", 4): 200.0,
        (256, "bfloat16", 4): 150.0, (1024, "bfloat16", 4): 260.0, (2048, "bfloat16", 4): 265.0,
    }  # fmt: skip
    asked = []

    def speed(working):
        asked.append(working)
        return speeds.get((working.micro_batch_tokens, working.precision, working.threads), 0.0)

    section = DistillSection(steps=1, micro_batch_tokens=0, precision="auto")
    device = torch.device("cpu")
    import edgekit.distill.trial as module

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "has_bfloat16", lambda _: True)
        patch.setattr(torch, "get_num_threads", lambda: 4)
        patch.setenv("OMP_NUM_THREADS", "4")
        found = choose(section, device, True, 3000, speed)
        assert (found.micro_batch_tokens, found.precision, found.threads) == (1024, "bfloat16", 4)
        assert found.tokens_per_second == 260.0
        assert max(working.micro_batch_tokens for working in asked) == 2048
        asked.clear()
        assert choose(section, device, True, 0, speed).micro_batch_tokens == 256  # asked for anyway
        speeds[512, "float32", 4] = speeds[1024, "float32", 4] = 900.0
        assert choose(section, device, True, 3000, speed).precision == "float32"
        patch.setattr(module, "SECONDS", -1.0)  # no time: what would be taken without a trial
        assert choose(section, device, True, 3000, speed).precision == "bfloat16"
        patch.setattr(module, "has_bfloat16", lambda _: False)
        assert choose(section, device, True, 3000, speed).precision == "float32"


def test_what_a_trial_chose_is_kept_when_training_continues(student, cache, tmp_path, monkeypatch):
    import edgekit.distill.trainer as module

    tried = []

    def chosen(params, *_):
        tried.append(params)
        return Working(micro_batch_tokens=24 * len(tried), tokens_per_second=1.0)

    monkeypatch.setattr(module, "working_of", chosen)
    options = {"micro_batch_tokens": 0, "save_every": 2}
    with interrupted_in(3):
        healed(student, cache, tmp_path / "killed", tmp_path / "scratch", **options)
    report, _ = healed(student, cache, tmp_path / "again", tmp_path / "scratch", **options)
    assert len(tried) == 1 and report.working.micro_batch_tokens == 24


def test_a_smaller_micro_batch_is_followed_when_training_continues(student, cache, tmp_path):
    """As a device that ran full makes one ask for it."""
    options = {"precision": "auto", "save_every": 2}
    scratch = tmp_path / "scratch"
    first, _ = healed(student, cache, tmp_path / "a", scratch, micro_batch_tokens=512, **options)
    again, _ = healed(student, cache, tmp_path / "b", scratch, micro_batch_tokens=64, **options,
                      steps=8)  # fmt: skip
    assert first.working.micro_batch_tokens == 512 and again.working.micro_batch_tokens == 64
    assert again.losses[:6] == first.losses


@pytest.mark.parametrize(
    ("precision", "able", "sharded", "twice", "expected"),
    [
        ("auto", True, False, False, "bfloat16"),
        ("auto", False, False, False, "float32"),
        ("auto", True, True, False, "float32"),
        ("auto", True, True, True, "bfloat16"),
        ("float32", True, False, False, "float32"),
        ("bfloat16", False, False, False, "bfloat16"),
    ],
)
def test_without_a_trial_the_device_decides(monkeypatch, precision, able, sharded, twice, expected):
    import edgekit.distill.trial as module

    monkeypatch.setattr(module, "has_bfloat16", lambda _: able)
    params = DistillSection(steps=1, precision=precision, activation_checkpointing=twice)
    assert module.untried_precision(params, torch.device("cpu"), sharded) == expected


def test_training_goes_on_as_it_began_where_the_device_would_decide_otherwise(
    student, cache, tmp_path, monkeypatch
):
    """A state that comes from a device with bfloat16, on one without."""
    import edgekit.distill.trial as module

    options = {"precision": "auto", "save_every": 2, "micro_batch_tokens": 64}
    monkeypatch.setattr(module, "has_bfloat16", lambda _: True)
    whole, weights = healed(student, cache, tmp_path / "whole", **options)
    assert whole.working.precision == "bfloat16"
    with interrupted_in(3):
        healed(student, cache, tmp_path / "killed", tmp_path / "scratch", **options)
    monkeypatch.setattr(module, "has_bfloat16", lambda _: False)
    report, again = healed(student, cache, tmp_path / "again", tmp_path / "scratch", **options)
    assert report.losses == whole.losses
    assert all((again[name] == weights[name]).all() for name in weights)
