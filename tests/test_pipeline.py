"""Builds: what runs again and what does not, locks, gates, interrupts and full disks."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import edgekit.evaluate
from edgekit.cli.main import main
from edgekit.errors import BadInputError, GateFailedError, MissingRuntimeError, OutOfResourcesError
from edgekit.manifest import Speed, read_manifest
from edgekit.pack import verify_pack
from edgekit.pipeline import BuildOptions, build
from edgekit.progress import Silent
from edgekit.recipe import parse_recipe
from edgekit.run_directory import RunDirectory
from edgekit.run_pack import pack_run
from edgekit.steps import plan_steps, step_digest

STEPS = ("data", "shrink", "capture", "distill", "quantize", "compile", "evaluate")
FIXED = Speed(
    tokens_per_second=9.0, time_to_first_token_ms=1.0, prompt_tokens=1, peak_memory_bytes=1
)


def recipe(teacher, **changes):
    values = {
        "teacher": {"model": str(teacher), "license": "MIT"},
        "data": {"tokens": 256, "held_out_tokens": 96, "sequence_length": 32, "domains": ["chat"]},
        "shrink": {"keep": 0.5},
        "distill": {"steps": 2, "batch_tokens": 32, "top_k": 8},
        "quantize": {"scheme": "int4-g32"},
        "targets": [{"name": "openvino-cpu"}],
        "pack": {"name": "tiny"},
        **changes,
    }
    return parse_recipe({k: v for k, v in values.items() if v is not None}, "r.toml")


@pytest.fixture(autouse=True, scope="module")
def no_clock():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(edgekit.evaluate, "measure_speed", lambda *_: FIXED)
        yield


@pytest.fixture(scope="module")
def finished(tiny_mixtral, tmp_path_factory):
    out = tmp_path_factory.mktemp("finished") / "run"
    build(recipe(tiny_mixtral), out, Silent())
    return out


@pytest.fixture
def run(finished, tmp_path):
    """A finished run that a test may change."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


def again(run, teacher, start_from="", **changes):
    result = build(recipe(teacher, **changes), run, Silent(), BuildOptions(start_from))
    return [s for s in STEPS if s not in result.skipped]


def test_a_second_run_skips_everything_and_keeps_the_pack(run, tiny_mixtral):
    before = (run / "pack/pack.json").stat().st_mtime_ns
    assert again(run, tiny_mixtral) == []
    assert (run / "pack/pack.json").stat().st_mtime_ns == before
    verify_pack(run / "pack", Silent())


def test_a_change_runs_what_depends_on_it_and_nothing_else(run, tiny_mixtral, tiny_model):
    assert again(run, tiny_mixtral, quantize={"scheme": "int8"}) == list(STEPS[4:])
    assert read_manifest(run / "pack").student.scheme == "int8"
    assert again(run, tiny_mixtral, distill={"steps": 3, "batch_tokens": 32, "top_k": 8}) == [
        "distill", "quantize", "compile", "evaluate"
    ]  # fmt: skip
    assert again(run, tiny_model("mixtral", seed=9)) == list(STEPS)


def test_a_changed_gate_or_name_runs_no_step_but_makes_the_pack_again(run, tiny_mixtral):
    assert again(run, tiny_mixtral, gates={"max_size_mb": 50.0}) == []
    assert [g.name for g in read_manifest(run / "pack").gates] == ["max_size_mb"]
    assert again(run, tiny_mixtral, pack={"name": "other"}) == []
    assert read_manifest(run / "pack").name == "other"


def test_another_keep_map_at_the_same_path_shrinks_again(tiny_mixtral, tmp_path):
    def digest():
        steps = plan_steps(recipe(tiny_mixtral, shrink={"keep": 0.5, "previous": str(tmp_path)}))
        (shrink,) = (step for step in steps if step.name == "shrink")
        return step_digest(shrink, {"teacher": "", "data": ""})

    found = [digest()]
    for kept in ([0, 1], [0, 2], [0, 2]):
        (tmp_path / "experts.json").write_text(json.dumps({"kept": {"0": kept, "1": kept}}))
        found.append(digest())
    assert len(set(found)) == 3 and found[2] == found[3]


