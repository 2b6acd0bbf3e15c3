"""Integer weights against compressed-tensors and the definitions of GPTQ and AWQ."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from source_files import (
    AWQ,
    GPTQ,
    MODULE,
    WEIGHT,
    awq_parts,
    generator,
    gptq_parts,
    integers,
    open_weights,
    packed_config,
    packed_parts,
    same,
    scale_of,
    stored,
)

from edgekit.errors import BadInputError
from edgekit.scheme import Packing
from edgekit.source_weights import SourceWeights
from edgekit.tensorfile import TensorFile


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize(
    ("rows", "columns", "group_size"), [(10, 64, 32), (7, 96, None), (3, 61, None), (9, 30, 10)]
)
def test_packed_matrices_decompress_as_the_package_says(
    tmp_path, bits, symmetric, rows, columns, group_size
):
    from compressed_tensors.compressors.pack_quantized import PackedQuantizationCompressor
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme

    groups = columns // (group_size or columns)
    _, _, state = packed_parts(generator(), rows, columns, bits, groups, symmetric)
    config = packed_config(bits, group_size, symmetric)
    args = QuantizationArgs(**config["config_groups"]["group_0"]["weights"])
    expected = PackedQuantizationCompressor.decompress(
        {**state, "weight_shape": torch.Size([rows, columns])},
        QuantizationScheme(targets=["Linear"], weights=args),
    )["weight"]
    source = open_weights(tmp_path, stored(state), config)
    assert source.names() == [WEIGHT]
    assert source.dtype(WEIGHT) == f"int{bits}-" + (f"g{group_size}" if group_size else "channel")
    same(source.float32(WEIGHT), expected)
    for start, stop in [(0, 1), (1, 3), (2, rows)]:
        same(source.float32(WEIGHT, slice(start, stop)), expected[start:stop])


@pytest.mark.parametrize("scale_dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize(("bits", "group_size"), [(4, 32), (8, None)])
def test_a_symmetric_packed_matrix_is_taken_over_bit_by_bit(
    tmp_path, scale_dtype, bits, group_size
):
    signed, _, state = packed_parts(generator(), 6, 64, bits, 64 // (group_size or 64))
    scale = state["weight_scale"].to(torch.float16).to(scale_dtype)  # bfloat16 of these is exact
    state["weight_scale"] = scale
    source = open_weights(tmp_path, stored(state), packed_config(bits, group_size))
    codes = source.codes(WEIGHT)
    assert source.misfit(WEIGHT) is None
    assert (codes.bits, codes.group_size) == (bits, group_size or 64)
    np.testing.assert_array_equal(codes.codes, signed.numpy().astype(int) + (1 << (bits - 1)))
    assert codes.scales.dtype == np.float16
    np.testing.assert_array_equal(codes.scales, scale.float().numpy())
    same(source.float32(WEIGHT), dequantized(codes))
    same(source.float32(WEIGHT), dequantized(codes.regrouped(16)))
    assert codes.regrouped(24) is None


def dequantized(codes):
    """What edgekit's own form stands for (edgekit/scheme.py)."""
    zero_point = Packing(codes.bits, codes.group_size).zero_point
    grouped = codes.codes.reshape(*codes.scales.shape, codes.group_size).astype(np.float32)
    values = (grouped - zero_point) * codes.scales.astype(np.float32)[..., None]
    return values.reshape(codes.codes.shape)


def test_codes_pack_to_the_very_words_of_the_source(tmp_path):
    from edgekit.quantize.codes import pack

    _, _, state = packed_parts(generator(), 6, 64, 4, 2, scale_dtype=torch.float16)
    codes = open_weights(tmp_path, stored(state), packed_config()).codes(WEIGHT)
    np.testing.assert_array_equal(pack(codes.codes, 4), state["weight_packed"].numpy())


