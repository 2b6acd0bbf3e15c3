"""Checkpoints that arrive quantized: their integers are kept where they fit, else decoded."""

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from source_files import MXFP4

from edgekit.checkpoint import Checkpoint
from edgekit.progress import Silent
from edgekit.quantize.reference import dequantized_checkpoint
from edgekit.quantize.write import quantize
from edgekit.scheme import CONSTANTS, Scheme, read_scheme
from edgekit.tensorfile import TensorFile

WEIGHTS = "model.safetensors"


def foreign(directory, tmp_path):
    """A quantized checkpoint of ours as another tool would have written it."""
    source = tmp_path / "source"
    shutil.copytree(directory, source)
    config = json.loads((source / "config.json").read_text())
    del config["quantization_config"]["edgekit_scheme"]
    (source / "config.json").write_text(json.dumps(config))
    tensors = load_file(source / WEIGHTS)
    del tensors[CONSTANTS]
    save_file(tensors, source / WEIGHTS)
    return source


@pytest.mark.parametrize("family", ["qwen3", "mixtral"])
def test_integers_of_our_form_are_taken_over_bit_by_bit(quantized, tmp_path, family):
    ours = quantized(family, "int4-g32")
    out = tmp_path / "out"
    out.mkdir()
    report = quantize(foreign(ours, tmp_path), Scheme.parse("int4-g32"), out, Silent())
    assert (out / WEIGHTS).read_bytes() == (ours / WEIGHTS).read_bytes()
    with Checkpoint(tmp_path / "source") as checkpoint:
        scheme = read_scheme(ours)
        packed = sum(s.parameters for s in checkpoint.specs if scheme.packing(s))
    assert report.taken_over == packed
    assert report.relative_error == 0


def test_integers_of_another_form_are_rounded_again(quantized, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    source = foreign(quantized("qwen3", "int4-g32"), tmp_path)
    report = quantize(source, Scheme.parse("int4-g64"), out, Silent())
    with Checkpoint(source) as checkpoint:
        embedding = checkpoint.architecture.by_name["model.embed_tokens.weight"]
    # 8-bit groups of 32 do not join to groups of 64, nor do those of 4 bits
    assert report.taken_over == 0 < embedding.parameters
    assert report.relative_error > 1e-5


def test_mxfp4_experts_of_gpt_oss_are_read_as_transformers_reads_them(tiny_model, tmp_path):
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    source = tmp_path / "source"
    shutil.copytree(tiny_model("gpt_oss"), source)
    tensors = load_file(source / WEIGHTS)
    rng = np.random.default_rng(0)
    expected = {}
    for name in [n for n in tensors if n.endswith(("experts.gate_up_proj", "experts.down_proj"))]:
        count, inputs, outputs = tensors.pop(name).shape
        shape = (count, outputs, inputs // 32)
        blocks = torch.from_numpy(rng.integers(0, 256, (*shape, 16), np.uint8))
        scales = torch.from_numpy(rng.integers(120, 128, shape, np.uint8))
        tensors[name + "_blocks"], tensors[name + "_scales"] = blocks, scales
        expected[name] = convert_moe_packed_tensors(blocks, scales, dtype=torch.float32)
    save_file(tensors, source / WEIGHTS)
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps({**config, "quantization_config": MXFP4}))
    with Checkpoint(source) as checkpoint:
        assert checkpoint.stored_as == "mxfp4"
        for layer in (0, 1):
            prefix = f"model.layers.{layer}.mlp.experts"
            for e in range(4):
                both = checkpoint.float32(f"{prefix}.{e}.gate_up_proj.weight")
                down = checkpoint.float32(f"{prefix}.{e}.down_proj.weight")
                np.testing.assert_array_equal(both, expected[prefix + ".gate_up_proj"][e].T)
                np.testing.assert_array_equal(down, expected[prefix + ".down_proj"][e].T)


def test_float8_blocks_of_deepseek_become_what_they_stand_for(tiny_model, tmp_path):
    source, out, plain = (tmp_path / name for name in ("source", "out", "plain"))
    shutil.copytree(tiny_model("deepseek_v3"), source)
    tensors = load_file(source / WEIGHTS)
    expected = {}
    for name, value in list(tensors.items()):
        if value.ndim != 2 or any(part in name for part in ("embed", "lm_head", "gate.weight")):
            continue
        scale = value.abs().max() / 400
        tensors[name] = (value / scale).to(torch.float8_e4m3fn)
        rows, columns = (-(-side // 128) for side in value.shape)
        tensors[name + "_scale_inv"] = scale.expand(rows, columns).clone()
        expected[name] = tensors[name].float() * scale
    save_file(tensors, source / WEIGHTS)
    config = json.loads((source / "config.json").read_text())
    fp8 = {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [128, 128]}
    (source / "config.json").write_text(json.dumps({**config, "quantization_config": fp8}))
    out.mkdir()
    plain.mkdir()
    quantize(source, Scheme.parse("none"), out, Silent())
    assert "quantization_config" not in json.loads((out / "config.json").read_text())
    dequantized_checkpoint(out, plain, Silent())
    with TensorFile(plain / WEIGHTS) as file:
        for name, value in expected.items():
            np.testing.assert_array_equal(file.float32(name), value.half().float())
