"""A variant that checks itself, and the gate inside compile."""

import json
import re
import shutil

import pytest

from edgekit.cli.main import main
from edgekit.compilation import compile_checked
from edgekit.parity import obstacle
from edgekit.progress import Silent
from edgekit.self_check import FILE_NAME, check_variant, read_reference

TARGETS = ["openvino-cpu", "onnx-cpu"]


@pytest.fixture(scope="module")
def checked(quantized, tmp_path_factory):
    """A compiled variant that keeps its reference, and the report."""
    out = tmp_path_factory.mktemp("checked")
    return out, compile_checked(quantized("qwen3_moe", "int4-g32"), TARGETS, out, Silent())


def test_compile_compares_every_runtime_and_stores_a_few_kilobytes(checked):
    directory, report = checked
    assert [r.target for r in report.parity.results] == TARGETS
    assert all(not r.failure and r.mean_kl < 1e-5 for r in report.parity.results)
    assert (directory / FILE_NAME).stat().st_size < 16_000
    assert set(read_reference(directory).deviation) == set(TARGETS)


def test_a_variant_is_right_where_it_was_built(checked):
    for result in check_variant(checked[0], TARGETS):
        assert not result.failure
        assert result.deviation == pytest.approx(result.built_deviation, abs=1e-3)


@pytest.mark.parametrize("target", TARGETS)
def test_other_weights_than_those_of_the_reference_are_noticed(
    checked, quantized, tmp_path, target
):
    other = tmp_path / "v"
    shutil.copytree(checked[0], other)
    stored = json.loads((other / FILE_NAME).read_text())
    compile_checked(quantized("qwen3_moe", "int4-g64"), TARGETS, tmp_path, Silent())
    (tmp_path / FILE_NAME).write_text(json.dumps(stored))
    assert "off by" in check_variant(tmp_path, [target])[0].failure


def test_doctor_checks_a_variant_and_says_what_is_missing(checked, variant, tmp_path, capsys):
    assert main(["doctor", "--pack", str(checked[0])]) == 0
    printed = capsys.readouterr().out
    assert "openvino-cpu" in printed and "onnx-cpu" in printed
    assert main(["doctor", "--pack", str(variant("qwen3", "int4-g32"))]) == 2
    assert "compiled without a reference" in capsys.readouterr().err
    broken = tmp_path / "v"
    shutil.copytree(checked[0], broken)
    (broken / FILE_NAME).write_text("{}")
    assert main(["doctor", "--pack", str(broken)]) == 2
    assert "not a stored reference" in capsys.readouterr().err


def test_doctor_fails_on_a_wrong_graph(checked, tmp_path, capsys):
    wrong = tmp_path / "v"
    shutil.copytree(checked[0], wrong)
    stored = json.loads((wrong / FILE_NAME).read_text())
    stored["log_probabilities"] = [[p - 1 for p in row] for row in stored["log_probabilities"]]
    (wrong / FILE_NAME).write_text(json.dumps(stored))
    assert main(["doctor", "--pack", str(wrong)]) == 3
    assert re.search(r"off by (0\.9|1\.0)", capsys.readouterr().err)


def test_a_model_too_large_for_a_reference_is_compiled_and_says_so(
    quantized, tmp_path, monkeypatch
):
    monkeypatch.setattr("edgekit.parity.available_memory", lambda: 1000)
    report = compile_checked(quantized("qwen3", "int4-g32"), TARGETS, tmp_path, Silent())
    assert "of memory are available" in report.parity.skipped
    assert not (tmp_path / FILE_NAME).exists()


def test_without_torch_the_reference_is_skipped_with_the_reason(quantized, monkeypatch):
    from edgekit.checkpoint import read_config
    from edgekit.describe import describe

    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    architecture = describe(read_config(quantized("qwen3", "int4-g32")))
    assert obstacle(architecture) == 'torch is not installed (pip install "edgekit[build]")'


def test_a_failing_gate_leaves_nothing_behind(quantized, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("edgekit.parity.MAX_KL", -1.0)
    out = tmp_path / "out"
    source = quantized("qwen3", "int4-g32")
    assert main(["compile", str(source), "--out", str(out)]) == 3
    assert "not the reference's" in capsys.readouterr().err
    assert not out.exists()
    assert main(["compile", str(source), "--out", str(out), "--no-parity"]) == 0
    assert "not compared with PyTorch" in capsys.readouterr().out


def test_a_proof_without_an_npu_graph_is_refused(quantized, tmp_path, capsys):
    arguments = [str(quantized("qwen3", "int4-g32")), "--out", str(tmp_path / "o"), "--prove"]
    assert main(["compile", *arguments]) == 2
    assert "--prove is about openvino-npu" in capsys.readouterr().err
