"""Both graphs against float32 PyTorch on the same integers, for every family and scheme."""

import shutil
from collections import Counter

import numpy as np
import pytest
import torch

from edgekit.runtimes.engine import Sampling, load_engine
from edgekit.runtimes.onnx_engine import OnnxEngine
from edgekit.runtimes.onnx_graph import FLOAT_ACTIVATIONS, write_onnx
from edgekit.runtimes.openvino_engine import OpenVINOEngine
from edgekit.tensorfile import read_header

FAMILIES = ["llama", "mistral", "qwen2", "qwen3", "mixtral", "qwen3_moe"]
CASES = [(family, "int4-g32", {}) for family in FAMILIES] + [
    ("llama", "int4-g64", {}),
    ("llama", "int4-channel", {}),
    ("llama", "int8", {}),
    ("llama", "none", {}),
    ("mixtral", "int4-channel", {}),
    ("qwen3_moe", "none", {}),
    ("qwen3_moe", "int4-g32", {"norm_topk_prob": False}),
    ("llama", "int4-g32", {"attention_bias": True, "tie_word_embeddings": False}),
]
TOKENS = list(range(3, 60))
# float32 sums in another order: logits are of size 5, so 1e-4 is 2e-5 of their range
TOLERANCE = 1e-4


def torch_logits(model, tokens):
    with torch.inference_mode():
        return model(torch.tensor([tokens])).logits[0].numpy()


@pytest.mark.parametrize(("family", "scheme", "options"), CASES)
def test_openvino_in_float32_equals_pytorch(variant, reference, family, scheme, options):
    engine = OpenVINOEngine(variant(family, scheme, **options), exact=True)
    expected = torch_logits(reference(family, scheme, **options), TOKENS)
    np.testing.assert_allclose(engine.logits(TOKENS), expected, atol=TOLERANCE)


@pytest.mark.parametrize(("family", "scheme", "options"), CASES)
def test_onnx_in_float32_equals_pytorch(variant, reference, tmp_path, family, scheme, options):
    copy = tmp_path / "v"
    shutil.copytree(variant(family, scheme, **options), copy)
    write_onnx(copy, FLOAT_ACTIVATIONS)
    expected = torch_logits(reference(family, scheme, **options), TOKENS)
    np.testing.assert_allclose(OnnxEngine(copy).logits(TOKENS), expected, atol=TOLERANCE)


@pytest.mark.parametrize("target", ["openvino-cpu", "onnx-cpu"])
def test_the_fast_path_stays_close(variant, reference, target):
    """int8 activations and bfloat16 move logits by a few percent of their range, no more."""
    expected = torch_logits(reference("llama", "int4-g32"), TOKENS)
    found = load_engine(variant("llama", "int4-g32"), target).logits(TOKENS)
    assert np.abs(found - expected).mean() < 0.03 * np.abs(expected).max()


@pytest.mark.parametrize("family", ["llama", "qwen3_moe"])
def test_openvino_fuses_what_makes_it_fast(variant, family):
    import openvino as ov

    directory = variant(family)
    core = ov.Core()
    model = core.read_model(
        str(directory / "openvino/openvino_model.xml"), str(directory / "weights.safetensors")
    )
    compiled = core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    operations = compiled.get_runtime_model().get_ordered_ops()
    kinds = Counter(str(o.get_rt_info()["layerType"].astype(str)) for o in operations)
    layers = 2
    assert kinds["ScaledDotProductAttention"] == layers
    assert kinds["RoPE"] == 2 * layers
    assert kinds["RMS"] == (2 + 2 * (family == "qwen3_moe")) * layers + 1
    sparse = family == "qwen3_moe"
    assert kinds["GatherMatmul"] == 3 * layers * sparse
    # q, k, v, o per layer and the head; gate, up, down or the router
    assert kinds["FullyConnected"] == (4 + (1 if sparse else 3)) * layers + 1


def test_onnx_uses_the_fused_operators(variant):
    import onnx

    model = onnx.load(str(variant("mixtral") / "model.onnx"), load_external_data=False)
    kinds = Counter(node.op_type for node in model.graph.node)
    assert kinds["GroupQueryAttention"] == 2
    assert kinds["QMoE"] == 2
    assert kinds["MatMulNBits"] == 2 * 2 + 1  # query, key and value at once; output; head
    assert kinds["SkipSimplifiedLayerNormalization"] == 2 * 2
    assert kinds["GatherBlockQuantized"] == 1


def test_big_tensors_are_read_in_place(variant):
    """Every external tensor and every large constant is an offset of the weights file."""
    import onnx

    directory = variant("mixtral")
    tensors, _ = read_header(directory / "weights.safetensors")
    offsets = {t.offset for t in tensors.values()}
    model = onnx.load(str(directory / "model.onnx"), load_external_data=False)
    external = [t for t in model.graph.initializer if t.external_data]
    assert len(external) > 20
    for tensor in external:
        entry = {e.key: e.value for e in tensor.external_data}
        assert entry["location"] == "weights.safetensors"
        assert int(entry["offset"]) in offsets
    weights = (directory / "weights.safetensors").stat().st_size
    graphs = sum(
        f.stat().st_size for f in directory.rglob("*") if f.suffix in (".xml", ".onnx", ".bin")
    )
    assert not list(directory.rglob("*.bin"))
    assert graphs < weights


def test_compiling_twice_gives_the_same_bytes(quantized, variant, tmp_path):
    from edgekit.progress import Silent
    from edgekit.runtimes.compile import compile_variant

    first = variant("qwen3", "int4-g32")
    compile_variant(
        quantized("qwen3", "int4-g32"), ["openvino-cpu", "onnx-cpu"], tmp_path, Silent()
    )
    for file in sorted(f for f in first.rglob("*") if f.is_file()):
        assert (tmp_path / file.relative_to(first)).read_bytes() == file.read_bytes(), file.name


@pytest.mark.parametrize("target", ["openvino-cpu", "onnx-cpu"])
def test_greedy_decoding_follows_the_cache_free_logits(variant, target):
    """Each generated token is the argmax of a run without cache over all tokens before it."""
    engine = load_engine(variant("qwen3"), target)
    prompt = TOKENS[:12]
    sampling = Sampling(max_tokens=6, temperature=0, repetition_penalty=1.0)
    events = list(engine.generate_tokens(prompt, sampling))
    tokens = [e.token for e in events if e.token >= 0]
    assert tokens
    sequence = list(prompt)
    for token in tokens:
        logits = engine.logits(sequence)[-1]
        assert logits[token] >= logits.max() - 0.05 * np.abs(logits).max()
        sequence.append(token)


def test_continuous_batching_accepts_the_graph(variant, tmp_path):
    import openvino as ov
    import openvino_genai as genai

    directory = variant("mixtral")
    (tmp_path / "openvino_model.xml").write_bytes(
        (directory / "openvino/openvino_model.xml").read_bytes()
    )
    (tmp_path / "openvino_model.bin").symlink_to(directory / "weights.safetensors")
    scheduler = genai.SchedulerConfig()
    scheduler.cache_size = 1
    pipeline = genai.ContinuousBatchingPipeline(
        tmp_path, genai.Tokenizer(str(directory)), scheduler, "CPU"
    )
    config = genai.GenerationConfig()
    config.max_new_tokens, config.ignore_eos, config.apply_chat_template = 4, True, False
    prompts = [ov.Tensor(np.array([TOKENS[:n]], np.int64)) for n in (5, 9)]
    results = pipeline.generate(prompts, [config] * 2)
    assert [len(r.m_generation_ids[0]) for r in results] == [4, 4]
