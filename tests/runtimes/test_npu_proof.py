"""Proofs of NPU graphs pass for ours and fail for graphs, blobs and labs that are wrong."""

import json
import shutil
import sys
import xml.etree.ElementTree as ElementTree

import pytest

from edgekit.errors import BadInputError, MissingRuntimeError
from edgekit.runtimes import npu_proof
from edgekit.runtimes.npu_compile_probe import count_parts
from edgekit.runtimes.npu_proof import prove, prove_compiled, prove_static
from edgekit.runtimes.openvino_engine import NPU_ANSWER, NPU_PROMPT
from edgekit.variant_files import OPENVINO_GRAPH

HEADER = b"\x7fELF\x02\x01" + bytes(10)
GOOD = {"openvino": "2026.4.1", "compiler": "8.4", "parts": 6, "targeted": 6, "blob_bytes": 9}


@pytest.mark.parametrize(
    ("family", "scheme"),
    [
        ("llama", "int4-channel"),
        ("llama", "int4-g64"),
        ("mistral", "int4-channel"),  # its own head
        ("qwen2", "int4-channel"),  # biases
        ("qwen3", "int4-channel"),  # norms per head
    ],
)
def test_the_static_pipeline_computes_what_the_cpu_does(variant, family, scheme):
    proof = prove_static(variant(family, scheme))
    assert proof.passed and proof.agreement == 1
    assert (proof.prompt_length, proof.answer_length) == (NPU_PROMPT, NPU_ANSWER)


def test_a_graph_that_attends_to_padding_fails(variant, tmp_path):
    """Without padding such a graph is right, so the CPU plugin alone would not show it."""
    copy = shutil.copytree(variant("llama", "int4-channel"), tmp_path / "copy")
    tree = ElementTree.parse(copy / OPENVINO_GRAPH)
    layers, edges = tree.getroot().find("layers"), tree.getroot().find("edges")
    both = next(layer.get("id") for layer in layers if layer.get("type") == "LogicalAnd")
    causal, given = [edge for edge in edges if edge.get("to-layer") == both]
    for key in ("from-layer", "from-port"):
        given.set(key, causal.get(key))
    tree.write(copy / OPENVINO_GRAPH)
    assert not prove_static(copy).passed


def test_a_graph_that_openvino_cannot_read_is_refused(variant, tmp_path):
    copy = shutil.copytree(variant("llama", "int4-channel"), tmp_path / "copy")
    (copy / OPENVINO_GRAPH).write_text("<net")
    with pytest.raises(BadInputError, match="compile it again"):
        prove_static(copy)


def test_a_variant_without_a_graph_is_told_what_to_run(tmp_path):
    with pytest.raises(BadInputError, match="edgekit compile --target openvino-npu"):
        prove_static(tmp_path)
    with pytest.raises(BadInputError, match="edgekit compile --target openvino-npu"):
        prove_compiled(tmp_path, "4000")


def test_parts_are_whole_executables_that_name_the_platform():
    mine, other = HEADER + b"..npu=4000;..npu=4000;", HEADER + b"npu=3720;"
    assert count_parts(b"head" + mine + mine, "4000") == (2, 2)
    assert count_parts(mine + other, "4000") == (2, 1)
    assert count_parts(b"weights \x7fELF and npu=4000;", "4000") == (0, 0)


@pytest.fixture
def lab(tmp_path):
    """A lab whose Windows Python runs the text it is given instead of the probe."""

    def make(code):
        (tmp_path / "code.py").write_text(code)
        script = tmp_path / "python"
        script.write_text(f'#!/bin/sh\nexec {sys.executable} {tmp_path / "code.py"} "$@"\n')
        script.chmod(0o755)
        return tmp_path

    return make


def printing(**changes):
    return f"print({json.dumps({**GOOD, 'error': '', **changes})!r})"


posix = pytest.mark.skipif(sys.platform == "win32", reason="the stand-in is a shell script")


@posix
def test_the_probe_is_asked_for_the_shipped_lengths_on_the_npu_alone(variant, lab):
    echo = "import json, sys; print(json.dumps({'error': ' '.join(sys.argv[4:])}))"
    error = prove_compiled(variant("llama", "int4-channel"), "5010", lab(echo)).error
    assert error.startswith("5010 ")
    assert f"NPUW_LLM_MAX_PROMPT_LEN={NPU_PROMPT}" in error
    assert f"NPUW_LLM_MIN_RESPONSE_LEN={NPU_ANSWER}" in error


@posix
def test_each_platform_gets_its_own_proof(variant, lab):
    heard = []
    proofs = prove(variant("llama", "int4-channel"), lab=lab(printing()), done=heard.append)
    assert [p.platform for p in proofs] == ["3720", "4000", "5010", "5020"]
    assert all(p.passed and p.compiler == "8.4" and p.parts == 6 for p in proofs)
    assert heard == proofs


@posix
@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"parts": 0, "targeted": 0}, "fell back to another device"),
        ({"targeted": 4}, "2 of the 6 NPU executables were made for another platform"),
        ({"error": "Exception from a.cpp:1:\nCompilation failed"}, "Compilation failed"),
    ],
)
def test_what_is_no_proof_says_why(variant, lab, changes, sentence):
    proof = prove_compiled(variant("llama", "int4-channel"), "4000", lab(printing(**changes)))
    assert not proof.passed and sentence in proof.error and "Exception" not in proof.error


@posix
def test_the_compilers_own_words_come_first(variant, lab):
    said = "print('[ERROR] 1 [vpux-compiler] Unroll Pass failed : shape');"
    proof = prove_compiled(
        variant("llama", "int4-channel"), "4000", lab(said + printing(error="Compilation failed"))
    )
    assert proof.error == "Unroll Pass failed : shape Compilation failed"


@posix
def test_a_compiler_that_does_not_end_is_stopped_and_is_no_proof(variant, lab, monkeypatch):
    monkeypatch.setattr(npu_proof, "COMPILE_LIMIT", 0.5)
    forever = lab("import threading; threading.Event().wait()")
    proof = prove_compiled(variant("llama", "int4-channel"), "4000", forever)
    assert not proof.passed and "did not finish" in proof.error


@posix
@pytest.mark.parametrize("code", ["", "print('wine: not found')", "print('[1]')", "print('3')"])
def test_a_lab_that_does_not_run_the_probe_is_not_a_failed_model(variant, lab, code):
    with pytest.raises(MissingRuntimeError, match="could not be asked"):
        prove_compiled(variant("llama", "int4-channel"), "4000", lab(code))


def test_a_directory_that_is_no_lab_is_told_how_to_become_one(variant, tmp_path):
    with pytest.raises(BadInputError, match=r"not a lab; build one with `tests/windows/lab.sh"):
        prove_compiled(variant("llama", "int4-channel"), "4000", tmp_path)


@pytest.mark.skipif(sys.platform == "win32", reason="the compiler is there")
def test_without_windows_and_lab_the_missing_compiler_is_named(variant):
    with pytest.raises(MissingRuntimeError, match="OpenVINO for Windows"):
        prove_compiled(variant("llama", "int4-channel"), "4000")
