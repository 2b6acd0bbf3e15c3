"""Tuning on the user's text: what it gains there, and what the anchor saves elsewhere."""

import json

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy
from training_runs import interrupted_in

from edgekit.distill.capture import CaptureOptions, capture
from edgekit.distill.divergence import measure
from edgekit.distill.losses import Loss
from edgekit.distill.open_model import open_model
from edgekit.distill.supervised import TextTargets, stage_section, supervised
from edgekit.errors import BadInputError
from edgekit.progress import Silent
from edgekit.recipe import DistillSection
from edgekit.recipe_stages import SupervisedSection
from edgekit.sequences import FILE_NAME, TokenSequence, write_sequences

BASE = DistillSection(steps=0, batch_tokens=128, trainable=("all",))
COLORS, ANIMALS = ("red", "green", "blue", "black"), ("cat", "dog", "fox", "hen")


@pytest.fixture(scope="module")
def cache(tiny_mixtral, tmp_path_factory):
    """Of the teacher, which is the student to be tuned as well."""
    rng, out = np.random.default_rng(1), tmp_path_factory.mktemp("cache")
    made = [TokenSequence(rng.integers(3, 40, 24).astype(np.int32), "c", i % 4 == 3)
            for i in range(32)]  # fmt: skip
    write_sequences(out / FILE_NAME, made)
    capture(tiny_mixtral, out, CaptureOptions("top_k", top_k=512), out, Silent())
    return out


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """Conversations of one kind, so that some teach others."""
    rows = [
        {
            "messages": [
                {"role": "user", "content": f"What has the {color} {animal} number {number}?"},
                {"role": "assistant", "content": f"The {color} {animal} has a lazy hill."},
            ]
        }
        for number in range(6)
        for color in COLORS
        for animal in ANIMALS
    ]
    path = tmp_path_factory.mktemp("text") / "mine.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def section(file, **options):
    values = {"files": (str(file),), "tokens": 4096, "held_out_tokens": 512, "steps": 25,
              "learning_rate": 3e-3}  # fmt: skip
    return SupervisedSection(**{**values, **options})


def tuned(student, cache, out, params, scratch=None):
    out.mkdir()
    return supervised(student, cache, params, BASE, 64, out, Silent(), scratch)


def test_the_anchor_holds_the_student_to_the_teacher(tiny_mixtral, cache, file, tmp_path):
    report = tuned(tiny_mixtral, cache, tmp_path / "out", section(file))
    anchored, control = report.anchored, report.control
    for one in (anchored, control):
        assert one.text_after.all.value < 0.7 * one.text_before.all.value
        assert one.training.held_out_kl_before < 1e-3  # the student is the teacher
    assert control.text_before == anchored.text_before
    lost, held = control.training.held_out_kl_after, anchored.training.held_out_kl_after
    assert held < 0.6 * lost
    assert len(report.sentences) == 3
    assert f"{lost:.4f}" in report.sentences[1]
    assert f"lowered the KL by {lost - held:.4f}" in report.sentences[2]


def test_a_cache_without_held_out_text_says_nothing_of_the_kl(tiny_mixtral, file, tmp_path):
    rng = np.random.default_rng(1)
    made = [TokenSequence(rng.integers(3, 40, 24).astype(np.int32), "c", False) for _ in range(9)]
    write_sequences(tmp_path / FILE_NAME, made)
    capture(tiny_mixtral, tmp_path, CaptureOptions(), tmp_path, Silent())
    report = tuned(tiny_mixtral, tmp_path, tmp_path / "out", section(file, steps=2))
    assert "no held-out text" in report.sentences[0]
    assert report.sentences[2].startswith("So the anchor") and len(report.sentences) == 3
    assert not any("nan" in sentence or " KL by" in sentence for sentence in report.sentences)


def test_what_is_reported_is_what_is_written(tiny_mixtral, cache, file, tmp_path):
    params = section(file, steps=6, control=False)
    report = tuned(tiny_mixtral, cache, tmp_path / "out", params)
    assert report.control is None and len(report.sentences) == 1
    again = tuned(tmp_path / "out", cache, tmp_path / "more", params)
    after, before = report.anchored.text_after.all.value, again.anchored.text_before.all.value
    assert before == pytest.approx(after, rel=1e-4)
    kl = again.anchored.training.held_out_kl_before
    assert kl == pytest.approx(report.anchored.training.held_out_kl_after, rel=1e-3)