@pytest.mark.parametrize(
    ("value", "reason"),
    [(1 + 2**-12, "1 of its 12 scales"), (1e6, "1 of"), (1e-9, "1 of"), (float("inf"), "1 of"),
     (float("nan"), "1 of")],
)  # fmt: skip
def test_scales_that_float16_would_round_are_not_taken_over(tmp_path, value, reason):
    _, _, state = packed_parts(generator(), 6, 64, 4, 2)
    state["weight_scale"] = state["weight_scale"].half().float()
    state["weight_scale"][3, 1] = value
    source = open_weights(tmp_path, stored(state), packed_config())
    assert source.codes(WEIGHT) is None
    assert reason in source.misfit(WEIGHT)
    assert "float16" in source.misfit(WEIGHT)
    weights = source.float32(WEIGHT)
    assert np.isfinite(weights[:3]).all()


def test_bfloat16_scales_below_the_range_of_float16_are_not_taken_over(tmp_path):
    _, _, state = packed_parts(generator(), 2, 32, 4, 1)
    state["weight_scale"] = torch.tensor([[1.9921875 * 2**-20], [1.0]]).bfloat16()
    assert "1 of its 2 scales" in open_weights(tmp_path, stored(state), packed_config()).misfit(
        WEIGHT
    )


def test_zero_points_other_than_the_middle_are_dequantized_but_not_taken_over(tmp_path):
    _, _, state = packed_parts(generator(), 16, 64, 4, 2, False, torch.float16)
    source = open_weights(tmp_path, stored(state), packed_config(symmetric=False))
    assert source.codes(WEIGHT) is None
    assert "zero points are not all 8" in source.misfit(WEIGHT)


@pytest.mark.parametrize("form", ["packed", "signed"])
def test_stored_zero_points_in_the_middle_are_taken_over(tmp_path, form):
    from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32

    _, zero, state = packed_parts(generator(), 16, 64, 4, 2, False, torch.float16)
    zero = torch.zeros_like(zero)
    state["weight_zero_point"] = pack_to_int32(zero, 4, packed_dim=0) if form == "packed" else zero
    source = open_weights(tmp_path, stored(state), packed_config(symmetric=False))
    same(source.float32(WEIGHT), dequantized(source.codes(WEIGHT)))


def test_zero_points_of_older_files_are_signed_bytes(tmp_path):
    signed, zero, state = packed_parts(generator(), 6, 64, 4, 2, False)
    state["weight_zero_point"] = zero
    source = open_weights(tmp_path, stored(state), packed_config(symmetric=False))
    scale, zero = (x.float().repeat_interleave(32, 1) for x in (state["weight_scale"], zero))
    same(source.float32(WEIGHT), (signed.float() - zero) * scale)
    same(source.float32(WEIGHT, slice(2, 5)), ((signed.float() - zero) * scale)[2:5])


