"""Matrices of small integers with scales per group: what GPTQ, AWQ and compressed-tensors share.

    w[n, k] = (code[n, k] - zero_point[n, g]) * scale[n, g],   g = k // group_size

edgekit stores the same, with the zero point ``2^(bits-1)`` left out and float16 scales
(:mod:`edgekit.scheme`). A matrix that fits this exactly is taken over as it is, which loses
nothing; any other one is dequantized, and quantized again like a float matrix.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekit.source_formats.stored import Float, StoredTensor, Tensors, ceil_divide

READ_BITS = (4, 8)


@dataclass(frozen=True)
class Codes:
    """A matrix in edgekit's own form.

    Attributes:
        codes: uint8 [N, K], zero point ``2^(bits-1)``.
        scales: float16 [N, K / group_size].
        bits: 4 or 8.
        group_size: inputs that share one scale; K for one scale per output channel.
    """

    codes: NDArray[np.uint8]
    scales: NDArray[np.float16]
    bits: int
    group_size: int

    def regrouped(self, group_size: int) -> Codes | None:
        """The same weights in smaller groups, scales repeated; None when the groups do not nest."""
        if group_size < 1 or self.group_size % group_size:
            return None
        scales = np.repeat(self.scales, self.group_size // group_size, axis=1)
        return Codes(self.codes, scales, self.bits, group_size)


def unpack_words(words: NDArray[np.int32], bits: int) -> NDArray[np.uint8]:
    """Codes [..., W * 32 / bits] from words [..., W], low bits first."""
    raw = np.ascontiguousarray(words).view(np.uint8)  # words of files are little-endian
    if bits == 8:
        return raw
    codes = np.empty((*raw.shape[:-1], raw.shape[-1] * 2), np.uint8)
    codes[..., 0::2] = raw & 15
    codes[..., 1::2] = raw >> 4
    return codes


def unpack_range(words: NDArray[np.int32], bits: int, start: int, stop: int) -> NDArray[np.uint8]:
    """Codes ``start`` to ``stop`` of each row of words [N, W]: [N, stop - start]."""
    per_word = 32 // bits
    first = start // per_word
    codes = unpack_words(words[:, first : ceil_divide(stop, per_word)], bits)
    return codes[:, start - first * per_word : stop - first * per_word]


class IntegerMatrix(StoredTensor):
    """A matrix [N, K] of integer codes; a format says where codes, scales and zero points are."""

    def __init__(
        self,
        tensors: Tensors,
        name: str,
        shape: tuple[int, int],
        dtype_prefix: str,
        parts: tuple[str, ...],
        bits: int,
        group_size: int,
    ) -> None:
        group = "channel" if group_size == shape[1] else f"g{group_size}"
        super().__init__(tensors, name, shape, f"{dtype_prefix}int{bits}-{group}", parts)
        self.bits = bits
        self.group_size = group_size

    @property
    def implicit_zero_point(self) -> int:
        """The code that stands for 0 in edgekit's own form."""
        return 1 << (self.bits - 1)

    @abstractmethod
    def unsigned(self, start: int, stop: int) -> NDArray[np.uint8]:
        """Codes [rows, K] from 0 to ``2^bits - 1``."""

    @abstractmethod
    def scales(self, start: int, stop: int) -> Float:
        """Scales [rows, groups]; the exact numbers that are stored."""

    @abstractmethod
    def zero_points(self, start: int, stop: int) -> NDArray[Any] | None:
        """Zero points [rows, groups] on the grid of :meth:`unsigned`; None: the implicit one."""

    def reordered_groups(self) -> NDArray[Any] | None:
        """The group of each input [K] where that is not ``k // group_size``."""
        return None

    def decode(self, start: int, stop: int) -> Float:
        """See :class:`StoredTensor`."""
        values = self.unsigned(start, stop).astype(np.float32)
        scales = self.scales(start, stop)
        zero_points = self.zero_points(start, stop)
        if zero_points is None:
            values -= self.implicit_zero_point
        groups = self.reordered_groups()
        if groups is None and self.shape[1] % self.group_size:
            groups = np.arange(self.shape[1]) // self.group_size
        if groups is None:
            grouped = values.reshape(*scales.shape, self.group_size)
            if zero_points is not None:
                grouped -= zero_points[..., None].astype(np.float32)
            grouped *= scales[..., None]
        else:
            if zero_points is not None:
                values -= zero_points[:, groups].astype(np.float32)
            values *= scales[:, groups]
        return values

    @cached_property
    def misfit(self) -> str | None:
        """Why the matrix is not in edgekit's own form; None when it is."""
        rows, columns = self.shape
        if columns % self.group_size:
            return f"its group of {self.group_size} does not divide its {columns} inputs"
        if self.reordered_groups() is not None:
            return "its inputs are assigned to groups out of order (act-order g_idx)"
        zero_points = self.zero_points(0, rows)
        if zero_points is not None and (zero_points != self.implicit_zero_point).any():
            return f"its zero points are not all {self.implicit_zero_point} (asymmetric)"
        scales = self.scales(0, rows)
        with np.errstate(over="ignore"):
            halves = scales.astype(np.float16)
        inexact = int((~np.isfinite(halves) | (halves != scales)).sum())
        if inexact:
            return f"{inexact} of its {scales.size} scales are not exact in float16"
        return None

    def codes(self, start: int, stop: int) -> Codes | None:
        """Rows in edgekit's own form; None when the matrix does not fit (:meth:`misfit`)."""
        if self.misfit is not None:
            return None
        scales = self.scales(start, stop).astype(np.float16)
        return Codes(self.unsigned(start, stop), scales, self.bits, self.group_size)
