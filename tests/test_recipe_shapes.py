"""[dense] and [slice] in a recipe: a build gives the student another shape and goes on from it."""

import json

import pytest

import edgekit.evaluate
from edgekit.checkpoint import Checkpoint
from edgekit.cli.main import main
from edgekit.errors import BadInputError
from edgekit.estimate import estimate_build
from edgekit.manifest import Speed, read_manifest
from edgekit.pipeline import build
from edgekit.preflight import preflight, student_of
from edgekit.progress import Silent
from edgekit.recipe import parse_recipe
from edgekit.steps import plan_steps

SHAPES = {
    "dense": {"warm_up": 3, "multiple_of": 16, "experts": 1},
    "slice": {"feed_forward": 0.5, "layers": 1, "multiple_of": 16},
}


def recipe(teacher="m", **tables):
    values = {
        "teacher": {"model": str(teacher), "license": "MIT"},
        "data": {"tokens": 512, "held_out_tokens": 96, "sequence_length": 32, "domains": ["chat"]},
        "distill": {"steps": 2, "batch_tokens": 32, "top_k": 8, "trainable": ["all"]},
        "quantize": {"scheme": "int4-g32"},
        "pack": {"name": "tiny"},
        **tables,
    }
    return parse_recipe(values, "r.toml")


def test_each_shape_continues_from_the_one_before():
    steps = plan_steps(recipe(shrink={"keep": 0.5}, **SHAPES))
    assert [s.name for s in steps[:6]] == ["data", "shrink", "dense", "slice", "capture", "distill"]
    found = {s.name: s.inputs for s in steps}
    assert found["dense"] == ("shrink", "data") and found["slice"] == ("dense", "data")
    assert found["distill"] == ("slice", "capture")
    alone = {s.name: s.inputs for s in plan_steps(recipe(slice=SHAPES["slice"]))}
    assert alone["slice"] == ("teacher", "data") and "dense" not in alone


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        ({"slice": {}}, r"slice: nothing to slice; set feed_forward, hidden or layers"),
        ({"slice": {"hiden": 0.5}}, r"\[slice\] hiden: unknown key, did you mean 'hidden'"),
        ({"shrink": {"keep": 1.0, "nested": [1.0, 0.5]}, "dense": {}}, "nested .*dense"),
    ],
)  # fmt: skip
def test_mistakes_name_their_table(tables, message):
    with pytest.raises(BadInputError, match=message):
        recipe(**tables)


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        ({"slice": {"layers": 9}}, r"9 of \d layers cannot be left out"),
        ({"slice": {"feed_forward": 0.99}}, r"feed_forward 0.99 takes nothing away"),
        ({"dense": {"family": "gemma"}}, r"cannot become a dense 'gemma'"),
        ({"shrink": {"keep": 0.5}, "dense": {"experts": 3}}, r"\[dense\] experts: 3 .* the 2 that"),
        ({"shrink": {"keep": 0.5}, "dense": {"choice": "neurons", "neurons": 9999}},
         r"\[dense\] neurons: 9999 cannot be taken of the"),
    ],
)  # fmt: skip
def test_what_cannot_be_made_is_known_before_any_work(tiny_model, tables, message):
    teacher = tiny_model("mixtral", num_local_experts=4)
    with pytest.raises(BadInputError, match=message):
        preflight(recipe(teacher, **tables), Silent())


def test_an_npu_takes_the_dense_student_of_a_sparse_teacher(tiny_mixtral):
    npu = {"targets": [{"name": "openvino-npu"}], "quantize": {"scheme": "int4-channel"}}
    with pytest.raises(BadInputError, match="NPU"):
        preflight(recipe(tiny_mixtral, **npu), Silent())
    preflight(recipe(tiny_mixtral, dense={"multiple_of": 16}, **npu), Silent())


def test_a_build_makes_trains_and_packs_it(tiny_mixtral, tmp_path, monkeypatch, capsys):
    speed = Speed(
        tokens_per_second=9.0, time_to_first_token_ms=1.0, prompt_tokens=1, peak_memory_bytes=1
    )
    monkeypatch.setattr(edgekit.evaluate, "measure_speed", lambda *_: speed)
    made, run = recipe(tiny_mixtral, shrink={"keep": 0.5}, **SHAPES), tmp_path / "run"
    assert {"dense", "slice"} <= {e.step for e in estimate_build(made, Silent())}
    build(made, run, Silent())
    (directory,) = run.glob("*-slice")
    with Checkpoint(directory) as sliced, Checkpoint(tiny_mixtral) as teacher:
        found, planned = sliced.architecture, student_of(made, Silent())
        assert found.moe is None and found.model_type == "llama"
        assert len(found.layers) == len(teacher.architecture.layers) - 1
        assert {x.dense.size for x in found.layers} == {x.dense.size for x in planned.layers}
    (dense,) = run.glob("*-dense")
    assert json.loads((dense / "warm-up.json").read_text())["seed"] == 0
    page = (run / "report.html").read_text()
    assert "<h2>Shape</h2>" in page and "The warm-up took the median layer" in page
    assert "; train the model before it is used. Sliced from" in page
    assert f"to {len(found.layers)} layers" in page
    assert read_manifest(run / "pack").lineage.seeds["dense"] == 0
    capsys.readouterr()
    assert main(["pack", "verify", str(run / "pack")]) == 0
