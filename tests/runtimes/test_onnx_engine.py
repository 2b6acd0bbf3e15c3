"""What only the ONNX Runtime engine can meet: damaged graphs, absent providers, absent wheels."""

import shutil
import sys

import numpy as np
import onnxruntime
import pytest

from edgekit.errors import BadInputError, MissingRuntimeError
from edgekit.runtimes.engine import Sampling
from edgekit.runtimes.onnx_engine import OnnxEngine

PROMPT = list(range(3, 12))


@pytest.fixture
def damaged(variant, tmp_path):
    """A copy of a variant to be spoiled."""
    copy = tmp_path / "damaged"
    shutil.copytree(variant("llama"), copy)
    return copy


def test_a_graph_that_is_not_onnx_is_named(damaged):
    (damaged / "model.onnx").write_bytes(b"not a graph")
    engine = OnnxEngine(damaged)
    with pytest.raises(BadInputError, match=r"model\.onnx: ONNX Runtime .* cannot load"):
        engine.load()
    with pytest.raises(BadInputError, match=r"model\.onnx: ONNX Runtime .* cannot load"):
        engine.logits(PROMPT)


def test_a_truncated_weights_file_is_refused(damaged):
    weights = damaged / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:10_000])
    with pytest.raises(BadInputError, match="verify the pack"):
        OnnxEngine(damaged).load()


def test_an_operator_of_a_newer_runtime_is_refused_with_the_version(damaged):
    graph = damaged / "model.onnx"
    graph.write_bytes(graph.read_bytes().replace(b"GroupQueryAttention", b"GroupQueryAttentiox"))
    with pytest.raises(BadInputError, match=onnxruntime.__version__):
        OnnxEngine(damaged).load()


def test_experts_on_an_older_runtime_are_a_missing_runtime(variant, monkeypatch):
    """DirectML's builds: evaluation then skips the target instead of failing."""
    monkeypatch.setattr(onnxruntime, "__version__", "1.24.4")
    with pytest.raises(MissingRuntimeError, match=r"1\.24\.4 cannot run experts"):
        OnnxEngine(variant("mixtral"))
    OnnxEngine(variant("llama")).load()


@pytest.mark.filterwarnings("ignore:Specified provider:UserWarning")
def test_directml_that_does_not_start_is_not_replaced_by_the_cpu(variant, monkeypatch):
    """ONNX Runtime itself would go on with the CPU and say so only in its log."""
    available = ["DmlExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: available)
    engine = OnnxEngine(variant("llama"), "DML")
    with pytest.raises(MissingRuntimeError, match=r"DML: .* choose onnx-cpu"):
        engine.load()
    with pytest.raises(MissingRuntimeError, match=r"DML: .* choose onnx-cpu"):
        engine.logits(PROMPT)


def test_without_the_wheel_the_extra_is_named(variant, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime_genai", None)
    with pytest.raises(MissingRuntimeError, match=r"edgekit\[onnx\]"):
        OnnxEngine(variant("llama"))


def test_a_closed_engine_loads_again(variant):
    engine = OnnxEngine(variant("llama"))
    first = engine.logits(PROMPT)
    engine.close()
    np.testing.assert_array_equal(engine.logits(PROMPT), first)


def test_measuring_goes_on_past_end_tokens(variant):
    engine = OnnxEngine(variant("llama"))
    engine.tokenizer.end_tokens = frozenset(range(512))  # whatever comes first ends an answer
    sampling = Sampling(max_tokens=9, temperature=0, repetition_penalty=1.0)
    assert len(list(engine.generate_tokens(PROMPT, sampling))) == 1
    long = Sampling(max_tokens=9, temperature=0, repetition_penalty=1.0, ignore_end=True)
    *_, last = engine.generate_tokens(PROMPT, long)
    assert (last.finish, last.stats.generated_tokens) == ("length", 9)


def test_a_penalty_turns_away_from_what_was_said(variant):
    engine = OnnxEngine(variant("llama"))

    def distinct(penalty):
        sampling = Sampling(
            max_tokens=40, temperature=0, repetition_penalty=penalty, ignore_end=True
        )
        return len({e.token for e in engine.generate_tokens(PROMPT, sampling)})

    assert distinct(5.0) > distinct(1.0)
