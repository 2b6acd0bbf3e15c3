"""Codes from the maths, and the packed form against compressed-tensors."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from edgekit.quantize.codes import pack, quantize_matrix
from edgekit.quantize.write import fake_quantized
from edgekit.scheme import Packing, unpack


def dequantized(codes, scales, packing):
    grouped = codes.astype(np.float32).reshape(*scales.shape, -1) - packing.zero_point
    return (grouped * scales.astype(np.float32)[..., None]).reshape(codes.shape)


def test_values_on_the_grid_come_back_exactly():
    scale = np.float32(0.125)
    values = (np.arange(-8, 8, dtype=np.float32) * scale)[None].repeat(2, axis=1)
    packing = Packing(4, 32)
    codes, scales = quantize_matrix(values, packing)
    np.testing.assert_array_equal(dequantized(codes, scales, packing), values)


def test_round_to_nearest_is_within_half_a_step():
    rng = np.random.default_rng(0)
    values = rng.standard_normal((16, 64)).astype(np.float32)
    packing = Packing(4, 32)
    codes, scales = quantize_matrix(values, packing, "rtn")
    error = np.abs(dequantized(codes, scales, packing) - values).reshape(16, 2, 32)
    # the far side of the signed extreme can exceed the top code by one step
    assert (error <= np.abs(scales.astype(np.float32))[..., None] * 1.001).all()


@pytest.mark.parametrize("bits", [4, 8])
def test_the_search_never_loses_to_round_to_nearest(bits):
    values = np.random.default_rng(1).standard_t(4, (64, 128)).astype(np.float32)
    packing = Packing(bits, 64)
    losses = {}
    for method in ("rtn", "mse"):
        codes, scales = quantize_matrix(values, packing, method)
        losses[method] = np.square(dequantized(codes, scales, packing) - values).sum()
    assert losses["mse"] <= losses["rtn"]
    if bits == 4:
        assert losses["mse"] < 0.95 * losses["rtn"]


def test_a_group_of_zeros_and_of_tiny_values_is_zero():
    values = np.zeros((2, 64), np.float32)
    values[1] = 1e-12
    codes, scales = quantize_matrix(values, Packing(4, 32))
    assert np.isfinite(scales).all()
    np.testing.assert_allclose(dequantized(codes, scales, Packing(4, 32)), 0, atol=1e-7)


@settings(deadline=None, max_examples=40)
@given(
    codes=hnp.arrays(np.uint8, st.tuples(st.integers(1, 5), st.sampled_from([8, 32, 64])),
                     elements=st.integers(0, 15)),
)  # fmt: skip
def test_packing_round_trips_and_equals_compressed_tensors(codes):
    import torch
    from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32

    packed = pack(codes, 4)
    np.testing.assert_array_equal(unpack(packed, 4), codes)
    signed = torch.from_numpy(codes.astype(np.int8) - 8)
    np.testing.assert_array_equal(packed, pack_to_int32(signed, 4).numpy())


def test_quantizing_what_was_fake_quantized_in_training_gives_the_same_values():
    values = np.random.default_rng(2).standard_normal((32, 64)).astype(np.float32)
    packing = Packing(4, 32)
    codes, scales = quantize_matrix(values, packing)
    np.testing.assert_array_equal(
        fake_quantized(values, packing), dequantized(codes, scales, packing)
    )
