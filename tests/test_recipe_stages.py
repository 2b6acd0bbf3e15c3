"""Stages after offline distillation in a recipe: what is asked, in which order, at what cost."""

import json

import numpy as np
import pytest

from edgekit.distill.capture import CaptureOptions, capture
from edgekit.errors import BadInputError
from edgekit.estimate import estimate_build
from edgekit.plan import FLOAT32_BYTES
from edgekit.preflight import architecture_of
from edgekit.progress import Silent
from edgekit.recipe import load_recipe, parse_recipe
from edgekit.report import _stage
from edgekit.sequences import FILE_NAME, TokenSequence, write_sequences
from edgekit.steps import Context, plan_steps, report_json, step_digest

ON_POLICY = {"steps": 2, "round_steps": 1, "new_tokens": 4}


def recipe(teacher="m", **distill):
    values = {"teacher": {"model": str(teacher)}, "pack": {"name": "p"}, "distill": distill,
              "data": {"domains": ["chat"], "sequence_length": 32}}  # fmt: skip
    return parse_recipe(values, "r.toml")


def inputs(planned):
    return {step.name: step.inputs for step in planned}


def test_every_stage_continues_from_the_student_of_the_one_before():
    tuning = {"files": ["a.txt"], "steps": 3}
    steps = plan_steps(recipe(steps=5, on_policy=ON_POLICY, supervised=tuning))
    assert [s.name for s in steps[1:6]] == [
        "capture", "distill", "on-policy", "supervised", "quantize"
    ]  # fmt: skip
    found = inputs(steps)
    assert found["distill"] == ("teacher", "capture")
    assert found["on-policy"] == ("distill", "teacher", "capture")
    assert found["supervised"] == ("on-policy", "capture")
    assert found["quantize"] == ("supervised",)


def test_a_stage_needs_no_offline_one():
    found = inputs(plan_steps(recipe(steps=0, on_policy=ON_POLICY)))
    assert "distill" not in found
    assert found["on-policy"] == ("teacher", "capture")
    assert found["quantize"] == ("on-policy",)
    assert "capture" not in inputs(plan_steps(recipe(steps=0)))


def test_only_a_stages_own_table_and_what_it_inherits_run_it_again():
    def digests(**distill):
        known = {"teacher": "t", "data": "d", "capture": "c", "distill": "s", "on-policy": "o"}
        steps = plan_steps(recipe(**distill))
        return {s.name: step_digest(s, known) for s in steps if set(s.inputs) <= set(known)}

    first = digests(steps=5, on_policy=ON_POLICY)
    other = digests(steps=5, on_policy={**ON_POLICY, "new_tokens": 5})
    assert {name for name in first if first[name] != other[name]} == {"on-policy"}
    inherited = digests(steps=5, on_policy=ON_POLICY, batch_tokens=64)
    assert {name for name in first if first[name] != inherited[name]} == {"distill", "on-policy"}


@pytest.mark.parametrize(("targets", "again"), [("sampled", True), ("top_k", False)])
def test_only_draws_are_captured_again_for_another_loss(targets, again):
    """Top tokens carry every loss, and their number says how large they are."""

    def digest(**distill):
        steps = {s.name: s for s in plan_steps(recipe(steps=5, targets=targets, **distill))}
        return step_digest(steps["capture"], {"teacher": "t", "data": "d"})

    assert (digest() != digest(loss="jsd")) == again
    assert (digest() != digest(bytes_per_token=40)) == again
    assert digest() != digest(top_k=9)


def test_a_recipe_with_stages_survives_a_round_trip(tmp_path):
    tuning = {"files": ["a.txt"], "steps": 3, "anchor": 0.25}
    made = recipe(steps=5, on_policy=ON_POLICY, supervised=tuning)
    path = tmp_path / "r.toml"
    path.write_text(made.to_toml())
    assert load_recipe(path) == made


@pytest.mark.parametrize(
    ("distill", "message"),
    [
        ({"on_policy": {"step": 3}}, r"\[distill.on_policy\] step: unknown key, .* 'steps'"),
        ({"on_policy": {"steps": 0}}, r"\[distill.on_policy\] steps: .*greater than or equal to 1"),
        ({"on_policy": {"steps": 1, "loss": "kl"}}, r"\[distill.on_policy\] loss"),
        ({"supervised": {"steps": 1}}, r"\[distill.supervised\] files: this key is missing"),
        ({"supervised": {"steps": 1, "files": ["a"], "anchor": 1}}, r"anchor: .*less than 1"),
        ({"on_polcy": {"steps": 3}}, r"\[distill\] on_polcy: unknown key, .* 'on_policy'"),
    ],
)
def test_mistakes_in_a_stage_name_its_table_and_key(distill, message):
    with pytest.raises(BadInputError, match=message):
        recipe(steps=1, **distill)


def test_on_policy_is_estimated_with_student_and_teacher_in_memory(tiny_mixtral):
    made = recipe(tiny_mixtral, steps=2, on_policy=ON_POLICY)
    found = {e.step: e for e in estimate_build(made, Silent())}
    teacher = architecture_of(str(tiny_mixtral), Silent()).parameters() * FLOAT32_BYTES
    assert found["on-policy"].memory_bytes >= found["distill"].memory_bytes + teacher


def test_the_steps_run_and_report(tiny_mixtral, tiny_model, tmp_path):
    rng = np.random.default_rng(0)
    cache = tmp_path / "capture"
    cache.mkdir()
    text = [TokenSequence(rng.integers(3, 99, 24).astype(np.int32), "c", i > 4) for i in range(8)]
    write_sequences(cache / FILE_NAME, text)
    capture(tiny_mixtral, cache, CaptureOptions("top_k"), cache, Silent())
    file = tmp_path / "mine.txt"
    paragraph = "The quick brown fox jumps over the lazy dog. " * 50
    file.write_text("\n\n".join(f"{number} {paragraph}" for number in range(8)))
    tuning = {"files": [str(file)], "steps": 2, "tokens": 1000, "held_out_tokens": 400}
    made = recipe(tiny_mixtral, steps=0, batch_tokens=64, on_policy=ON_POLICY, supervised=tuning)
    paths = {"teacher": tiny_mixtral, "capture": cache}
    records = {}
    for step in plan_steps(made):
        if step.name in ("on-policy", "supervised"):
            out, scratch = tmp_path / step.name, tmp_path / f"{step.name}-scratch"
            out.mkdir()
            report = step.run(Context(paths, out, scratch, Silent()))
            paths[step.name] = out
            records[step.name] = {"report": json.loads(json.dumps(report_json(report)))}
    assert (tmp_path / "supervised" / "model.safetensors").is_file()
    on_policy = " ".join(_stage("on-policy", records))
    assert "On what the student itself writes, reverse_kl went from" in on_policy
    assert "would be accepted by the teacher" in on_policy
    assert "too long" not in on_policy
    records["on-policy"]["report"]["left_out"] = 2
    assert "2 prompts were too long for the context" in " ".join(_stage("on-policy", records))
    assert "Without the anchor" in " ".join(_stage("supervised", records))
    assert _stage("distill", records) == []
