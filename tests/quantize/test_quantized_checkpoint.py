"""The written checkpoint: its layout, its config, and what transformers makes of it."""

import itertools
import json

import numpy as np
import pytest
import torch

from edgekit.checkpoint import Checkpoint
from edgekit.errors import BadInputError
from edgekit.plan import weights_bytes
from edgekit.progress import Silent
from edgekit.quantize.reference import transformers_checkpoint
from edgekit.quantize.write import quantize
from edgekit.scheme import Scheme, dequantize
from edgekit.tensorfile import TensorFile


@pytest.mark.parametrize("family", ["llama", "qwen2", "mixtral", "qwen3_moe"])
def test_transformers_loads_it_and_computes_the_dequantized_model(
    quantized, reference, tmp_path, family
):
    from transformers import AutoModelForCausalLM

    transformers_checkpoint(quantized(family, "int4-g32"), tmp_path, Silent())
    model = AutoModelForCausalLM.from_pretrained(
        tmp_path, dtype=torch.float32, experts_implementation="eager"
    ).eval()
    torch.nn.Module.float(model)  # transformers leaves fused experts in float16
    ids = torch.arange(3, 40)[None]
    with torch.inference_mode():
        found = model(ids).logits
        expected = reference(family, "int4-g32")(ids).logits
    # float16 embedding and compressed-tensors' float16 arithmetic: about 1e-3 of the range
    assert (found - expected).abs().max() < 5e-3 * expected.abs().max()


def test_experts_of_a_projection_lie_side_by_side(quantized):
    with TensorFile(quantized("mixtral", "int4-g32") / "model.safetensors") as file:
        prefix = "model.layers.1.block_sparse_moe.experts"
        for part in ("packed", "scale"):
            infos = [file.info(f"{prefix}.{e}.w2.weight_{part}") for e in range(4)]
            for before, after in itertools.pairwise(infos):
                assert after.offset == before.offset + before.nbytes


def test_router_and_norms_are_untouched(quantized, tiny_mixtral):
    with (
        TensorFile(quantized("mixtral", "int4-g32") / "model.safetensors") as file,
        Checkpoint(tiny_mixtral) as original,
    ):
        for spec in original.specs:
            if spec.role in ("router", "norm", "bias"):
                np.testing.assert_array_equal(file.float32(spec.name), original.float32(spec.name))


def test_embedding_and_head_are_eight_bit(quantized, tiny_qwen3_moe):
    scheme = Scheme.parse("int4-g32")
    with (
        TensorFile(quantized("qwen3_moe", "int4-g32") / "model.safetensors") as file,
        Checkpoint(tiny_qwen3_moe) as original,
    ):
        for spec in (s for s in original.specs if s.role in ("embedding", "head")):
            packing = scheme.packing(spec)
            assert packing.bits == 8
            values = original.float32(spec.name)
            error = np.abs(dequantize(file, spec.name, packing) - values).max()
            assert error < np.abs(values).max() / 100


@pytest.mark.parametrize("scheme", ["none", "int8", "int4-g32", "int4-g64", "int4-channel"])
def test_the_plan_knows_the_size_to_the_header(quantized, tiny_qwen3_moe, scheme):
    file = quantized("qwen3_moe", scheme) / "model.safetensors"
    header = int.from_bytes(file.read_bytes()[:8], "little") + 8
    with Checkpoint(tiny_qwen3_moe) as original:
        expected = weights_bytes(original.architecture, Scheme.parse(scheme))
    assert file.stat().st_size - header == expected


def test_a_group_that_does_not_divide_is_refused_with_those_that_do(tiny_model, tmp_path):
    model = tiny_model("llama", hidden_size=96, num_attention_heads=3, num_key_value_heads=1)
    with pytest.raises(BadInputError, match=r"96 inputs.*use int4-g32 or int4-channel"):
        quantize(model, Scheme.parse("int4-g64"), tmp_path, Silent())


def test_nan_weights_are_refused_by_name(tiny_llama, tmp_path):
    from safetensors.numpy import load_file, save_file

    tensors = load_file(tiny_llama / "model.safetensors")
    tensors["model.layers.0.mlp.up_proj.weight"][3, 5] = np.nan
    bad, out = tmp_path / "bad", tmp_path / "out"
    bad.mkdir(), out.mkdir()
    save_file(tensors, bad / "model.safetensors")
    (bad / "config.json").write_bytes((tiny_llama / "config.json").read_bytes())
    with pytest.raises(BadInputError, match=r"layers\.0\.mlp\.up_proj\.weight' holds NaN"):
        quantize(bad, Scheme.parse("int4-g32"), out, Silent())


def test_a_quantized_checkpoint_is_not_quantized_again(quantized, tmp_path):
    with pytest.raises(BadInputError, match="quantized already"):
        quantize(quantized("llama", "int4-g32"), Scheme.parse("int8"), tmp_path, Silent())


def test_the_config_names_the_scheme_for_other_tools(quantized):
    config = json.loads((quantized("mixtral", "int4-g32") / "config.json").read_text())
    settings = config["quantization_config"]
    assert settings["format"] == "pack-quantized"
    assert settings["config_groups"]["group_0"]["weights"]["group_size"] == 32
    assert "model.layers.0.block_sparse_moe.gate" in settings["ignore"]
