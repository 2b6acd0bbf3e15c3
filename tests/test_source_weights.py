"""What a checkpoint is said to store and what it stores: plain, left out, damaged; and memory."""

import tracemalloc

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from source_files import (
    AWQ,
    EXPERTS,
    FP8,
    GPTQ,
    MODULE,
    MXFP4,
    WEIGHT,
    awq_parts,
    float8,
    generator,
    gptq_parts,
    integers,
    mxfp4,
    open_weights,
    packed_config,
    packed_parts,
    same,
    scale_of,
    stored,
)

from edgekit.errors import BadInputError
from edgekit.source_weights import SourceWeights
from edgekit.tensorfile import TensorFile


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32", "float64"])
def test_plain_tensors_are_what_torch_reads_whole_and_by_rows(tmp_path, dtype):
    value = torch.randn(7, 5, generator=torch.manual_seed(0)).to(getattr(torch, dtype))
    source = open_weights(tmp_path, {"x": value, "scalar": value[0, 0], "vector": value[0]})
    same(source.float32("x"), value.float())
    same(source.float32("x", slice(2, 5)), value[2:5].float())
    same(source.float32("x", slice(-2, None)), value[-2:].float())
    same(source.float32("x", slice(5, 3)), value[5:3].float())
    same(source.float32("vector", slice(1, 3)), value[0, 1:3].float())
    same(source.float32("scalar"), value[0, 0].float())
    assert source.shape("x") == (7, 5)
    assert source.nbytes("x") == 35 * value.itemsize
    assert source.codes("x") is None
    assert "not as integers" in source.misfit("x")


def test_rows_with_a_step_and_unknown_names_are_refused(tmp_path):
    source = open_weights(tmp_path, {"x": torch.ones(4)})
    with pytest.raises(ValueError, match="step of 2"):
        source.float32("x", slice(0, 4, 2))
    with pytest.raises(BadInputError, match="'y' is missing"):
        source.float32("y")


def test_modules_left_out_are_plain(tmp_path):
    rng = generator()
    tensors = {
        WEIGHT: float8(rng, 4, 4),
        WEIGHT + "_scale_inv": scale_of(rng, 1, 1),
        "lm_head.weight": torch.ones(4, 4).bfloat16(),
        "model.norm.weight": torch.ones(4),
    }
    source = open_weights(tmp_path, tensors, {**FP8, "modules_to_not_convert": ["lm_head"]})
    assert sorted(source.names()) == ["lm_head.weight", WEIGHT, "model.norm.weight"]
    assert source.dtype("lm_head.weight") == "BF16"
    same(source.float32("lm_head.weight"), np.ones((4, 4)))


@pytest.mark.parametrize(
    ("entry", "excluded"),
    [
        ("up_proj", True),
        ("mlp.up_proj", True),
        ("model.layers.0", True),
        (r"model.layers.\d+.mlp", True),
        ("up", False),
        ("layers.0.mlp.up", False),
        ("model.layers.00", False),
        ("*.up_proj", False),
    ],
)
def test_an_excluded_module_that_is_quantized_all_the_same_is_refused(tmp_path, entry, excluded):
    rng = generator()
    tensors = {WEIGHT: float8(rng, 4, 4), WEIGHT + "_scale_inv": scale_of(rng, 1, 1)}
    config = {**FP8, "modules_to_not_convert": [entry]}
    if excluded:
        with pytest.raises(BadInputError, match="modules_to_not_convert of config"):
            open_weights(tmp_path, tensors, config)
    else:
        assert open_weights(tmp_path, tensors, config).names() == [WEIGHT]


@pytest.mark.parametrize(
    ("entry", "excluded"), [(MODULE, True), ("re:.*up_proj", True), ("up_proj", False)]
)
def test_ignore_of_compressed_tensors_means_a_whole_path_or_an_expression(
    tmp_path, entry, excluded
):
    _, _, state = packed_parts(generator(), 6, 64, 4, 2)
    config = {**packed_config(), "ignore": [entry]}
    if excluded:
        with pytest.raises(BadInputError, match="ignore of config"):
            open_weights(tmp_path, stored(state), config)
    else:
        assert open_weights(tmp_path, stored(state), config).names() == [WEIGHT]


