"""Codes from the maths, and the packed form against compressed-tensors."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from edgekit.quantize import codes as codes_module
from edgekit.quantize.codes import SHRINK, NotFiniteError, pack, pack_matrix, quantize_matrix
from edgekit.quantize.write import fake_quantized
from edgekit.scheme import Packing, unpack


def dequantized(codes, scales, packing):
    grouped = codes.astype(np.float32).reshape(*scales.shape, -1) - packing.zero_point
    return (grouped * scales.astype(np.float32)[..., None]).reshape(codes.shape)


def reference_group(group, bits, method):
    """Codes and scale of one group as the module's docstring has it, one candidate at a time."""
    lowest, highest = -(1 << (bits - 1)), (1 << (bits - 1)) - 1

    def rounded(scale):
        return np.float32(np.float16(np.clip(np.float32(scale), -65504, 65504)))

    def encode(scale):
        inverse = np.float32(1) / scale if scale else np.float32(0)
        return np.clip(np.rint(group * inverse), lowest, highest)

    def error(codes, scale):
        difference = codes * scale - group
        return np.einsum("g,g->", difference, difference)

    extreme = group.max() if group.max() > -group.min() else group.min()
    best = start = rounded(extreme / np.float32(lowest))
    least = np.float32(np.inf)
    shrunken = (SHRINK if bits == 4 else (1.0,)) if method == "mse" else ()
    for factor in [sign * f for sign in (1, -1) for f in shrunken]:
        candidate = rounded(start * np.float32(factor))
        codes = encode(candidate)
        norm, dot = np.einsum("g,g->", codes, codes), np.einsum("g,g->", group, codes)
        fitted = rounded(dot / norm) if norm > 0 else candidate
        for scale in (candidate, fitted):
            if error(codes, scale) < least:
                best, least = scale, error(codes, scale)
    return encode(best) - lowest, best


moderate = st.floats(-100, 100, width=32).filter(lambda v: v == 0 or abs(v) > 1e-3)
extremes = st.floats(-(2.0**60), 2.0**60, width=32)


@settings(deadline=None, max_examples=60)
@given(
    data=st.data(),
    bits=st.sampled_from([4, 8]),
    size=st.sampled_from([8, 32]),
    method=st.sampled_from(["rtn", "mse"]),
)
def test_every_group_is_what_the_slow_reference_says(data, bits, size, method):
    elements = data.draw(st.sampled_from([moderate, extremes, moderate.map(abs), st.just(-0.5)]))
    shape = st.tuples(st.integers(1, 5), st.sampled_from([size, 2 * size]))
    values = data.draw(hnp.arrays(np.float32, shape, elements=elements)) + np.float32(0)  # no -0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(codes_module, "SLICE_ELEMENTS", 3 * size)  # several slices, the last short
        codes, scales = quantize_matrix(values, Packing(bits, size), method)
    groups = values.reshape(-1, size)
    for group, found, scale in zip(groups, codes.reshape(-1, size), scales.reshape(-1)):
        expected_codes, expected_scale = reference_group(group, bits, method)
        np.testing.assert_array_equal(found, expected_codes)
        assert scale.tobytes() == np.float16(expected_scale).tobytes()


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("method", ["rtn", "mse"])
def test_a_packed_matrix_is_the_codes_packed_with_what_they_lose(bits, method, monkeypatch):
    monkeypatch.setattr(codes_module, "SLICE_ELEMENTS", 5 * 128)
    values = np.random.default_rng(3).standard_t(4, (128, 67)).astype(np.float32).T  # not in order
    values[7] = 1e-12  # a scale that float16 cannot tell from 0
    packing = Packing(bits, 64)
    packed = pack_matrix(values, packing, method)
    codes, scales = quantize_matrix(values, packing, method)
    np.testing.assert_array_equal(packed.words, pack(codes, bits))
    np.testing.assert_array_equal(packed.scales, scales)
    difference = dequantized(codes, scales, packing).astype(np.float64) - values
    assert packed.squared_error == pytest.approx(np.square(difference).sum(), rel=1e-4)
    assert packed.squared_norm == pytest.approx(np.square(values.astype(np.float64)).sum())


@pytest.mark.parametrize("value", [np.nan, -np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("others", [-1.0, 0.0, 1.0])
@pytest.mark.parametrize("place", [(0, 0), (4, 63), (8, 127)])
def test_nan_and_infinity_are_found_among_any_others(value, others, place):
    values = np.full((9, 128), others, np.float32)
    values[place] = value
    with pytest.raises(NotFiniteError):
        quantize_matrix(values, Packing(4, 32), "rtn")


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
