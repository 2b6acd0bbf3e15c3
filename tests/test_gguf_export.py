"""GGUF out: every value against the dequantized checkpoint in Hugging Face's own layout.

The names that are expected come from the ``gguf`` package's table of Hugging Face names, which the
exporter does not use, and the order of rotary rows from llama.cpp's converter.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from gguf_files import interleave
from safetensors.numpy import load_file

from edgekit.checkpoint import Checkpoint, read_json
from edgekit.cli.main import main
from edgekit.errors import BadInputError, MissingRuntimeError
from edgekit.gguf import convert_gguf
from edgekit.gguf_export import export_gguf
from edgekit.gguf_families import GGUF_FAMILIES
from edgekit.progress import Silent
from edgekit.quantize.reference import dequantized_checkpoint
from edgekit.tensorfile import TensorFile

HALF_HEADS = {"num_attention_heads": 2, "num_key_value_heads": 1}  # heads of 32 fill 64
OPTIONS: dict[str, dict[str, Any]] = {
    "llama": {"attention_bias": True, "mlp_bias": True},
    "mistral": {},
    "mixtral": {},
    "qwen2": {},
    "qwen3": {},
    "qwen2_moe": {**HALF_HEADS, "norm_topk_prob": False},
    "qwen3_moe": {},
    "olmo2": HALF_HEADS,
    "olmoe": {"clip_qkv": None, "tie_word_embeddings": True, "num_key_value_heads": 4},
    "granite": {},
    "granitemoe": {},
    "granitemoeshared": {},
    "gemma": {},
    "gemma2": {"query_pre_attn_scalar": 32},
    "gemma3_text": {"query_pre_attn_scalar": 32, "num_hidden_layers": 6,
                    "layer_types": ["sliding_attention"] * 5 + ["full_attention"]},
    "phi3": HALF_HEADS,
    "smollm3": {"num_hidden_layers": 4, "no_rope_layers": [1, 1, 1, 0]},
    "glm4": {},
}  # fmt: skip
ROTATED_IN_PAIRS = ("llama", "mistral", "mixtral", "granite", "granitemoe", "granitemoeshared",
                    "smollm3")  # fmt: skip
MERGED = {  # names that llama.cpp's converter makes up when it splits what granite joins
    "block_sparse_moe.input_linear": ("mlp.experts.gate_proj", "mlp.experts.up_proj"),
    "shared_mlp.input_linear": ("mlp.shared_expert.gate_proj", "mlp.shared_expert.up_proj"),
}


@pytest.fixture(scope="module")
def exported(
    quantized: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., tuple[Path, Path]]:
    """``exported("llama", "int4-g32")``: the quantized checkpoint and its GGUF, made once."""
    cache: dict[str, tuple[Path, Path]] = {}

    def make(family: str, scheme: str = "int4-g32", **options: object) -> tuple[Path, Path]:
        key = json.dumps([family, scheme, options], sort_keys=True)
        if key not in cache:
            source = quantized(family, scheme, **{**OPTIONS[family], **options})
            out = tmp_path_factory.mktemp("gguf") / "model.gguf"
            export_gguf(source, out, Silent())
            cache[key] = (source, out)
        return cache[key]

    return make


def read(path: Path) -> dict[str, np.ndarray]:
    """Every tensor of a file as float32 in Hugging Face's order of axes."""
    return {
        t.name: gguf.dequantize(t.data, t.tensor_type)
        .reshape([int(n) for n in reversed(t.shape)])
        .astype(np.float32)
        for t in gguf.GGUFReader(path).tensors
    }


def fields(path: Path) -> dict[str, Any]:
    return {name: field.contents() for name, field in gguf.GGUFReader(path).fields.items()}


def expected(source: Path, directory: Path) -> dict[str, np.ndarray]:
    """The dequantized checkpoint as llama.cpp's converter would name and order it."""
    directory.mkdir()
    dequantized_checkpoint(source, directory, Silent())
    config = read_json(directory / "config.json")
    family, layers = config["model_type"], config["num_hidden_layers"]
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH[GGUF_FAMILIES[family].arch], layers)
    result = {}
    for name, values in stacked(load_file(directory / "model.safetensors")).items():
        if family.startswith("gemma") and name.endswith("norm.weight"):
            values = values + np.float32(1)
        skipped = config.get("no_rope_layers") == [1, 1, 1, 0] and ".3." in name
        if family in ROTATED_IN_PAIRS and not skipped:
            heads = {"q": config["num_attention_heads"], "k": config["num_key_value_heads"]}
            if found := re.search(r"\.([qk])_proj\.", name):
                flat = values.reshape(len(values), -1)
                values = interleave(flat, heads[found[1]]).reshape(values.shape)
        result[names.get_name(name, (".weight", ".bias"))] = values
    if family == "olmoe":
        result["output.weight"] = result["token_embd.weight"]
    return result


