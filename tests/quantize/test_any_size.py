"""Conversion streams: what it holds is a small part of the model, and nothing when it is stopped.

The driver is a process of its own whose resident set, file pages included, is measured from its
imports on. Every limit is shown to fail with the streaming broken on purpose.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from tiny_models import write_tokenizer

from edgekit.describe import describe
from edgekit.progress import Silent
from edgekit.quantize.write import quantize
from edgekit.scheme import Scheme
from edgekit.tensorfile import TensorFileWriter, TensorInfo, float32_to_bfloat16

CONFIG = {
    "model_type": "qwen3_moe",
    "vocab_size": 512,
    "hidden_size": 512,
    "moe_intermediate_size": 256,
    "num_hidden_layers": 3,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "tie_word_embeddings": False,
    "max_position_embeddings": 512,
}  # 309 MB in bfloat16
LIMIT = 0.25
linux = pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="needs the kernel's high-water mark"
)


@pytest.fixture(scope="module")
def many_experts(tmp_path_factory):
    """A checkpoint of hundreds of matrices, each cut from another place of one random array."""
    directory = tmp_path_factory.mktemp("many_experts")
    values = np.random.default_rng(0).standard_normal(1 << 20, np.float32)
    pool = float32_to_bfloat16(values * np.float32(0.02))
    specs = describe(CONFIG).tensors()
    layout = [TensorInfo(s.name, "BF16", s.shape) for s in specs]
    with TensorFileWriter(directory / "model.safetensors", layout) as writer:
        for number, spec in enumerate(specs):
            start = number * 1009 % (len(pool) - spec.parameters)
            writer.write(spec.name, pool[start:][: spec.parameters].reshape(spec.shape))
    (directory / "config.json").write_text(json.dumps(CONFIG))
    write_tokenizer(directory)
    return directory


def size_of(directory):
    return (directory / "model.safetensors").stat().st_size


def run_python(*arguments):
    return subprocess.Popen(
        [sys.executable, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip


def growth(*arguments):
    """Bytes by which the driver grew."""
    process = run_python(Path(__file__).with_name("memory_driver.py"), *arguments)
    output, _ = process.communicate()
    assert process.returncode == 0
    return int(output)


@linux
def test_quantizing_holds_a_small_part_of_the_model(many_experts, tmp_path):
    limit = LIMIT * size_of(many_experts)
    assert growth("quantize", many_experts, tmp_path / "out") < limit
    assert growth("quantize", many_experts, tmp_path / "a", "resident") > limit
    assert growth("quantize", many_experts, tmp_path / "b", "keep") > limit


@linux
def test_compiling_holds_a_small_part_of_the_weights(many_experts, tmp_path):
    quantized = tmp_path / "quantized"
    quantized.mkdir()
    quantize(many_experts, Scheme.parse("int8"), quantized, Silent(), "rtn")
    limit = LIMIT * size_of(quantized)
    assert growth("compile", quantized, tmp_path / "out") < limit
    assert growth("compile", quantized, tmp_path / "a", "map") > limit
    streamed, mapped = (
        (tmp_path / name / "openvino" / "openvino_model.xml").read_bytes() for name in ("out", "a")
    )
    assert streamed == mapped  # the graph does not depend on what its constants hold


@pytest.mark.skipif(os.name == "nt", reason="sends SIGINT")
def test_ctrl_c_ends_the_threads_and_leaves_nothing(many_experts, tmp_path):
    # a shell may have started us with SIGINT ignored
    script = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from edgekit.cli.main import run; run()"
    )
    out = tmp_path / "out"
    process = run_python("-c", script, "quantize", many_experts, "--out", out)
    while not any(p.stat().st_blocks for p in tmp_path.rglob("*.partial/model.safetensors")):
        assert process.poll() is None, "it ended before it could be interrupted"
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == 130
    assert list(tmp_path.iterdir()) == []


def test_large_tensors_in_pieces_give_the_same_file(tiny_qwen3_moe, tmp_path, monkeypatch):
    from edgekit.quantize import codes, write

    files = {}
    for name, piece, part in (("whole", 1 << 30, 1 << 30), ("pieces", 3 * 64, 2 * 64)):
        monkeypatch.setattr(write, "PIECE_ELEMENTS", piece)
        monkeypatch.setattr(codes, "SLICE_ELEMENTS", part)
        for scheme in ("int4-g32", "int8", "none"):
            out = tmp_path / f"{name}-{scheme}"
            out.mkdir()
            quantize(tiny_qwen3_moe, Scheme.parse(scheme), out, Silent())
            files[name, scheme] = (out / "model.safetensors").read_bytes()
    for scheme in ("int4-g32", "int8", "none"):
        assert files["whole", scheme] == files["pieces", scheme]