def test_the_quantization_of_a_text_config_and_an_older_key_are_found(tmp_path):
    _, _, state = packed_parts(generator(), 6, 64, 4, 2)
    assert open_weights(
        tmp_path, stored(state), text_config={"quantization_config": packed_config()}
    ).names() == [WEIGHT]
    assert open_weights(tmp_path, stored(state), compression_config=packed_config()).names() == [
        WEIGHT
    ]


def test_what_no_format_claims_stays_visible(tmp_path):
    _, _, state = packed_parts(generator(), 6, 64, 4, 2)
    orphan = "model.layers.1.mlp.up_proj.weight_scale"
    extra = {orphan: torch.ones(1), "ids": torch.ones(2).long()}
    source = open_weights(tmp_path, {**stored(state), **extra}, packed_config())
    assert sorted(source.names()) == ["ids", WEIGHT, orphan]
    with pytest.raises(BadInputError, match="'ids' is I64, a floating-point type was expected"):
        source.float32("ids")


def fp8_file():
    rng = generator()
    return {WEIGHT: float8(rng, 300, 200), WEIGHT + "_scale_inv": scale_of(rng, 3, 2)}, dict(FP8)


def mxfp4_file():
    blocks, scales = mxfp4(generator())
    return {EXPERTS + "_blocks": blocks, EXPERTS + "_scales": scales}, dict(MXFP4)


def packed_file():
    _, _, state = packed_parts(generator(), 6, 64, 4, 2)
    return stored(state), packed_config()


def asymmetric_file():
    _, _, state = packed_parts(generator(), 6, 64, 4, 2, False)
    return stored(state), packed_config(symmetric=False)


def gptq_file():
    g_idx = np.arange(64) // 32
    return gptq_parts(*integers(generator(), 8, 64, 2), g_idx=g_idx), dict(GPTQ)


def awq_file():
    return awq_parts(*integers(generator(), 8, 64, 2)), dict(AWQ)


def without(name):
    return lambda tensors, config: tensors.pop(name)


def replaced(name, value):
    return lambda tensors, config: tensors.__setitem__(name, value)


def changed(**values):
    return lambda tensors, config: config.update(values)


def weights(**values):
    return lambda tensors, config: config["config_groups"]["group_0"]["weights"].update(values)