def stacked(weights: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Experts as one tensor per projection, and granite's joined gate and up as two."""
    result, experts = {}, {}
    for name, values in weights.items():
        if found := re.search(r"\.experts\.(\d+)\.", name):
            merged = name.replace(found[0], ".experts.")
            experts.setdefault(merged, {})[int(found[1])] = values
            continue
        joined = next((key for key in MERGED if key in name), None)
        if joined:
            for part, half in zip(MERGED[joined], np.split(values, 2, axis=-2), strict=True):
                result[name.replace(joined, part)] = half
        else:
            result[name] = values
    for name, parts in experts.items():
        result[name] = np.stack([parts[e] for e in range(len(parts))])
    return result


@pytest.mark.parametrize("family", OPTIONS)
def test_every_tensor_equals_the_dequantized_checkpoint_bit_for_bit(
    exported: Callable[..., tuple[Path, Path]], tmp_path: Path, family: str
) -> None:
    source, out = exported(family)
    wanted, found = expected(source, tmp_path / "plain"), read(out)
    assert sorted(found) == sorted(wanted)
    for name, values in wanted.items():
        assert found[name].shape == values.shape or found[name].shape == values.squeeze().shape
        np.testing.assert_array_equal(found[name].reshape(values.shape), values, name)


def test_every_mapped_family_is_tested() -> None:
    assert set(OPTIONS) == set(GGUF_FAMILIES)


@pytest.mark.parametrize("scheme", ["none", "int8", "int4-g64", "int4-channel"])
def test_every_scheme_is_exact(
    exported: Callable[..., tuple[Path, Path]], tmp_path: Path, scheme: str
) -> None:
    source, out = exported("mixtral", scheme)
    found = read(out)
    for name, values in expected(source, tmp_path / "plain").items():
        np.testing.assert_array_equal(found[name], values, name)


def test_types_are_those_of_the_scheme(exported: Callable[..., tuple[Path, Path]]) -> None:
    kinds = {t.name: t.tensor_type.name for t in gguf.GGUFReader(exported("mixtral")[1]).tensors}
    assert kinds["token_embd.weight"] == "Q8_0"
    assert kinds["blk.1.attn_q.weight"] == kinds["blk.0.ffn_down_exps.weight"] == "Q4_0"
    assert kinds["blk.0.ffn_gate_inp.weight"] == kinds["output_norm.weight"] == "F32"
    kinds = {t.name: t.tensor_type.name
             for t in gguf.GGUFReader(exported("mixtral", "none")[1]).tensors}  # fmt: skip
    assert kinds["token_embd.weight"] == kinds["blk.0.ffn_down_exps.weight"] == "F16"


def test_metadata_of_a_mixture(exported: Callable[..., tuple[Path, Path]]) -> None:
    values = fields(exported("qwen3_moe")[1])
    assert values["general.architecture"] == "qwen3moe"
    wanted = {
        "block_count": 2, "context_length": 512, "embedding_length": 64, "vocab_size": 512,
        "attention.head_count": 4, "attention.head_count_kv": 2, "attention.key_length": 32,
        "attention.value_length": 32, "rope.dimension_count": 32, "rope.freq_base": 10000.0,
        "expert_count": 4, "expert_used_count": 2, "expert_feed_forward_length": 64,
        "attention.layer_norm_rms_epsilon": float(np.float32(1e-6)),
    }  # fmt: skip
    assert {key: values[f"qwen3moe.{key}"] for key in wanted} == wanted


def test_metadata_of_gemma3_has_both_rotary_bases_and_the_window(
    exported: Callable[..., tuple[Path, Path]],
) -> None:
    values = fields(exported("gemma3_text")[1])
    assert values["gemma3.rope.freq_base"] == 1e6
    assert values["gemma3.rope.freq_base_swa"] == 1e4
    assert values["gemma3.attention.sliding_window"] == 24


def test_metadata_of_granite_has_its_scales(exported: Callable[..., tuple[Path, Path]]) -> None:
    values = fields(exported("granite")[1])
    assert values["granite.attention.scale"] == float(np.float32(0.2))
    assert values["granite.residual_scale"] == 0.5
    assert values["granite.embedding_scale"] == 3.0
    assert values["granite.logit_scale"] == 2.0


def test_window_that_llama_cpp_does_not_know_bounds_the_context(
    exported: Callable[..., tuple[Path, Path]],
) -> None:
    assert fields(exported("phi3")[1])["phi3.context_length"] == 24


def test_llama3_frequencies_become_divisors(exported: Callable[..., tuple[Path, Path]]) -> None:
    rope = {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 64}  # fmt: skip
    source, out = exported("llama", rope_parameters=rope)
    divisors = read(out)["rope_freqs.weight"]
    found = fields(out)["llama.rope.freq_base"] ** (-np.arange(16) / 16) / divisors
    from transformers import AutoConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    frequencies, _ = ROPE_INIT_FUNCTIONS["llama3"](AutoConfig.from_pretrained(source), "cpu")
    np.testing.assert_allclose(found, frequencies, rtol=1e-6)
    assert divisors.min() == 1.0
    assert divisors.max() == 8.0


def test_yarn_is_divisors_and_a_factor_of_attention(
    exported: Callable[..., tuple[Path, Path]],
) -> None:
    rope = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0,
            "original_max_position_embeddings": 128}  # fmt: skip
    _, out = exported("llama", rope_parameters=rope)
    divisors = read(out)["rope_freqs.weight"]
    assert (divisors[0], divisors[-1]) == (1.0, 4.0)
    assert fields(out)["llama.rope.scaling.attn_factor"] == pytest.approx(0.1 * np.log(4) + 1)


