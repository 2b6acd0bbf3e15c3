"""The ONNX graph where it differs from the plain case, and where its bytes are.

Parity here is with float32 activations: then only the order of sums differs from PyTorch, and a
wrong block, scale or route is seen. What int8 activations cost is a measured property of a model,
not of the graph.
"""

import importlib
import json
import shutil
import sys

import numpy as np
import onnx
import pytest
import torch

from edgekit.describe import describe
from edgekit.errors import MissingRuntimeError
from edgekit.runtimes.engine import Sampling
from edgekit.runtimes.genai_config import genai_config
from edgekit.runtimes.onnx_engine import OnnxEngine
from edgekit.runtimes.onnx_graph import FLOAT_ACTIVATIONS, write_onnx
from edgekit.runtimes.onnx_nodes import block_size
from edgekit.tensorfile import read_header

TOKENS = list(range(3, 40))
TOLERANCE = 1e-4  # of logits of size 5
SMALL = 4096  # bytes of an initializer that may live in the graph


@pytest.fixture
def exact(variant, tmp_path):
    """A variant whose graph keeps activations in float32."""

    def make(*arguments, **options):
        copy = tmp_path / "exact"
        shutil.copytree(variant(*arguments, **options), copy)
        write_onnx(copy, FLOAT_ACTIVATIONS)
        return OnnxEngine(copy)

    return make


@pytest.fixture
def expected(reference):
    """Logits of the dequantized weights in float32 transformers."""

    def compute(*arguments, **options):
        with torch.inference_mode():
            return reference(*arguments, **options)(torch.tensor([TOKENS])).logits[0].numpy()

    return compute


@pytest.mark.parametrize(
    ("columns", "group", "block"),
    [(576, 576, 64), (1536, 1536, 128), (144, 144, 16), (576, 32, 32), (4096, 128, 128)],
)
def test_a_block_is_the_largest_power_of_two_that_divides_the_group(columns, group, block):
    assert block_size(columns, group) == block


@pytest.mark.parametrize(
    ("family", "options"),
    [
        # channels of 96 and 144 inputs: scales repeat per block of 32 and of 16
        ("llama", {"hidden_size": 96, "intermediate_size": 144}),
        # experts share the smaller of the two blocks
        ("mixtral", {"hidden_size": 96, "intermediate_size": 144}),
    ],
)
def test_repeated_channel_scales_change_nothing(exact, expected, family, options):
    found = exact(family, "int4-channel", **options).logits(TOKENS)
    np.testing.assert_allclose(found, expected(family, "int4-channel", **options), atol=TOLERANCE)


@pytest.mark.parametrize(
    ("family", "options"),
    [
        ("qwen3_moe", {"mlp_only_layers": [0]}),
        (
            "llama",
            {
                "rope_parameters": {
                    "rope_type": "llama3", "rope_theta": 10000.0, "factor": 4.0,
                    "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                    "original_max_position_embeddings": 64,
                }
            },
        ),
    ],
    ids=["dense-among-sparse", "llama3-rope"],
)  # fmt: skip
def test_less_common_configs_equal_pytorch(exact, expected, family, options):
    found = exact(family, "int4-g32", **options).logits(TOKENS)
    np.testing.assert_allclose(found, expected(family, "int4-g32", **options), atol=TOLERANCE)


@pytest.mark.parametrize("normalized", [True, False])
def test_8_bit_experts_equal_pytorch_in_float32(exact, expected, monkeypatch, normalized):
    """ONNX Runtime computes 8-bit experts in float32 only when told by this variable."""
    monkeypatch.setenv("ORT_QMOE_CPU_QNBIT_GEMM", "fp32")
    options = {"norm_topk_prob": normalized}
    found = exact("qwen3_moe", "int8", **options).logits(TOKENS)
    np.testing.assert_allclose(found, expected("qwen3_moe", "int8", **options), atol=TOLERANCE)


@pytest.mark.parametrize("family", ["qwen2", "mixtral"])
def test_greedy_tokens_are_those_of_transformers(exact, reference, family):
    engine = exact(family, "int4-g32")
    prompt, count = TOKENS[:10], 24
    with torch.inference_mode():
        whole = reference(family, "int4-g32").generate(
            torch.tensor([prompt]), max_new_tokens=count, do_sample=False,
            eos_token_id=sorted(engine.tokenizer.end_tokens),
        )  # fmt: skip
    sampling = Sampling(max_tokens=count, temperature=0, repetition_penalty=1.0)
    found = [e.token for e in engine.generate_tokens(prompt, sampling) if e.token >= 0]
    assert found == whole[0, len(prompt) :].tolist()


@pytest.mark.parametrize("family", ["qwen3_moe", "llama"])
def test_every_packed_byte_is_referred_to_once_and_in_place(variant, family):
    directory = variant(family)
    tensors, _ = read_header(directory / "weights.safetensors")
    model = onnx.load(str(directory / "model.onnx"), load_external_data=False)
    ranges = set()
    for tensor in model.graph.initializer:
        if tensor.external_data:
            entry = {e.key: e.value for e in tensor.external_data}
            start = int(entry["offset"])
            ranges.add((start, start + int(entry["length"])))
        else:
            assert len(tensor.raw_data) <= SMALL, tensor.name
    for info in tensors.values():
        if info.name.endswith(("_packed", "_scale")):
            inside = [
                r for r in ranges if r[0] <= info.offset and info.offset + info.nbytes <= r[1]
            ]
            assert len(inside) == 1, info.name


def test_the_end_tokens_of_genai_are_inside_the_vocabulary(variant):
    architecture = describe(json.loads((variant("llama") / "config.json").read_text()))
    both = genai_config(architecture, [2, 0, architecture.vocab_size])
    assert both["model"]["eos_token_id"] == [0, 2]
    assert genai_config(architecture, [])["model"]["eos_token_id"] == 0


def test_writing_without_onnx_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    monkeypatch.delitem(sys.modules, "edgekit.runtimes.onnx_nodes")
    with pytest.raises(MissingRuntimeError, match=r"edgekit\[build\]"):
        importlib.import_module("edgekit.runtimes.onnx_nodes")