UP = r"model\.layers\.0\.mlp\.up_proj"
DAMAGE = {
    "fp8: no scale": (fp8_file, without(WEIGHT + "_scale_inv"),
                      rf"{UP}\.weight' cannot be read without .*_scale_inv' or .*missing"),
    "fp8: short scale": (fp8_file, replaced(WEIGHT + "_scale_inv", torch.ones(2, 2)),
                         r"_scale_inv' has shape \[2, 2\] but .* need \[3, 2\]"),
    "fp8: integer scale": (fp8_file, replaced(WEIGHT + "_scale_inv", torch.ones(3, 2).int()),
                           r"_scale_inv' is I32, expected F32"),
    "fp8: block": (fp8_file, changed(weight_block_size=[128]), "weight_block_size is"),
    "fp8: block of 0": (fp8_file, changed(weight_block_size=[0, 1]), "weight_block_size is"),
    "fp8: other block": (fp8_file, changed(weight_block_size=[64, 128]), r"need \[5, 2\]"),
    "fp8: vector": (fp8_file, replaced(WEIGHT, torch.ones(3).to(torch.float8_e4m3fn)),
                    "expected a matrix"),
    "fp8: exclusions": (fp8_file, changed(modules_to_not_convert="lm_head"),
                        "modules_to_not_convert is not a list"),
    "mxfp4: no scales": (mxfp4_file, without(EXPERTS + "_scales"),
                         "gate_up_proj_blocks' cannot be read without"),
    "mxfp4: short scales": (mxfp4_file, replaced(EXPERTS + "_scales",
                                                 torch.ones(3, 10, 1).byte()),
                            r"_scales' has shape \[3, 10, 1\], expected \[3, 10, 2\]"),
    "mxfp4: float scales": (mxfp4_file, replaced(EXPERTS + "_scales", torch.ones(3, 10, 2)),
                            "_scales' is F32"),
    "mxfp4: blocks": (mxfp4_file, replaced(EXPERTS + "_blocks", torch.ones(3, 10, 2, 8).byte()),
                      r"expected \[experts, rows, groups, 16\]"),
    "packed: no scale": (packed_file, without(WEIGHT + "_scale"), "cannot be read without"),
    "packed: no shape": (packed_file, without(WEIGHT + "_shape"), "weight_shape', which is miss"),
    "packed: other shape": (packed_file, replaced(WEIGHT + "_shape", torch.tensor([5, 64])),
                            r"weight_shape' says \[5, 64\]"),
    "packed: negative": (packed_file, replaced(WEIGHT + "_shape", torch.tensor([6, -64])),
                         r"weight_shape' says \[6, -64\]"),
    "packed: huge shape": (packed_file, replaced(WEIGHT + "_shape", torch.tensor([6, 1 << 62])),
                           "weight_packed' has 8 words per row"),
    "packed: shape of 3": (packed_file, replaced(WEIGHT + "_shape", torch.tensor([1, 6, 64])),
                           r"weight_shape' has shape \[3\]"),
    "packed: short scale": (packed_file, replaced(WEIGHT + "_scale", torch.ones(6, 1)),
                            r"weight_scale' has shape \[6, 1\], which no entry"),
    "packed: zero points": (packed_file, replaced(WEIGHT + "_zero_point",
                                                  torch.ones(6, 2).int()),
                            r"zero_point' has shape \[6, 2\], expected \[1, 2\]"),
    "packed: no zero points": (asymmetric_file, without(WEIGHT + "_zero_point"),
                               r"without .*_zero_point', which is missing"),
    "packed: order": (packed_file, replaced(WEIGHT + "_g_idx", torch.ones(6).int()),
                      r"g_idx' has shape \[6\], expected \[64\]"),
    "packed: bytes": (packed_file, replaced(WEIGHT + "_packed", torch.ones(6, 8).byte()),
                      "weight_packed' is U8"),
    "packed: three axes": (packed_file, replaced(WEIGHT + "_packed", torch.ones(1, 6, 8).int()),
                           r"of shape \[1, 6, 8\], expected a matrix"),
    "packed: bits 3": (packed_file, weights(num_bits=3), r"num_bits is 3 .* give the original"),
    "packed: bits 8": (packed_file, weights(num_bits=8), "has 8 words per row"),
    "packed: float": (packed_file, weights(num_bits=8, type="float"), "no entry of config_groups"),
    "packed: strategy": (packed_file, weights(strategy="tensor_group"), "strategy is 'tensor_gr"),
    "packed: block": (packed_file, weights(strategy="block"), "strategy is block"),
    "packed: group": (packed_file, weights(group_size=-3), "group_size is -3"),
    "packed: format": (packed_file, changed(format="nvfp4-pack-quantized"), "format is 'nvfp4"),
    "packed: groups": (packed_file, changed(config_groups={}), "config_groups is missing"),
    "packed: preset": (packed_file, changed(config_groups={"W4A16": ["Linear"]}), "'W4A16' that"),
    "packed: rotated": (packed_file, changed(transform_config={"config_groups": {"R1": {}}}),
                        "rotated"),
    "packed: sparse": (packed_file, changed(sparsity_config={"format": "sparse-24"}), "sparse"),
    "packed: ignore": (packed_file, changed(ignore=["re:("]), "not a regular expression"),
    "packed: twice": (packed_file, replaced(WEIGHT, torch.ones(6, 64)), "stored a second time"),
    "gptq: no scales": (gptq_file, without(MODULE + ".scales"),
                        rf"{UP}\.qweight' cannot be read without"),
    "gptq: no zeros": (gptq_file, without(MODULE + ".qzeros"), r"without .*qzeros', which is mis"),
    "gptq: scales": (gptq_file, replaced(MODULE + ".scales", torch.ones(1, 8)),
                     r"scales' has shape \[1, 8\], expected \[2, 8\]"),
    "gptq: zeros": (gptq_file, replaced(MODULE + ".qzeros", torch.ones(2, 2).int()),
                    r"qzeros' has shape \[2, 2\], expected \[2, 1\]"),
    "gptq: order": (gptq_file, replaced(MODULE + ".g_idx", torch.ones(63).int()),
                    r"g_idx' has shape \[63\]"),
    "gptq: weight": (gptq_file, replaced(MODULE + ".qweight", torch.ones(8).int()), "two axes"),
    "gptq: bits 3": (gptq_file, changed(bits=3), r"bits is 3, edgekit reads 4 and 8; give the"),
    "gptq: bits 3 of one": (gptq_file, changed(dynamic={".*up_proj": {"bits": 3}}), "bits is 3"),
    "gptq: no order": (lambda: (gptq_file()[0], {**GPTQ, "desc_act": True}),
                       without(MODULE + ".g_idx"), r"without .*g_idx', which is missing"),
    "gptq: bits": (gptq_file, changed(bits="4"), "bits is '4'"),
    "gptq: group": (gptq_file, changed(group_size=0), "group_size is 0"),
    "gptq: format": (gptq_file, changed(checkpoint_format="marlin"), "is 'marlin'"),
    "gptq: marlin": (gptq_file, changed(is_marlin_format=True), "is_marlin_format"),
    "gptq: words": (gptq_file, changed(pack_dtype="int8"), "pack_dtype"),
    "gptq: dynamic": (gptq_file, changed(dynamic={"+:(": {}}), "dynamic has '\\('"),
    "awq: no scales": (awq_file, without(MODULE + ".scales"), "cannot be read without"),
    "awq: no zeros": (awq_file, without(MODULE + ".qzeros"), "cannot be read without"),
    "awq: scales": (awq_file, replaced(MODULE + ".scales", torch.ones(2, 7)),
                    r"expected \[2, 8\]"),
    "awq: bits 8": (awq_file, changed(bits=8), "bits is 8, edgekit reads 4"),
    "awq: gemv": (awq_file, changed(version="gemv"), "version is 'gemv'"),
    "method": (fp8_file, changed(quant_method="bitsandbytes"),
               r"quant_method is 'bitsandbytes', edgekit reads awq, .*; give the original"),
    "no method": (fp8_file, lambda tensors, config: config.pop("quant_method"), "quant_method"),
}  # fmt: skip


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_is_refused_in_one_sentence_when_opened(tmp_path, kind):
    build, damage, message = DAMAGE[kind]
    tensors, config = build()
    assert open_weights(tmp_path, tensors, config).names()
    damage(tensors, config)
    with pytest.raises(BadInputError, match=message) as caught:
        open_weights(tmp_path, tensors, config)
    text = str(caught.value)
    assert "; " in text or ", " in text
    assert "\n" not in text