def test_longrope_has_both_sets_of_divisors(exported: Callable[..., tuple[Path, Path]]) -> None:
    short, long = [1.0 + i / 8 for i in range(16)], [2.0 + i for i in range(16)]
    rope = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": short, "long_factor": long,
            "original_max_position_embeddings": 64}  # fmt: skip
    _, out = exported("phi3", rope_parameters=rope, original_max_position_embeddings=64)
    found, values = read(out), fields(out)
    np.testing.assert_allclose(found["rope_factors_short.weight"], short, rtol=1e-6)
    np.testing.assert_allclose(found["rope_factors_long.weight"], long, rtol=1e-6)
    assert values["phi3.rope.scaling.original_context_length"] == 64
    assert values["phi3.rope.scaling.attn_factor"] == pytest.approx(np.sqrt(1 + 3 / 6))


def test_linear_scaling_is_a_factor(exported: Callable[..., tuple[Path, Path]]) -> None:
    rope = {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}
    values = fields(exported("qwen3", rope_parameters=rope)[1])
    assert values["qwen3.rope.scaling.type"] == "linear"
    assert values["qwen3.rope.scaling.factor"] == 4.0
    assert values["qwen3.rope.freq_base"] == 1e4


def test_scaling_that_the_architecture_does_not_take_is_refused(
    quantized: Callable[..., Path], tmp_path: Path
) -> None:
    rope = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0,
            "original_max_position_embeddings": 128}  # fmt: skip
    source = quantized("qwen3", "int4-g32", rope_parameters=rope)
    with pytest.raises(BadInputError, match="rotary positions scaled"):
        export_gguf(source, tmp_path / "m.gguf", Silent())


def test_importer_gives_the_same_values_back(
    exported: Callable[..., tuple[Path, Path]], tmp_path: Path
) -> None:
    source, out = exported("llama", attention_bias=False, mlp_bias=False)
    (tmp_path / "plain").mkdir()
    (tmp_path / "back").mkdir()
    dequantized_checkpoint(source, tmp_path / "plain", Silent())
    convert_gguf(out, tmp_path / "back", Silent())
    with Checkpoint(tmp_path / "plain") as plain, Checkpoint(tmp_path / "back") as back:
        assert back.architecture == plain.architecture
        for spec in plain.specs:
            values = plain.float32(spec.name)
            if spec.role != "norm":  # the importer keeps matrices as float16
                values = values.astype(np.float16).astype(np.float32)
            np.testing.assert_array_equal(back.float32(spec.name), values, spec.name)
    assert (tmp_path / "back/chat_template.jinja").read_text() == (
        source / "chat_template.jinja"
    ).read_text()


def test_variant_gives_the_same_file_as_its_checkpoint(
    exported: Callable[..., tuple[Path, Path]], variant: Callable[..., Path], tmp_path: Path
) -> None:
    _, out = exported("mixtral")
    export_gguf(variant("mixtral", **OPTIONS["mixtral"]), tmp_path / "m.gguf", Silent())
    assert (tmp_path / "m.gguf").read_bytes() == out.read_bytes()


