"""Float8 and MXFP4 weights against torch, transformers and the definitions."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from source_files import (
    EXPERTS,
    FP8,
    MODULE,
    MXFP4,
    WEIGHT,
    float8,
    generator,
    mxfp4,
    open_weights,
    packed_config,
    same,
    scale_of,
)

from edgekit.source_formats.floats import TABLES
from edgekit.source_weights import SourceWeights
from edgekit.tensorfile import TensorFile, TensorFileWriter, TensorInfo


@pytest.mark.parametrize(
    ("stored", "dtype"),
    [
        ("F8_E4M3", torch.float8_e4m3fn),
        ("F8_E5M2", torch.float8_e5m2),
        ("F8_E8M0", torch.float8_e8m0fnu),
    ],
)
def test_every_float8_value_is_the_one_of_torch(stored, dtype):
    expected = torch.arange(256, dtype=torch.uint8).view(dtype).float().numpy()
    np.testing.assert_array_equal(TABLES[stored], expected)
    number = ~np.isnan(expected)
    np.testing.assert_array_equal(np.signbit(TABLES[stored])[number], np.signbit(expected)[number])


def by_definition(values, scales, rows, columns):
    """w[n, k] = x[n, k] * scale[n // rows, k // columns], one element at a time."""
    n, k = np.indices(values.shape)
    return values * scales[n // rows, k // columns]


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_block_scaled_float8_follows_the_definition_for_any_size_and_rows(tmp_path_factory, data):
    rows, columns = data.draw(st.integers(1, 20)), data.draw(st.integers(1, 20))
    block = [data.draw(st.integers(1, 8)), data.draw(st.integers(1, 8))]
    start, stop = data.draw(st.integers(0, rows)), data.draw(st.integers(0, rows))
    rng = generator(data.draw(st.integers(0, 9)))
    values = float8(rng, rows, columns)
    scale = scale_of(rng, -(-rows // block[0]), -(-columns // block[1]))
    path = tmp_path_factory.mktemp("fp8") / "x.safetensors"
    save_file({WEIGHT: values, WEIGHT + "_scale_inv": scale}, path)
    config = {"quantization_config": {**FP8, "weight_block_size": block}}
    with TensorFile(path) as file:
        source = SourceWeights(config, dict.fromkeys(file.tensors, file))
        assert source.names() == [WEIGHT]
        expected = by_definition(values.float().numpy(), scale.numpy(), *block)
        same(source.float32(WEIGHT), expected)
        same(source.float32(WEIGHT, slice(start, stop)), expected[start:stop])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_deepseek_blocks_of_128_with_a_partial_last_block(tmp_path, dtype):
    rng = generator()
    values, scale = float8(rng, 300, 200), scale_of(rng, 3, 2, dtype=dtype)
    source = open_weights(tmp_path, {WEIGHT: values, WEIGHT + "_scale_inv": scale}, FP8)
    expected = by_definition(values.float().numpy(), scale.float().numpy(), 128, 128)
    same(source.float32(WEIGHT), expected)
    same(source.float32(WEIGHT, slice(100, 270)), expected[100:270])
    assert source.dtype(WEIGHT) == "fp8-e4m3"
    assert source.nbytes(WEIGHT) == 300 * 200 + scale.nbytes


def test_scales_may_be_powers_of_two(tmp_path):
    layout = [
        TensorInfo(WEIGHT, "F8_E4M3", (5, 6)),
        TensorInfo(WEIGHT + "_scale_inv", "F8_E8M0", (1, 1)),
    ]
    with TensorFileWriter(tmp_path / "x", layout) as writer:
        writer.write(WEIGHT, np.full((5, 6), 0x38, np.uint8))  # 1.0
        writer.write(WEIGHT + "_scale_inv", np.full((1, 1), 124, np.uint8))
    with TensorFile(tmp_path / "x") as file:
        source = SourceWeights({"quantization_config": FP8}, dict.fromkeys(file.tensors, file))
        same(source.float32(WEIGHT), np.full((5, 6), 0.125))


def test_float8_experts_in_one_tensor_are_read_by_expert(tmp_path):
    rng = generator()
    values, scale = float8(rng, 3, 130, 140), scale_of(rng, 3, 2, 2)
    source = open_weights(tmp_path, {EXPERTS: values, EXPERTS + "_scale_inv": scale}, FP8)
    expected = np.stack(
        [by_definition(v.float().numpy(), s.numpy(), 128, 128) for v, s in zip(values, scale)]
    )
    same(source.float32(EXPERTS, slice(1, 3)), expected[1:3])


@pytest.mark.parametrize("shape", [(), (1,), (1, 1), (6,), (6, 1)])
@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_float8_with_a_scale_per_tensor_or_channel(tmp_path, shape, dtype):
    rng = generator()
    values, scale = float8(rng, 6, 9, dtype=dtype), scale_of(rng, *shape, dtype=torch.bfloat16)
    factor = scale.float().reshape(-1, 1) if scale.numel() > 1 else scale.float()
    float_config = packed_config(8, None, form="float-quantized", type="float")
    for config in ({"quant_method": "fp8"}, float_config):
        extra = {MODULE + ".input_scale": torch.ones(1)}
        source = open_weights(tmp_path, {WEIGHT: values, WEIGHT + "_scale": scale, **extra}, config)
        same(source.float32(WEIGHT), values.float() * factor)
        same(source.float32(WEIGHT, slice(4, 6)), (values.float() * factor)[4:])
        assert source.names() == [WEIGHT]


def test_compressed_tensors_blocks_equal_those_of_the_package(tmp_path):
    from compressed_tensors.compressors.naive_quantized import FloatQuantizationCompressor
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme

    rng = generator()
    values, scale = float8(rng, 192, 130), scale_of(rng, 2, 2)
    structure = {"type": "float", "strategy": "block", "block_structure": [128, 128]}
    args = QuantizationArgs(num_bits=8, **structure)
    expected = FloatQuantizationCompressor.decompress(
        {"weight": values, "weight_scale": scale},
        QuantizationScheme(targets=["Linear"], weights=args),
    )["weight"]
    config = packed_config(8, None, form="float-quantized", **structure)
    source = open_weights(tmp_path, {WEIGHT: values, WEIGHT + "_scale": scale}, config)
    same(source.float32(WEIGHT), expected)


def test_mxfp4_experts_equal_those_of_transformers(tmp_path):
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    blocks, scales = mxfp4(generator())
    bias = torch.randn(3, 10).bfloat16()
    source = open_weights(
        tmp_path,
        {EXPERTS + "_blocks": blocks, EXPERTS + "_scales": scales, EXPERTS + "_bias": bias},
        MXFP4,
    )
    expected = convert_moe_packed_tensors(blocks, scales, dtype=torch.float32)
    assert sorted(source.names()) == [EXPERTS, EXPERTS + "_bias"]
    assert source.shape(EXPERTS) == (3, 64, 10)
    assert source.dtype(EXPERTS) == "mxfp4"
    same(source.float32(EXPERTS), expected)
    same(source.float32(EXPERTS, slice(1, 2)), expected[1:2])
    assert source.codes(EXPERTS) is None


@settings(max_examples=60, deadline=None)
@given(byte=st.integers(0, 255), exponent=st.integers(0, 255), place=st.integers(0, 31))
def test_an_mxfp4_element_is_sign_exponent_and_mantissa_times_a_power_of_two(
    tmp_path_factory, byte, exponent, place
):
    blocks = torch.zeros((1, 1, 1, 16), dtype=torch.uint8)
    blocks[0, 0, 0, place // 2] = byte
    scales = torch.full((1, 1, 1), exponent, dtype=torch.uint8)
    path = tmp_path_factory.mktemp("mxfp4") / "x.safetensors"
    save_file({"x_blocks": blocks, "x_scales": scales}, path)
    code = byte >> 4 if place % 2 else byte & 15
    power, fraction = (code >> 1) & 3, code & 1
    magnitude = (1 + fraction / 2) * 2.0 ** (power - 1) if power else fraction / 2
    value = (-magnitude if code & 8 else magnitude) * 2.0 ** (exponent - 127)
    with TensorFile(path) as file:
        source = SourceWeights({"quantization_config": MXFP4}, dict.fromkeys(file.tensors, file))
        found = source.float32("x")[0, place, 0]
    if exponent == 255:
        assert np.isnan(found)
    else:
        with np.errstate(over="ignore"):
            assert found == np.float32(value)