@pytest.mark.parametrize("build", [fp8_file, packed_file, gptq_file, awq_file, mxfp4_file])
def test_quantized_tensors_without_a_quantization_config_are_refused(tmp_path, build):
    with pytest.raises(BadInputError, match="has no quantization_config"):
        open_weights(tmp_path, build()[0])


def test_a_group_order_outside_of_the_groups_is_refused_when_read(tmp_path):
    tensors, config = gptq_file()
    tensors[MODULE + ".g_idx"][3] = 2
    with pytest.raises(BadInputError, match="g_idx' names groups outside of 0 to 1"):
        open_weights(tmp_path, tensors, config).float32(WEIGHT)


def test_bytes_wider_than_their_bits_are_refused_when_read(tmp_path):
    tensors = {
        WEIGHT: torch.full((2, 32), 8, dtype=torch.int8),
        WEIGHT + "_scale": torch.ones(2, 1),
    }
    source = open_weights(tmp_path, tensors, packed_config(4, None, form="int-quantized"))
    with pytest.raises(BadInputError, match="outside of 4 bits"):
        source.float32(WEIGHT)


@settings(max_examples=150, deadline=None)
@given(data=st.data(), build=st.sampled_from([fp8_file, packed_file, gptq_file, awq_file]))
def test_any_json_as_quantization_config_is_read_or_refused(tmp_path_factory, data, build):
    tensors, config = build()
    json_values = st.recursive(
        st.none() | st.booleans() | st.integers(-2, 300) | st.floats() | st.text(max_size=5)
        | st.sampled_from(["gptq", "awq", "fp8", "mxfp4", "compressed-tensors", "re:(", "group"]),
        lambda inner: st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from([*config, "weights", "targets", "num_bits"]), inner),
        max_leaves=8,
    )  # fmt: skip
    keys = st.sampled_from([*config, "dynamic", "ignore", "format", "config_groups"])
    config.update(data.draw(st.dictionaries(keys, json_values, max_size=3)))
    path = tmp_path_factory.mktemp("any") / "x.safetensors"
    save_file({name: value.clone().contiguous() for name, value in tensors.items()}, path)
    with TensorFile(path) as file:
        try:
            source = SourceWeights(
                {"quantization_config": config}, dict.fromkeys(file.tensors, file)
            )
            for name in source.names():
                if source.dtype(name) not in ("I32", "I64", "F8_E4M3"):
                    assert source.float32(name).shape == source.shape(name)
                source.codes(name)
        except BadInputError as error:
            assert "\n" not in str(error)