def test_tokenizer_fields(exported: Callable[..., tuple[Path, Path]]) -> None:
    source, out = exported("llama")
    values = fields(out)
    content = read_json(source / "tokenizer.json")
    assert values["tokenizer.ggml.model"] == "gpt2"
    assert values["tokenizer.ggml.pre"] == "gpt-2"
    tokens = values["tokenizer.ggml.tokens"]
    assert len(tokens) == 512
    assert all(tokens[number] == token for token, number in content["model"]["vocab"].items())
    assert values["tokenizer.ggml.token_type"][:4] == [3, 3, 3, 1]
    assert values["tokenizer.ggml.merges"] == [" ".join(m) for m in content["model"]["merges"]]
    assert values["tokenizer.ggml.bos_token_id"] == 1
    assert values["tokenizer.ggml.eos_token_id"] == 2
    assert values["tokenizer.ggml.add_bos_token"] is False


@pytest.mark.parametrize(
    ("family", "options", "sentence"),
    [
        ("cohere", {}, "family 'cohere' is not exported to GGUF"),
        ("deepseek_v3", {}, "family 'deepseek_v3' is not exported"),
        ("olmoe", {"num_key_value_heads": 4}, "clips"),
        ("olmoe", {"clip_qkv": None}, "4 query and 2 key heads"),
        ("qwen2_moe", {**HALF_HEADS, "norm_topk_prob": True}, "gates are softmax, normalized"),
        ("qwen3_moe", {"norm_topk_prob": False}, "not normalized"),
        ("qwen3_moe", {"mlp_only_layers": [0]}, "dense and sparse layers are mixed"),
        ("gemma2", {}, "not divided by the root of 32"),
        ("gemma3_text", {"query_pre_attn_scalar": 32}, "every 6th"),
        ("smollm3", {}, "without rotary positions are not every 4th"),
        ("phi3", {}, "4 heads of 32 are not its hidden size 64"),
        ("llama", {"hidden_act": "gelu"}, "activation is not silu"),
    ],
)
def test_what_llama_cpp_would_compute_differently_is_refused(
    quantized: Callable[..., Path],
    tmp_path: Path,
    family: str,
    options: dict[str, Any],
    sentence: str,
) -> None:
    with pytest.raises(BadInputError, match=sentence):
        export_gguf(quantized(family, "int4-g32", **options), tmp_path / "m.gguf", Silent())
    assert list(tmp_path.iterdir()) == []


def test_inputs_that_are_not_whole_blocks_are_refused(
    quantized: Callable[..., Path], tmp_path: Path
) -> None:
    source = quantized("llama", "int4-channel", intermediate_size=136)
    with pytest.raises(BadInputError, match=r"down_proj\.weight has 136 inputs"):
        export_gguf(source, tmp_path / "m.gguf", Silent())


def test_unquantized_model_is_refused(tiny_llama: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match="edgekit quantize"):
        export_gguf(tiny_llama, tmp_path / "m.gguf", Silent())


def test_truncated_weights_are_refused_and_leave_nothing(
    quantized: Callable[..., Path], tmp_path: Path
) -> None:
    source = shutil.copytree(quantized("llama", "int8"), tmp_path / "q")
    content = (source / "model.safetensors").read_bytes()
    (source / "model.safetensors").write_bytes(content[:-100])
    with pytest.raises(BadInputError, match="truncated"):
        export_gguf(source, tmp_path / "out" / "m.gguf", Silent())
    assert not (tmp_path / "out").exists()


def test_interruption_while_writing_leaves_nothing(
    quantized: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(TensorFile, "array", interrupt)
    with pytest.raises(KeyboardInterrupt):
        export_gguf(quantized("llama", "int8"), tmp_path / "m.gguf", Silent())
    assert list(tmp_path.iterdir()) == []


def test_existing_file_is_kept(quantized: Callable[..., Path], tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_text("mine")
    with pytest.raises(BadInputError, match=r"m\.gguf exists already"):
        export_gguf(quantized("llama", "int8"), tmp_path / "m.gguf", Silent())
    assert (tmp_path / "m.gguf").read_text() == "mine"


def test_missing_gguf_package_names_the_extra(
    quantized: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = quantized("llama", "int8")
    monkeypatch.setitem(__import__("sys").modules, "gguf", None)
    with pytest.raises(MissingRuntimeError, match=r"edgekit\[build\]"):
        export_gguf(source, tmp_path / "m.gguf", Silent())


def test_command_line_writes_the_file_and_says_what_it_is(
    quantized: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = quantized("llama", "int4-g32", **OPTIONS["llama"])
    out = tmp_path / "m.gguf"
    assert main(["export", "gguf", str(source), "--out", str(out), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["architecture"] == "llama"
    assert report["size_bytes"] == out.stat().st_size
    assert report["tensors"]["Q4_0"] == 14
