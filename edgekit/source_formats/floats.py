"""Floating-point numbers as safetensors stores them, and tensors that are just that.

Eight-bit floats are looked up in tables of all 256 values, made from the definitions of the OCP
8-bit floating point specification (E4M3 without infinities, E5M2 as a short float16) and of its MX
specification (E8M0, a power of two with bias 127; 255 is NaN).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekit.source_formats.stored import Float, StoredTensor, Tensors

FLOAT8_WEIGHTS = {"F8_E4M3": "fp8-e4m3", "F8_E5M2": "fp8-e5m2"}
LOOKED_UP_AT_ONCE = 1 << 16
SCALE_DTYPES = ("F32", "F16", "BF16", "F8_E8M0")


def _float8_values(exponent_bits: int) -> Float:
    """The 256 values of sign, exponent and mantissa, before NaN and infinity are put in."""
    codes = np.arange(256)
    mantissa_bits = 7 - exponent_bits
    bias = (1 << (exponent_bits - 1)) - 1
    fraction = (codes & ((1 << mantissa_bits) - 1)) / (1 << mantissa_bits)
    exponent = (codes >> mantissa_bits) & ((1 << exponent_bits) - 1)
    subnormal = exponent == 0
    magnitude = np.ldexp(
        np.where(subnormal, fraction, 1 + fraction), np.where(subnormal, 1, exponent) - bias
    )
    return np.where(codes < 128, magnitude, -magnitude).astype(np.float32)


def _e4m3() -> Float:
    values = _float8_values(4)
    values[[0x7F, 0xFF]] = np.nan
    return values


def _e5m2() -> Float:
    values = _float8_values(5)
    values[[0x7C, 0xFC]] = np.inf, -np.inf
    values[[0x7D, 0x7E, 0x7F, 0xFD, 0xFE, 0xFF]] = np.nan
    return values


def _e8m0() -> Float:
    values = np.ldexp(np.ones(256, np.float64), np.arange(256) - 127)
    values[255] = np.nan
    return values.astype(np.float32)


TABLES = {"F8_E4M3": _e4m3(), "F8_E5M2": _e5m2(), "F8_E8M0": _e8m0()}


def lookup(table: Float, bytes_: NDArray[Any]) -> Float:
    """Entries of ``table`` for an array of bytes, in slices: numpy makes eight bytes of each."""
    flat = np.ascontiguousarray(bytes_).reshape(-1)
    values = np.empty((flat.size, *table.shape[1:]), np.float32)
    for start in range(0, flat.size, LOOKED_UP_AT_ONCE):
        part = slice(start, start + LOOKED_UP_AT_ONCE)
        np.take(table, flat[part], axis=0, out=values[part], mode="clip")  # "raise" copies out
    return values.reshape(*bytes_.shape, *table.shape[1:])


def to_float32(raw: NDArray[Any], dtype: str) -> Float:
    """Numbers from their stored bytes; a copy unless they are stored as float32."""
    if dtype in TABLES:
        return lookup(TABLES[dtype], raw)
    if dtype == "BF16":
        wide = raw.astype(np.uint32)
        wide <<= 16
        return wide.view(np.float32)
    return raw.astype(np.float32, copy=False)


class PlainTensor(StoredTensor):
    """A tensor stored under its own name, without scales.

    Other types than floats are listed too, so that a checkpoint with a tensor nobody knows can be
    refused; only reading them fails.
    """

    def __init__(self, tensors: Tensors, name: str) -> None:
        info = tensors.info(name)
        super().__init__(tensors, name, info.shape, info.dtype, (name,))

    def decode(self, start: int, stop: int) -> Float:
        """The numbers as stored; float8 without a scale is refused, it is a damaged checkpoint."""
        return self.tensors.float32(self.name, slice(start, stop))
