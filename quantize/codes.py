"""Symmetric integer codes of a matrix, with a scale per group found by search.

    w ~ (code - zero_point) * scale,   code in [0, 2^bits),   zero_point = 2^(bits-1)

Round to nearest takes the scale that maps the signed extreme of the group to the lowest code,
which uses all 2^bits levels (a symmetric scale absmax / (2^(bits-1) - 1) wastes one). The search
tries shrunken scales of both signs, since clipping one outlier often pays for the rest of its
group, and refines the best one by least squares (s = <w, c> / <c, c>), as OMSE does
(arXiv 1902.06822, section 3.1).
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from edgekit.scheme import Packing

Method = Literal["mse", "rtn"]
Float = NDArray[np.float32]
SHRINK = (1.0, 0.95, 0.9, 0.86, 0.82, 0.78, 0.74)


def quantize_matrix(
    weights: Float, packing: Packing, method: Method = "mse"
) -> tuple[NDArray[np.uint8], NDArray[np.float16]]:
    """Codes uint8 [N, K] and scales float16 [N, K / group_size] of ``weights`` [N, K].

    ``K`` must divide by the group size. A group of zeros has scale 0 and codes ``zero_point``.
    """
    rows, columns = weights.shape
    groups = weights.reshape(rows, columns // packing.group_size, packing.group_size)
    low = -packing.zero_point
    scale = _round_scale(_signed_extreme(groups) / np.float32(low))
    if method == "mse":
        scale = _search(groups, scale, packing)
    codes = _codes(groups, scale, packing)
    return (codes - low).astype(np.uint8).reshape(rows, columns), scale.astype(np.float16)


def pack(codes: NDArray[np.uint8], bits: int) -> NDArray[np.int32]:
    """Pack codes [..., K] into int32 [..., K * bits / 32], low bits first."""
    raw = codes if bits == 8 else codes[..., 0::2] | (codes[..., 1::2] << 4)
    return np.ascontiguousarray(raw).view(np.int32)


def _signed_extreme(groups: Float) -> Float:
    high, low = groups.max(-1), groups.min(-1)
    return np.where(high > -low, high, low)


def _round_scale(scale: Float) -> Float:
    """To float16 and back; what is too small for float16 becomes 0, the group all zeros."""
    limit = np.float32(np.finfo(np.float16).max)
    return np.clip(scale, -limit, limit).astype(np.float16).astype(np.float32)


def _codes(groups: Float, scale: Float, packing: Packing) -> Float:
    """Signed codes, as float32, in [-zero_point, zero_point - 1]."""
    with np.errstate(divide="ignore"):
        inverse = np.where(scale == 0, np.float32(0), 1 / scale).astype(np.float32)
    codes = groups * inverse[..., None]
    np.rint(codes, out=codes)
    return np.clip(codes, -packing.zero_point, packing.zero_point - 1, out=codes)


def _search(groups: Float, start: Float, packing: Packing) -> Float:
    best = start
    best_error = np.full(start.shape, np.inf, np.float32)
    factors = SHRINK if packing.bits == 4 else (1.0,)
    for sign in (1, -1):
        for factor in factors:
            candidate = _round_scale(start * np.float32(sign * factor))
            codes = _codes(groups, candidate, packing)
            for scale in (candidate, _least_squares(groups, codes, candidate)):
                error = _squared_error(groups, codes, scale)
                better = error < best_error
                best = np.where(better, scale, best)
                best_error = np.where(better, error, best_error)
    return best


def _least_squares(groups: Float, codes: Float, fallback: Float) -> Float:
    norm = np.einsum("nkg,nkg->nk", codes, codes)
    dot = np.einsum("nkg,nkg->nk", groups, codes)
    return _round_scale(np.where(norm > 0, dot / np.maximum(norm, 1), fallback))


def _squared_error(groups: Float, codes: Float, scale: Float) -> Float:
    difference = codes * scale[..., None]
    difference -= groups
    return np.einsum("nkg,nkg->nk", difference, difference)
