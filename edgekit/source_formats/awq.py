"""AWQ checkpoints of AutoAWQ, version "gemm".

    X.qweight  I32 [K, N * 4 / 32]  codes, eight neighbouring outputs in a word
    X.qzeros   I32 [G, N * 4 / 32]  zero points, packed alike
    X.scales   float [G, N]

    w[n, k] = (code[k, n] - zero_point[g, n]) * scale[g, n],   g = k // group_size

Within a word the outputs are shuffled for the GPU kernel: the lowest four bits belong to output 0,
then come 2, 4, 6, 1, 3, 5 and 7.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekit.config_values import ConfigReader
from edgekit.source_formats.floats import to_float32
from edgekit.source_formats.gptq import SCALES, read_bits, read_group_size
from edgekit.source_formats.integers import IntegerMatrix, unpack_words
from edgekit.source_formats.settings import Exclusions, exclusions, module_of, unsupported
from edgekit.source_formats.stored import Float, StoredTensor, Tensors, ceil_divide

PER_WORD = 8
PLACES = np.argsort([0, 2, 4, 6, 1, 3, 5, 7])  # where in a word each of its eight outputs is


def find_awq(tensors: Tensors, settings: ConfigReader) -> Iterator[StoredTensor]:
    """The quantized matrices of a checkpoint with ``quant_method`` "awq"."""
    for key in ("version", "format", "checkpoint_format"):
        version = settings.text(key, "gemm")
        if version.lower() != "gemm":
            raise unsupported(settings, key, f"is {version!r}, of AWQ only gemm is read")
    read_bits(settings, (4,))
    excluded = exclusions(settings, "modules_to_not_convert")
    for qweight in tensors:
        if qweight.endswith(".qweight"):
            yield _awq_matrix(tensors, qweight, settings, excluded)


def _awq_matrix(
    tensors: Tensors, qweight: str, settings: ConfigReader, excluded: Exclusions
) -> AwqMatrix:
    excluded.check(tensors, qweight)
    module = module_of(qweight)
    scales = tensors.partner(qweight, module + ".scales")
    shape = tensors.info(qweight).shape
    if len(shape) != 2:
        raise tensors.bad(
            qweight, f"has shape {list(shape)}, expected two axes; download the checkpoint again"
        )
    columns, rows = shape[0], shape[1] * PER_WORD
    group_size = read_group_size(settings, columns)
    groups = ceil_divide(columns, group_size)
    tensors.expect(qweight, ("I32",), shape)
    tensors.expect(scales.name, SCALES, (groups, rows))
    parts = [qweight, scales.name]
    if settings.flag("zero_point", True):
        tensors.partner(qweight, module + ".qzeros")
    if module + ".qzeros" in tensors:  # written for symmetric weights too, and then all 8
        tensors.expect(module + ".qzeros", ("I32",), (groups, shape[1]))
        parts.append(module + ".qzeros")
    return AwqMatrix(
        tensors, f"{module}.weight", (rows, columns), "awq-", tuple(parts), 4, group_size
    )


class AwqMatrix(IntegerMatrix):
    """The matrix of one linear module."""

    def unsigned(self, start: int, stop: int) -> NDArray[np.uint8]:
        """See :class:`IntegerMatrix`."""
        return np.ascontiguousarray(self._outputs(self.parts[0], start, stop))

    def scales(self, start: int, stop: int) -> Float:
        """See :class:`IntegerMatrix`."""
        stored = self.tensors.array(self.parts[1])[:, start:stop]
        return np.ascontiguousarray(to_float32(stored, self.tensors.info(self.parts[1]).dtype).T)

    def zero_points(self, start: int, stop: int) -> NDArray[Any] | None:
        """See :class:`IntegerMatrix`."""
        return self._outputs(self.parts[2], start, stop) if len(self.parts) > 2 else None

    def _outputs(self, name: str, start: int, stop: int) -> NDArray[np.uint8]:
        """Rows ``start`` to ``stop`` of what is packed along the output dimension."""
        first = start // PER_WORD
        words = self.tensors.array(name)[:, first : ceil_divide(stop, PER_WORD)]
        nibbles = unpack_words(words, 4).reshape(*words.shape, PER_WORD)
        ordered = nibbles[:, :, PLACES].reshape(len(words), words.shape[1] * PER_WORD)
        return ordered[:, start - first * PER_WORD : stop - first * PER_WORD].T