def test_the_loss_of_a_step_is_the_weighted_sum_of_both_lessons(
    tiny_mixtral, cache, file, tmp_path
):
    """Of the first step, which is of the student as it is: KL to the teacher, itself, is nought
    but for what the draws add."""
    losses = {}
    for anchor in (0.0, 0.25, 0.75):
        params = section(file, steps=1, anchor=anchor, control=False)
        report = tuned(tiny_mixtral, cache, tmp_path / str(anchor), params)
        (losses[anchor],) = report.anchored.training.losses
    slope = (losses[0.75] - losses[0.25]) / 0.5
    assert losses[0.25] == pytest.approx(losses[0.0] + 0.25 * slope, abs=1e-4)
    assert losses[0.0] > 4  # the cross-entropy of a random model
    assert abs(losses[0.0] + slope) < 0.5  # what is left at anchor 1


def test_interrupted_tuning_ends_in_the_same_weights(tiny_mixtral, cache, file, tmp_path):
    params = section(file, steps=7, control=False)
    base = BASE.model_copy(update={"save_every": 3})
    whole, out, scratch = (tmp_path / name for name in ("whole", "out", "scratch"))
    whole.mkdir(), out.mkdir()
    first = supervised(tiny_mixtral, cache, params, base, 64, whole, Silent())
    with interrupted_in(5):
        supervised(tiny_mixtral, cache, params, base, 64, out, Silent(), scratch)
    again = supervised(tiny_mixtral, cache, params, base, 64, out, Silent(), scratch)
    assert again.anchored.text_before == first.anchored.text_before
    assert again.anchored.training.losses == first.anchored.training.losses
    assert (out / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()


def test_the_divergence_to_a_text_is_its_cross_entropy(tiny_mixtral):
    rng = np.random.default_rng(3)
    tokens = rng.integers(3, 400, 10).astype(np.int32)
    counted = np.array([0, 0, 1, 1, 0, 1, 0, 0, 1, 1], np.bool_)
    text = TextTargets.of(
        [TokenSequence(tokens, "a", True, counted), TokenSequence(tokens, "b", True)], 512
    )
    assert text.sequences[0].counted.tolist() == [*counted[:-1].tolist(), False]
    with open_model(tiny_mixtral) as opened:
        found = measure(opened.model, text, Silent())
        ids = torch.from_numpy(tokens.astype(np.int64))
        logits = opened.model(input_ids=ids[None], use_cache=False).logits[0, :-1]
    expected = cross_entropy(logits, ids[1:], reduction="none").double().detach()
    np.testing.assert_allclose(found.values[0], expected[torch.from_numpy(counted[:-1])], rtol=1e-5)
    np.testing.assert_allclose(found.values[1], expected, rtol=1e-5)
    targets = text.targets(0)
    assert targets.ids[:, 0].tolist() == tokens[1:][counted[:-1]].tolist()
    assert Loss().of_targets(logits[:4], targets).shape == (4,)


def test_a_sequence_of_which_nothing_counts_is_left_out():
    tokens = np.arange(3, 8, dtype=np.int32)
    last = np.array([0, 0, 0, 0, 1], np.bool_)
    assert TextTargets.of([TokenSequence(tokens, "a", False, last)], 512).sequences == []


def test_files_that_are_missing_are_named(tiny_mixtral, cache, tmp_path):
    with pytest.raises(BadInputError, match=r"nothing\.jsonl: no such file"):
        tuned(tiny_mixtral, cache, tmp_path / "out", section(tmp_path / "nothing.jsonl"))


def test_held_out_kl_does_not_choose_among_the_steps(file):
    base = BASE.model_copy(update={"evaluate_every": 5, "patience": 2, "cross_entropy": 0.2})
    stage = stage_section(base, section(file))
    assert (stage.evaluate_every, stage.patience, stage.cross_entropy) == (0, 0, 0.0)
    assert (stage.steps, stage.batch_tokens, stage.loss) == (25, 128, "forward_kl")