def peak_of(action):
    tracemalloc.start()
    try:
        action()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_one_expert_of_many_costs_the_memory_of_one(tmp_path):
    rng = generator()
    blocks, scales = mxfp4(rng, experts=16, rows=512, groups=16)
    fused = "model.layers.1.mlp.experts.gate_up_proj"
    mxfp4_source = open_weights(
        tmp_path, {EXPERTS + "_blocks": blocks, EXPERTS + "_scales": scales}, MXFP4
    )
    fp8_source = open_weights(
        tmp_path,
        {fused: float8(rng, 16, 512, 512), fused + "_scale_inv": scale_of(rng, 16, 4, 4)},
        FP8,
    )
    plain = open_weights(tmp_path, {fused: torch.ones(16, 512, 512).bfloat16()})
    expert = 512 * 512 * 4
    for source, name in [(mxfp4_source, EXPERTS), (fp8_source, fused), (plain, fused)]:
        peak = peak_of(lambda s=source, n=name: s.float32(n, slice(7, 8)))
        assert peak < 2 * expert  # of 16


@pytest.mark.parametrize("build", [gptq_parts, awq_parts])
def test_rows_of_an_integer_matrix_cost_the_memory_of_the_rows(tmp_path, build):
    codes, zeros, scales = integers(generator(), 512, 512, 16)
    source = open_weights(
        tmp_path, build(codes, zeros, scales), GPTQ if build is gptq_parts else AWQ
    )
    peak = peak_of(lambda: source.float32(WEIGHT, slice(64, 96)))
    assert peak < 4 * (32 * 512 * 4)  # of 16


def test_opening_reads_no_weights(tmp_path):
    tensors, config = mxfp4_file()
    many = {f"layers.{i}.{name}": value for i in range(50) for name, value in tensors.items()}
    large = {"layers.99.x_blocks": torch.zeros(64, 64, 16, 16, dtype=torch.uint8),
             "layers.99.x_scales": torch.zeros(64, 64, 16, dtype=torch.uint8)}  # fmt: skip
    assert peak_of(lambda: open_weights(tmp_path, {**many, **large}, config)) < 5_000_000