def test_from_runs_that_step_and_all_later_ones(run, tiny_mixtral):
    assert again(run, tiny_mixtral, start_from="quantize") == list(STEPS[4:])
    with pytest.raises(BadInputError, match="no such step; it has data, shrink"):
        again(run, tiny_mixtral, start_from="quantise")


def test_records_and_log_say_what_happened(run):
    record = json.loads((run / "02-shrink/step.json").read_text())
    assert record["params"]["keep"] == 0.5 and record["inputs"] == ["data", "teacher"]
    assert record["seconds"] >= 0 and record["peak_memory_bytes"] > 10**7
    assert {"torch", "openvino"} <= record["versions"].keys()
    events = [json.loads(line) for line in (run / "run.jsonl").read_text().splitlines()]
    assert [e["step"] for e in events if e["event"] == "end"] == list(STEPS)
    manifest = read_manifest(run / "pack")
    assert manifest.license == "MIT" and manifest.lineage.seeds == {
        "data": 0, "shrink": 0, "distill": 0
    }  # fmt: skip
    assert all(len(kept) == 2 for kept in manifest.lineage.kept_experts.values())


def test_a_missed_gate_is_code_3_keeps_the_run_and_makes_no_pack(tiny_mixtral, tmp_path, capsys):
    strict = recipe(tiny_mixtral, gates={"max_kl": 1e-9})
    file = tmp_path / "r.toml"
    file.write_text(strict.to_toml())
    out = tmp_path / "run"
    assert main(["build", str(file), "--out", str(out)]) == 3
    error = capsys.readouterr().err.splitlines()[-1]
    assert "max_kl is" in error and "missed by" in error and "--override-gate max_kl" in error
    assert (out / "report.html").is_file() and not (out / "pack").exists()
    with pytest.raises(GateFailedError):
        pack_run(out, tmp_path / "p", [], Silent())
    assert main(["build", str(file), "--out", str(out), "--override-gate", "max_kl", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["skipped"] == list(STEPS)
    assert read_manifest(out / "pack").gates[0].overridden


def test_a_pack_of_an_earlier_build_is_set_aside_when_a_gate_fails(run, tiny_mixtral):
    with pytest.raises(GateFailedError):
        again(run, tiny_mixtral, gates={"max_kl": 1e-9})
    assert not (run / "pack").exists() and (run / "pack-earlier/pack.json").is_file()


def test_the_pack_says_what_the_report_says(run, tiny_mixtral, monkeypatch):
    monkeypatch.setattr(
        edgekit.evaluate, "measure_speed",
        lambda *_: FIXED.model_copy(update={"tokens_per_second": 5.0}),
    )  # fmt: skip
    assert again(run, tiny_mixtral, start_from="evaluate") == ["evaluate"]
    (variant,) = read_manifest(run / "pack").variants
    assert variant.targets[0].speed.tokens_per_second == 5.0


def test_a_lost_or_unwanted_pack_is_made_again(run, tiny_mixtral):
    (run / "pack/pack.json").unlink()
    assert again(run, tiny_mixtral) == []
    before = (run / "pack/pack.json").stat().st_mtime_ns
    assert again(run, tiny_mixtral, start_from="pack") == []
    assert (run / "pack/pack.json").stat().st_mtime_ns > before


def test_a_pack_is_made_only_of_steps_that_belong_to_the_recipe(run, tmp_path):
    pack_run(run, tmp_path, [], Silent())
    text = (run / "recipe.toml").read_text()
    (run / "recipe.toml").write_text(text.replace("int4-g32", "int8"))
    with pytest.raises(BadInputError, match="quantize is not finished for its recipe"):
        pack_run(run, tmp_path, [], Silent())


CONTRADICTIONS = [
    (
        {"targets": [{"name": "openvino-npu"}]},
        "openvino-npu: the NPU's compiler takes small experts",
    ),
    ({"shrink": {"keep": 0.25}}, r"keep: 0\.25 of 4 experts is 1"),
    ({"quantize": {"scheme": "int4-g128"}}, "does not divide"),
    ({"data": {"held_out_tokens": 0}}, "held_out_tokens is 0, but evaluation needs some"),
    ({"data": {"tokens": 0}}, "tokens is 0, but"),
    ({"distill": {"steps": 1, "quantization_aware": True}}, "attention cannot be trained"),
]


@pytest.mark.parametrize(("changes", "sentence"), CONTRADICTIONS)
def test_a_recipe_that_cannot_be_finished_is_refused_before_work(
    tiny_mixtral, tmp_path, capsys, changes, sentence
):
    with pytest.raises(BadInputError, match=sentence):
        build(recipe(tiny_mixtral, **changes), tmp_path / "run", Silent())
    file = tmp_path / "r.toml"
    file.write_text(recipe(tiny_mixtral, **changes).to_toml())
    assert main(["build", str(file), "--out", str(tmp_path / "run"), "--dry-run"]) == 2
    assert not (tmp_path / "run").exists()


def test_an_override_of_no_gate_is_refused_before_work(tiny_mixtral, tmp_path):
    options = BuildOptions(override_gates=("max_kl",))
    with pytest.raises(BadInputError, match="sets no such gate"):
        build(recipe(tiny_mixtral), tmp_path / "run", Silent(), options)
    assert not (tmp_path / "run").exists()


def test_a_student_of_another_vocabulary_is_refused_before_work(tiny_mixtral, tiny_model, tmp_path):
    other = {"model": str(tiny_model("llama", vocab_size=256))}
    with pytest.raises(BadInputError, match="vocabulary has 256 tokens"):
        build(recipe(tiny_mixtral, student=other, shrink=None), tmp_path / "run", Silent())


def test_a_sibling_with_another_padding_of_the_vocabulary_is_built(
    tiny_mixtral, tiny_model, tmp_path, capsys
):
    student, run, text = tiny_model("llama", vocab_size=576), tmp_path / "run", tmp_path / "a.jsonl"
    words = "The quick brown fox jumps over the lazy dog"
    rows = [{"text": f"{number} {words} {number * number}."} for number in range(60)]
    text.write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = {"files": [str(text)], "tokens": 256, "held_out_tokens": 96, "sequence_length": 32}
    siblings = {"student": {"model": str(student)}, "shrink": None, "data": data}
    result = build(recipe(tiny_mixtral, **siblings), run, Silent())
    assert [v.id for v in result.manifest.variants] == ["dense"]
    code = main(["evaluate", str(next(run.glob("*-compile"))), "--teacher", str(tiny_mixtral),
                 "--text", str(text), "--tokens", "128", "--json"])  # fmt: skip
    captured = capsys.readouterr()
    assert code == 0, captured.err
    assert json.loads(captured.out)["results"][0]["quality"]["all"]["kl"]["value"] > 0


def test_two_builds_in_one_directory_are_stopped(run, tiny_mixtral):
    code = (
        "import sys; from pathlib import Path; from edgekit.run_directory import RunDirectory\n"
        f"with RunDirectory(Path({str(run)!r})):\n"
        "    print('held', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(BadInputError, match="another build is using it"):
            again(run, tiny_mixtral)
        holder.kill()  # the lock goes with its holder
    assert again(run, tiny_mixtral) == []


def test_a_directory_that_is_no_run_is_left_alone(tiny_mixtral, tmp_path):
    (tmp_path / "thesis.tex").write_text("ten years of work")
    with pytest.raises(BadInputError, match="holds other files than a run"):
        build(recipe(tiny_mixtral), tmp_path, Silent())
    with pytest.raises(BadInputError, match="is a file"):
        RunDirectory(tmp_path / "thesis.tex")
    (tmp_path / "recipe.toml").write_text("# my comments")
    with pytest.raises(BadInputError, match="holds other files than a run"):
        RunDirectory(tmp_path)
    (tmp_path / "recipe.toml").unlink()
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_given_student_replaces_the_shrunk_teacher(tiny_mixtral, tiny_llama, tmp_path):
    given = recipe(tiny_mixtral, student={"model": str(tiny_llama)}, shrink=None)
    result = build(given, tmp_path / "run", Silent())
    assert result.manifest.student.architecture == "llama"
    assert [v.id for v in result.manifest.variants] == ["dense"]


def test_a_dry_run_prints_the_resolved_recipe_and_writes_nothing(tiny_mixtral, tmp_path, capsys):
    file = tmp_path / "r.toml"
    file.write_text(recipe(tiny_mixtral).to_toml())
    arguments = ["build", str(file), "--out", str(tmp_path / "run"), "--dry-run"]
    assert main(arguments) == 0
    shown = capsys.readouterr().out
    assert "learning_rate = 0.0001" in shown and all(step in shown for step in STEPS)
    assert max(map(len, shown.splitlines())) <= 100
    assert main([*arguments, "--json"]) == 0
    estimates = json.loads(capsys.readouterr().out)["steps"]
    assert [e["step"] for e in estimates] == [*STEPS, "pack"]
    assert [p.name for p in tmp_path.iterdir()] == ["r.toml"]


def test_without_the_build_extra_its_name_is_said(tiny_mixtral, tmp_path, monkeypatch):
    import importlib.util

    original = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda n, *a: None if n == "torch" else original(n, *a)
    )
    with pytest.raises(MissingRuntimeError, match=r"torch is not installed.*edgekit\[build\]"):
        build(recipe(tiny_mixtral), tmp_path / "run", Silent())
    assert not (tmp_path / "run").exists()


FULL_DISK = """
import resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), resource.RLIM_INFINITY))
from edgekit.cli.main import main
sys.exit(main(sys.argv[2:]))
"""


def on_a_full_disk(limit, *arguments):
    command = [sys.executable, "-c", FULL_DISK, str(limit), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_a_full_disk_is_code_5_and_leaves_nothing(tiny_mixtral, tmp_path):
    result = on_a_full_disk(50_000, "quantize", tiny_mixtral, "--scheme", "int4-g32",
                            "--out", tmp_path / "out")  # fmt: skip
    assert result.returncode == 5, result.stderr
    assert "no space left to write it" in result.stderr and result.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_build_on_a_full_disk_continues_when_there_is_room(tiny_mixtral, tmp_path):
    file = tmp_path / "r.toml"
    file.write_text(recipe(tiny_mixtral, distill=None).to_toml())
    out = tmp_path / "run"
    result = on_a_full_disk(50_000, "build", file, "--out", out)
    assert result.returncode == 5 and "no space left" in result.stderr
    assert not list(out.glob(".*.partial")) and not (out / "02-shrink").exists()
    done = build(recipe(tiny_mixtral, distill=None), out, Silent())
    assert "data" in done.skipped
    verify_pack(out / "pack", Silent())


def test_a_disk_too_small_for_the_build_is_known_before_it_starts(
    tiny_mixtral, tmp_path, monkeypatch
):
    from edgekit.memory import require_disk

    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(OutOfResourcesError, match=r"the build needs about .* free some"):
        require_disk(tmp_path / "a/b", 2000, "the build")


@pytest.mark.parametrize("where", ["a file", "a read-only system"])
def test_what_cannot_be_written_is_named(tiny_mixtral, tmp_path, monkeypatch, capsys, where):
    out = tmp_path / "file" / "out"
    (tmp_path / "file").write_text("x")
    if where == "a read-only system":
        import errno

        def refuse(self, *_, **__):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(self))

        monkeypatch.setattr(Path, "mkdir", refuse)
        out = tmp_path / "out"
    assert main(["quantize", str(tiny_mixtral), "--scheme", "int8", "--out", str(out)]) == 2
    assert "cannot be written" in capsys.readouterr().err


def test_an_existing_output_is_never_replaced(tiny_mixtral, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    arguments = ["quantize", str(tiny_mixtral), "--scheme", "int8", "--out", str(tmp_path / "out")]
    assert main(arguments) == 2
    assert "exists already" in capsys.readouterr().err
    assert list((tmp_path / "out").iterdir()) == []
