"""GPTQ checkpoints of AutoGPTQ, GPTQModel and optimum.

    X.qweight  I32 [K * bits / 32, N]  codes, low bits first along the input dimension
    X.qzeros   I32 [G, N * bits / 32]  zero points, low bits first along the output dimension
    X.scales   float [G, N]
    X.g_idx    I32 [K]                 the group of each input; absent means k // group_size

    w[n, k] = (code[k, n] - zero_point[g, n]) * scale[g, n],   g = g_idx[k]

The checkpoint format "gptq" stores zero points less 1, "gptq_v2" as they are. With "gptq" the
stored value ``2^bits - 1`` is refused: programs that wrote it meant zero point 0, those that read
it take 0, 16 or also change its neighbours.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekit.config_values import ConfigReader
from edgekit.source_formats.floats import to_float32
from edgekit.source_formats.integers import READ_BITS, IntegerMatrix, unpack_range, unpack_words
from edgekit.source_formats.settings import compiled, module_of, unsupported
from edgekit.source_formats.stored import Float, StoredTensor, Tensors, ceil_divide

FORMATS = ("gptq", "gptq_v2")
SCALES = ("F16", "BF16", "F32")


def find_gptq(tensors: Tensors, settings: ConfigReader) -> Iterator[StoredTensor]:
    """The quantized matrices of a checkpoint with ``quant_method`` "gptq"."""
    form = settings.text("checkpoint_format", "gptq")
    if form not in FORMATS:
        known = " and ".join(FORMATS)
        raise unsupported(settings, "checkpoint_format", f"is {form!r}, edgekit reads {known}")
    if settings.flag("is_marlin_format", False):
        raise unsupported(settings, "is_marlin_format", "is true, which is not read")
    if settings.text("pack_dtype", "int32") != "int32":
        raise unsupported(settings, "pack_dtype", "is not int32")
    overrides = _overrides(settings)
    for qweight in tensors:
        if qweight.endswith(".qweight"):
            own = _settings_of(settings, overrides, tensors, qweight)
            yield _gptq_matrix(tensors, qweight, own, form == "gptq")


Overrides = list[tuple[bool, re.Pattern[str], Mapping[str, Any]]]


def _overrides(settings: ConfigReader) -> Overrides:
    """``dynamic`` of GPTQModel: "-:expression" is not quantized, "+:expression" differs."""
    dynamic = settings.config.get("dynamic")
    if dynamic is None or dynamic is False:
        return []
    if not isinstance(dynamic, Mapping) or not all(
        isinstance(values, Mapping) for values in dynamic.values()
    ):
        raise settings.bad("dynamic", "is not an object of objects")
    return [
        (
            not key.startswith("-:"),
            compiled(settings, "dynamic", key.removeprefix("-:").removeprefix("+:")),
            values,
        )
        for key, values in dynamic.items()
    ]


def _settings_of(
    settings: ConfigReader, overrides: Overrides, tensors: Tensors, qweight: str
) -> ConfigReader:
    """The settings of one matrix: the first override that matches its module wins."""
    for quantized, pattern, values in overrides:
        if pattern.match(module_of(qweight)):
            if not quantized:
                raise tensors.bad(
                    qweight,
                    "is quantized but dynamic of config.json lists its module as unquantized; "
                    "download the checkpoint again",
                )
            return ConfigReader({**settings.config, **values}, settings.source)
    return settings


def read_bits(settings: ConfigReader, allowed: tuple[int, ...] = READ_BITS) -> int:
    """``bits`` of a quantization that edgekit reads."""
    bits = settings.count("bits", maximum=64)
    if bits not in allowed:
        known = " and ".join(map(str, allowed))
        raise unsupported(settings, "bits", f"is {bits}, edgekit reads {known}")
    return bits


def read_group_size(settings: ConfigReader, columns: int) -> int:
    """``group_size``, where -1 stands for all inputs."""
    if settings.config.get("group_size") == -1:
        return max(1, columns)
    return min(settings.count("group_size", 128), max(1, columns))


def _gptq_matrix(
    tensors: Tensors, qweight: str, settings: ConfigReader, less_one: bool
) -> GptqMatrix:
    bits = read_bits(settings)
    module = module_of(qweight)
    scales = tensors.partner(qweight, module + ".scales")
    qzeros = tensors.partner(qweight, module + ".qzeros")
    shape = tensors.info(qweight).shape
    if len(shape) != 2:
        raise tensors.bad(
            qweight, f"has shape {list(shape)}, expected two axes; download the checkpoint again"
        )
    columns, rows = shape[0] * 32 // bits, shape[1]
    group_size = read_group_size(settings, columns)
    groups = ceil_divide(columns, group_size)
    tensors.expect(qweight, ("I32",), shape)
    tensors.expect(scales.name, SCALES, (groups, rows))
    tensors.expect(qzeros.name, ("I32",), (groups, ceil_divide(rows * bits, 32)))
    parts = [qweight, qzeros.name, scales.name]
    if module + ".g_idx" in tensors:
        tensors.expect(module + ".g_idx", ("I32", "I64"), (columns,))
        parts.append(module + ".g_idx")
    elif settings.flag("desc_act", False):
        tensors.partner(qweight, module + ".g_idx")
    return GptqMatrix(
        tensors, f"{module}.weight", (rows, columns), tuple(parts), bits, group_size, less_one
    )


class GptqMatrix(IntegerMatrix):
    """The matrix of one linear module; ``less_one``: zero points are stored less 1."""

    def __init__(
        self,
        tensors: Tensors,
        name: str,
        shape: tuple[int, int],
        parts: tuple[str, ...],
        bits: int,
        group_size: int,
        less_one: bool,
    ) -> None:
        super().__init__(tensors, name, shape, "gptq-", parts, bits, group_size)
        self.less_one = less_one

    def unsigned(self, start: int, stop: int) -> NDArray[np.uint8]:
        """See :class:`IntegerMatrix`."""
        return unpack_words(self.tensors.array(self.parts[0])[:, start:stop].T, self.bits)

    def scales(self, start: int, stop: int) -> Float:
        """See :class:`IntegerMatrix`."""
        stored = self.tensors.array(self.parts[2])[:, start:stop]
        return np.ascontiguousarray(to_float32(stored, self.tensors.info(self.parts[2]).dtype).T)

    def zero_points(self, start: int, stop: int) -> NDArray[Any]:
        """See :class:`IntegerMatrix`."""
        zeros = unpack_range(self.tensors.array(self.parts[1]), self.bits, start, stop).T
        if not self.less_one:
            return zeros
        if (zeros == (1 << self.bits) - 1).any():
            raise self.tensors.bad(
                self.parts[1],
                f"holds {(1 << self.bits) - 1}, a zero point that programs read differently; give "
                "the checkpoint in the format gptq_v2, or the unquantized one",
            )
        return zeros + 1

    def reordered_groups(self) -> NDArray[Any] | None:
        """See :class:`IntegerMatrix`."""
        if len(self.parts) < 4:
            return None
        return checked_groups(self.tensors, self.parts[3], self.shape[1], self.group_size)


def checked_groups(
    tensors: Tensors, name: str, columns: int, group_size: int
) -> NDArray[Any] | None:
    """The group of each input from the tensor ``name``; None when they are in order."""
    groups = tensors.array(name)
    if np.array_equal(groups, np.arange(columns) // group_size):
        return None
    count = ceil_divide(columns, group_size)
    if groups.size and not (groups.min() >= 0 and groups.max() < count):
        raise tensors.bad(
            name, f"names groups outside of 0 to {count - 1}; download the checkpoint again"
        )
    return groups
