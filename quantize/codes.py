"""Symmetric integer codes of a matrix, with a scale per group found by search.

    w ~ (code - zero_point) * scale,   code in [0, 2^bits),   zero_point = 2^(bits-1)

Round to nearest takes the scale that maps the signed extreme of the group to the lowest code,
which uses all 2^bits levels (a symmetric scale absmax / (2^(bits-1) - 1) wastes one). The search
tries shrunken scales of both signs, since clipping one outlier often pays for the rest of its
group, and refines the best one by least squares (s = <w, c> / <c, c>), as OMSE does
(arXiv 1902.06822, section 3.1).

Passes over the weights go in slices of rows that fit a core's own cache: the arithmetic is cheap,
fetching the weights for each pass is not. What is small, a value per group, is computed for the
whole matrix at once: every call of numpy takes Python's lock, and threads that quantize other
matrices wait for it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgekit.scheme import Packing

Method = Literal["mse", "rtn"]
Float = NDArray[np.float32]
SHRINK = (1.0, 0.95, 0.9, 0.86, 0.82, 0.78, 0.74)
SLICE_ELEMENTS = 1 << 18  # of one pass: 1 MB of float32


class NotFiniteError(ValueError):
    """A matrix holds NaN or infinity."""


@dataclass(frozen=True)
class PackedMatrix:
    """A matrix [N, K] as it is stored, and what storing it so lost.

    Attributes:
        words: int32 [N, K * bits / 32].
        scales: float16 [N, K / group_size].
        squared_error: ||w - q||^2.
        squared_norm: ||w||^2.
    """

    words: NDArray[np.int32]
    scales: NDArray[np.float16]
    squared_error: float
    squared_norm: float


class _Scratch(NamedTuple):
    """Room for the passes over one slice [N, K / g, g], made once for all slices of a matrix.

    Memory that is new for each pass costs more than the arithmetic: the system clears its pages,
    takes them back, and makes every core forget them.
    """

    signed: Float  # codes
    unrounded: Float  # what was rounded to them; then any intermediate


def quantize_matrix(
    weights: Float, packing: Packing, method: Method = "mse"
) -> tuple[NDArray[np.uint8], NDArray[np.float16]]:
    """Codes uint8 [N, K] and scales float16 [N, K / group_size] of ``weights`` [N, K].

    ``K`` must divide by the group size. A group of zeros has scale 0 and codes ``zero_point``.

    Raises:
        NotFiniteError: ``weights`` hold NaN or infinity.
    """
    found = _quantize(weights, packing, method)
    return found.codes, found.scale.astype(np.float16)


def pack_matrix(weights: Float, packing: Packing, method: Method = "mse") -> PackedMatrix:
    """``weights`` [N, K] quantized and packed; as :func:`quantize_matrix` and :func:`pack` would.

    Raises:
        NotFiniteError: ``weights`` hold NaN or infinity.
    """
    codes, scale, inexact, norms = _quantize(weights, packing, method)
    # a group whose scale is 0 loses all that it was
    errors = np.where(scale == 0, norms, inexact * np.square(scale))
    words = pack(codes, packing.bits)
    return PackedMatrix(words, scale.astype(np.float16), _sum(errors), _sum(norms))


def pack(codes: NDArray[np.uint8], bits: int) -> NDArray[np.int32]:
    """Pack codes [..., K] into int32 [..., K * bits / 32], low bits first."""
    raw = np.ascontiguousarray(codes)
    if bits == 4:
        pairs = raw.view("<u2")  # the first code of two in the low byte
        joined = np.right_shift(pairs, 4)
        joined |= pairs
        raw = joined.astype(np.uint8)
    return raw.view(np.int32)


class _Quantized(NamedTuple):
    codes: NDArray[np.uint8]  # [N, K]
    scale: Float  # [N, K / g], as the next two
    inexact: Float  # squared error of each group, in units of its scale
    norms: Float  # squared norm of each group


def _quantize(weights: Float, packing: Packing, method: Method) -> _Quantized:
    scale = _first_scale(weights, packing)
    inexact, norms = np.empty_like(scale), np.empty_like(scale)
    signed = np.empty(weights.shape, np.int8)
    for part, groups, scratch in _slices(weights, packing):
        if method == "mse":
            scale[part] = _search(groups, scale[part], packing, scratch)
        codes = _codes(groups, scale[part], packing, scratch)
        _dot(groups, groups, norms[part])
        np.copyto(_grouped(signed[part], packing), codes, casting="unsafe")
        difference = np.subtract(scratch.unrounded, codes, out=scratch.unrounded)
        _dot(difference, difference, inexact[part])
    unsigned = signed.view(np.uint8)
    unsigned += np.uint8(packing.zero_point)  # wraps around as it should
    return _Quantized(unsigned, scale, inexact, norms)


def _slices(weights: Float, packing: Packing) -> Iterator[tuple[slice, Float, _Scratch]]:
    """Slices of rows, as groups [N, K / g, g] that lie side by side, with room to work."""
    rows, columns = weights.shape
    step = min(max(1, SLICE_ELEMENTS // columns), rows)
    shape = (step, columns // packing.group_size, packing.group_size)
    scratch = _Scratch(np.empty(shape, np.float32), np.empty(shape, np.float32))
    for start in range(0, rows, step):
        groups = _grouped(weights[start : start + step], packing)
        count = len(groups)
        room = _Scratch(scratch.signed[:count], scratch.unrounded[:count])
        yield slice(start, start + count), groups, room


def _grouped(matrix: NDArray[Any], packing: Packing) -> NDArray[Any]:
    """[N, K] as [N, K / g, g]; a view where the rows lie side by side."""
    return np.ascontiguousarray(matrix).reshape(len(matrix), -1, packing.group_size)


def _first_scale(weights: Float, packing: Packing) -> Float:
    """The scale of round to nearest [N, K / g], exact in float16.

    It maps the value of each group that is farthest from 0 to the lowest code. The bits of positive
    floats are in the order of signed integers, those of negative floats in that of unsigned ones
    from 2^31 up, and numpy finds the largest integer three times as fast as the largest float.
    Where a group has no positive (or no negative) value, ``high`` (``low``) is one of the others,
    and the comparison picks right all the same. NaN and infinity are the largest in both orders.
    """
    shape = (len(weights), weights.shape[1] // packing.group_size)
    high, low = np.empty(shape, np.float32), np.empty(shape, np.float32)
    for part, groups, _ in _slices(weights, packing):
        groups.view(np.int32).max(-1, out=high[part].view(np.int32))
        groups.view(np.uint32).max(-1, out=low[part].view(np.uint32))
    if not (np.isfinite(high).all() and np.isfinite(low).all()):
        raise NotFiniteError("a matrix holds NaN or infinity")
    extreme: Float = np.where(high > -low, high, low)
    return _round_scale(extreme / np.float32(-packing.zero_point))


def _round_scale(scale: Float) -> Float:
    """To float16 and back; what is too small for float16 becomes 0, the group all zeros."""
    limit = np.float32(np.finfo(np.float16).max)
    return np.clip(scale, -limit, limit).astype(np.float16).astype(np.float32)


def _codes(groups: Float, scale: Float, packing: Packing, scratch: _Scratch) -> Float:
    """Signed codes, as float32, in [-zero_point, zero_point - 1]."""
    with np.errstate(divide="ignore"):
        inverse = np.where(scale == 0, np.float32(0), 1 / scale).astype(np.float32)
    np.multiply(groups, inverse[..., None], out=scratch.unrounded)
    codes = np.rint(scratch.unrounded, out=scratch.signed)
    return np.clip(codes, -packing.zero_point, packing.zero_point - 1, out=codes)


def _search(groups: Float, start: Float, packing: Packing, scratch: _Scratch) -> Float:
    best = start
    best_error = np.full(start.shape, np.inf, np.float32)
    factors = SHRINK if packing.bits == 4 else (1.0,)
    for sign in (1, -1):
        for factor in factors:
            candidate = _round_scale(start * np.float32(sign * factor))
            codes = _codes(groups, candidate, packing, scratch)
            for scale in (candidate, _least_squares(groups, codes, candidate)):
                error = _squared_error(groups, codes, scale, scratch.unrounded)
                better = error < best_error
                best = np.where(better, scale, best)
                best_error = np.where(better, error, best_error)
    return best


def _least_squares(groups: Float, codes: Float, fallback: Float) -> Float:
    norm, dot = _dot(codes, codes), _dot(groups, codes)
    return _round_scale(np.where(norm > 0, dot / np.maximum(norm, 1), fallback))


def _squared_error(groups: Float, codes: Float, scale: Float, room: Float) -> Float:
    difference = np.multiply(codes, scale[..., None], out=room)
    difference -= groups
    return _dot(difference, difference)


def _dot(a: Float, b: Float, out: Float | None = None) -> Float:
    """Sum of products over each group; not by BLAS, whose threads would fight with ours."""
    return np.einsum("nkg,nkg->nk", a, b, out=out)


def _sum(values: Float) -> float:
    return float(values.sum(dtype=np.float64))