def test_a_group_order_is_followed_and_minus_one_means_none(tmp_path):
    signed, _, state = packed_parts(generator(), 6, 64, 4, 2, scale_dtype=torch.float16)
    order = torch.from_numpy(generator(1).permutation(np.arange(64) // 32).astype(np.int32))
    source = open_weights(tmp_path, stored({**state, "weight_g_idx": order}), packed_config())
    same(source.float32(WEIGHT), signed.float() * state["weight_scale"].float()[:, order.long()])
    assert "g_idx" in source.misfit(WEIGHT)
    unused = open_weights(
        tmp_path, stored({**state, "weight_g_idx": torch.full_like(order, -1)}), packed_config()
    )
    assert unused.misfit(WEIGHT) is None


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("scales", [(), (1,), (6, 1), (6,), (6, 4)])
def test_int_quantized_bytes_are_signed(tmp_path, bits, scales):
    rng = generator()
    low = -(1 << (bits - 1))
    values = torch.from_numpy(rng.integers(low, -low, (6, 64), np.int8))
    scale = scale_of(rng, *scales).half()
    group_size = 16 if scales == (6, 4) else None
    strategy = "group" if group_size else ("tensor" if len(scales) < 2 else "channel")
    config = packed_config(bits, group_size, form="int-quantized", strategy=strategy)
    source = open_weights(tmp_path, {WEIGHT: values, WEIGHT + "_scale": scale}, config)
    wide = scale.float().reshape(-1, 1) if scales != (6, 4) else scale.float()
    expected = values.float() * wide.repeat_interleave(64 // wide.shape[1], 1)
    same(source.float32(WEIGHT), expected)
    same(source.float32(WEIGHT, slice(2, 4)), expected[2:4])
    codes = source.codes(WEIGHT)
    assert (codes.bits, codes.scales.shape) == (bits, (6, 64 // (group_size or 64)))
    same(dequantized(codes), expected)


def test_an_asymmetric_int_quantized_matrix_subtracts_its_zero_points(tmp_path):
    rng = generator()
    values = torch.from_numpy(rng.integers(-128, 128, (6, 64), np.int8))
    zero = torch.from_numpy(rng.integers(-128, 128, (6, 1), np.int8))
    scale = scale_of(rng, 6, 1)
    config = packed_config(8, None, False, "int-quantized")
    source = open_weights(
        tmp_path, {WEIGHT: values, WEIGHT + "_scale": scale, WEIGHT + "_zero_point": zero}, config
    )
    same(source.float32(WEIGHT), (values.float() - zero.float()) * scale)
    assert "not all 128" in source.misfit(WEIGHT)


def test_edgekits_own_checkpoint_is_read_back_as_it_was_written(quantized):
    from edgekit.quantize.codes import pack

    directory = quantized("mixtral", "int4-g32")
    config = json.loads((directory / "config.json").read_text())
    with TensorFile(directory / "model.safetensors") as file:
        source = SourceWeights(config, dict.fromkeys(file.tensors, file))
        embedding = source.codes("model.embed_tokens.weight")
        assert (embedding.bits, embedding.group_size) == (8, 32)
        for name in source.names():
            codes = source.codes(name)
            if codes is not None:
                np.testing.assert_array_equal(
                    pack(codes.codes, codes.bits), file.array(name + "_packed")
                )
                np.testing.assert_array_equal(codes.scales, file.array(name + "_scale"))
                same(source.float32(name), dequantized(codes))
        assert sum(source.codes(name) is not None for name in source.names()) == 2 * (4 + 4 * 3) + 1


def test_a_module_named_by_a_target_has_the_bits_of_that_target(tmp_path):
    _, _, state = packed_parts(generator(), 4, 64, 8, 4)
    config = packed_config(4, 32)
    wide = {"num_bits": 8, "strategy": "group", "group_size": 16}
    config["config_groups"]["group_1"] = {"targets": ["re:.*up_proj$"], "weights": wide}
    assert open_weights(tmp_path, stored(state), config).dtype(WEIGHT) == "int8-g16"
    config["config_groups"]["group_1"]["targets"] = ["re:.*down_proj$"]
    config["config_groups"]["group_1"]["weights"] = None
    with pytest.raises(BadInputError, match=r"up_proj\.weight_packed' has 16 words per row"):
        open_weights(tmp_path, stored(state), config)


def grouped(codes, zeros, scales, g_idx):
    """The definition both formats share."""
    return ((codes - zeros[:, g_idx]) * scales.astype(np.float32)[:, g_idx]).astype(np.float32)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("form", ["gptq", "gptq_v2"])
@pytest.mark.parametrize("order", ["absent", "in order", "act-order"])
def test_gptq_follows_its_definition(tmp_path, bits, form, order):
    rng = generator()
    codes, zeros, scales = integers(rng, 24, 96, 3, bits)
    g_idx = np.arange(96) // 32
    if order == "act-order":
        g_idx = rng.permutation(g_idx)
    parts = gptq_parts(
        codes, zeros, scales, bits, form == "gptq", None if order == "absent" else g_idx
    )
    bias = {MODULE + ".bias": torch.ones(24)}
    config = {**GPTQ, "bits": bits, "checkpoint_format": form, "desc_act": order == "act-order"}
    source = open_weights(tmp_path, {**parts, **bias}, config)
    expected = grouped(codes, zeros, scales, g_idx)
    assert sorted(source.names()) == [MODULE + ".bias", WEIGHT]
    assert source.shape(WEIGHT) == (24, 96)
    assert source.dtype(WEIGHT) == f"gptq-int{bits}-g32"
    same(source.float32(WEIGHT), expected)
    for start, stop in [(0, 3), (3, 13), (9, 24)]:
        same(source.float32(WEIGHT, slice(start, stop)), expected[start:stop])


@pytest.mark.parametrize("bits", [4, 8])
def test_gptq_equals_the_loader_of_onnxruntime_genai(tmp_path, bits):
    loader = pytest.importorskip("onnxruntime_genai.models.loaders.gptq").GPTQModel
    codes, zeros, scales = integers(generator(), 32, 96, 3, bits)
    g_idx = generator(1).permutation(np.arange(96) // 32)
    parts = gptq_parts(codes, zeros, np.exp2(np.round(np.log2(scales))), bits, g_idx=g_idx)
    module = SimpleNamespace(
        bits=bits, group_size=32, in_features=96, out_features=32,
        **{name.rpartition(".")[2]: value for name, value in parts.items()},
    )  # fmt: skip
    model = loader.__new__(loader)  # its constructor reads a whole model directory
    model.handle_qzeros(module)
    model.unpack(module)
    source = open_weights(tmp_path, parts, {**GPTQ, "bits": bits, "desc_act": True})
    same(source.float32(WEIGHT), module.qweight.float())  # float16 is exact: powers of two


def test_symmetric_gptq_is_taken_over_and_act_order_is_not(tmp_path):
    rng = generator()
    codes, zeros, scales = integers(rng, 8, 64, 2, symmetric=True)
    g_idx = np.arange(64) // 32
    source = open_weights(tmp_path, gptq_parts(codes, zeros, scales, g_idx=g_idx), GPTQ)
    taken = source.codes(WEIGHT)
    np.testing.assert_array_equal(taken.codes, codes)
    np.testing.assert_array_equal(taken.scales, scales)
    assert (taken.bits, taken.group_size) == (4, 32)
    assert taken.codes.flags.c_contiguous
    shuffled = open_weights(tmp_path, gptq_parts(codes, zeros, scales, g_idx=g_idx[::-1]), GPTQ)
    assert shuffled.codes(WEIGHT) is None
    assert "act-order" in shuffled.misfit(WEIGHT)


def test_the_v1_offset_of_zero_points_is_not_applied_to_v2(tmp_path):
    codes, zeros, scales = integers(generator(), 8, 64, 2, symmetric=True)
    parts = gptq_parts(codes, zeros, scales)  # stored as 7
    assert open_weights(tmp_path, parts, GPTQ).misfit(WEIGHT) is None
    wrong = open_weights(tmp_path, parts, {**GPTQ, "checkpoint_format": "gptq_v2"})
    assert "not all 8" in wrong.misfit(WEIGHT)


def test_a_v1_zero_point_that_programs_read_differently_is_refused(tmp_path):
    codes, zeros, scales = integers(generator(), 8, 64, 2)
    zeros[5, 1] = 0
    source = open_weights(tmp_path, gptq_parts(codes, zeros, scales), GPTQ)
    source.float32(WEIGHT, slice(0, 5))
    with pytest.raises(BadInputError, match=r"qzeros' holds 15.*gptq_v2"):
        source.float32(WEIGHT)
    v2 = open_weights(
        tmp_path,
        gptq_parts(codes, zeros, scales, less_one=False),
        {**GPTQ, "checkpoint_format": "gptq_v2"},
    )
    same(v2.float32(WEIGHT), grouped(codes, zeros, scales, np.arange(64) // 32))


def test_gptq_with_a_partial_last_group_or_one_group_for_all(tmp_path):
    codes, zeros, scales = integers(generator(), 8, 80, 3, symmetric=True)
    source = open_weights(tmp_path, gptq_parts(codes, zeros, scales), GPTQ)
    same(source.float32(WEIGHT), grouped(codes, zeros, scales, np.arange(80) // 32))
    assert "does not divide its 80 inputs" in source.misfit(WEIGHT)
    one = open_weights(
        tmp_path, gptq_parts(codes, zeros[:, :1], scales[:, :1]), {**GPTQ, "group_size": -1}
    )
    assert one.dtype(WEIGHT) == "gptq-int4-channel"
    assert one.codes(WEIGHT).scales.shape == (8, 1)


def test_gptq_modules_may_differ_by_dynamic_overrides(tmp_path):
    codes, zeros, scales = integers(generator(), 8, 64, 1, bits=8, symmetric=True)
    parts = gptq_parts(codes, zeros, scales, bits=8)
    dynamic = {r"+:.*\.up_proj": {"bits": 8, "group_size": 64}, r"-:.*\.down_proj": {}}
    source = open_weights(tmp_path, parts, {**GPTQ, "dynamic": dynamic})
    np.testing.assert_array_equal(source.codes(WEIGHT).codes, codes)
    with pytest.raises(BadInputError, match="lists its module as unquantized"):
        open_weights(tmp_path, parts, {**GPTQ, "dynamic": {r"-:.*up_proj": {}}})


def test_awq_follows_its_definition_and_compressed_tensors_converter(tmp_path):
    from compressed_tensors.entrypoints.convert.converters.autoawq import AutoAWQConverter

    codes, zeros, scales = integers(generator(), 24, 96, 3)
    parts = awq_parts(codes, zeros, scales)
    source = open_weights(tmp_path, parts, AWQ)
    expected = grouped(codes, zeros, scales, np.arange(96) // 32)
    same(source.float32(WEIGHT), expected)
    for start, stop in [(0, 3), (3, 13), (9, 24)]:
        same(source.float32(WEIGHT, slice(start, stop)), expected[start:stop])
    assert source.dtype(WEIGHT) == "awq-int4-g32"
    assert "zero points" in source.misfit(WEIGHT)
    converted = AutoAWQConverter(bits=4, group_size=32).process(dict(parts))
    converted[WEIGHT + "_scale"] = converted[WEIGHT + "_scale"].float()
    same(
        open_weights(tmp_path, converted, packed_config(symmetric=False)).float32(WEIGHT), expected
    )


@pytest.mark.parametrize("stored_zeros", [True, False])
def test_symmetric_awq_is_taken_over(tmp_path, stored_zeros):
    codes, zeros, scales = integers(generator(), 16, 64, 2, symmetric=True)
    parts = awq_parts(codes, zeros, scales)
    if not stored_zeros:
        del parts[MODULE + ".qzeros"]
    source = open_weights(tmp_path, parts, {**AWQ, "zero_point": stored_zeros})
    taken = source.codes(WEIGHT)
    np.testing.assert_array_equal(taken.codes, codes)
    np.testing.assert_array_equal(taken.scales, scales)


@settings(max_examples=40, deadline=None)
@given(
    bits=st.sampled_from([4, 8]),
    method=st.sampled_from(["gptq", "gptq_v2", "awq"]),
    sizes=st.tuples(st.integers(1, 4), st.integers(1, 4), st.integers(1, 3)),
    rows=st.tuples(st.integers(0, 32), st.integers(0, 32)),
    seed=st.integers(0, 99),
)
def test_any_rows_of_any_integer_matrix(tmp_path_factory, bits, method, sizes, rows, seed):
    assume(method != "awq" or bits == 4)
    outputs, groups, group_words = sizes
    group_size = 8 * group_words
    codes, zeros, scales = integers(generator(seed), 8 * outputs, groups * group_size, groups, bits)
    config = {"bits": bits, "group_size": group_size, "checkpoint_format": method}
    if method == "awq":
        config = {**AWQ, "group_size": group_size}
        parts = awq_parts(codes, zeros, scales)
    else:
        config["quant_method"] = "gptq"
        parts = gptq_parts(codes, zeros, scales, bits, method == "gptq")
    path = tmp_path_factory.mktemp("integers") / "x.safetensors"
    save_file(parts, path)
    with TensorFile(path) as file:
        source = SourceWeights({"quantization_config": config}, dict.fromkeys(file.tensors, file))
        expected = grouped(codes, zeros, scales, np.arange(codes.shape[1]) // group_size)
        same(source.float32(WEIGHT, slice(*rows)), expected[slice(*rows)])
