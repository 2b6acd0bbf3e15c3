"""Checkpoints of compressed-tensors (llm-compressor, vLLM), and so edgekit's own.

``pack-quantized``, the codes of a row in words:

    X_packed      I32 [N, ceil(K * bits / 32)]  unsigned codes, low bits first
    X_shape       I64 [2]                       N and K
    X_scale       float [N, G], [N, 1], or [1]
    X_zero_point  I32 [ceil(N * bits / 32), G]  unsigned, packed along N; older files I8 [N, G],
                                                signed; absent when symmetric

``int-quantized`` has signed codes I8 [N, K] as X itself, ``float-quantized`` float8 numbers
(:mod:`edgekit.source_formats.float8`). ``X_g_idx`` I32 [K] is the group of each input where
activation order was used. ``X`` ends in ``weight``.

Each entry of ``config_groups`` describes the modules that its targets name by path, expression or
class. Files say nothing of classes: of several entries for classes, the first whose bits and groups
explain the shapes counts.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekit.config_values import ConfigReader
from edgekit.source_formats.float8 import Block, float8_tensor, read_block
from edgekit.source_formats.floats import FLOAT8_WEIGHTS, SCALE_DTYPES, to_float32
from edgekit.source_formats.gptq import checked_groups
from edgekit.source_formats.integers import READ_BITS, IntegerMatrix, unpack_range, unpack_words
from edgekit.source_formats.settings import Exclusions, compiled, module_of, strings, unsupported
from edgekit.source_formats.stored import Float, StoredTensor, Tensors, ceil_divide

FORMATS = (
    "pack-quantized",
    "int-quantized",
    "float-quantized",
    "naive-quantized",
    "mixed-precision",
)
STRATEGIES = ("tensor", "channel", "group", "block")


@dataclass(frozen=True)
class Group:
    """One entry of ``config_groups``; ``group_size`` 0 means one scale per row or matrix."""

    targets: tuple[str, ...]
    patterns: tuple[re.Pattern[str], ...]
    kind: str  # "int" or "float"
    bits: int
    symmetric: bool
    group_size: int
    block: Block | None

    def names(self, module: str) -> bool:
        """Whether a target is this module's path or an expression for it."""
        return module in self.targets or any(p.match(module) for p in self.patterns)

    def float8_block(self) -> Block | None:
        """The block of float8 weights; None when a scale is per tensor or channel."""
        return (1, self.group_size) if self.group_size else self.block


def find_compressed_tensors(tensors: Tensors, settings: ConfigReader) -> Iterator[StoredTensor]:
    """The quantized matrices of a checkpoint with ``quant_method`` "compressed-tensors"."""
    _refuse_transforms(settings)
    groups = _groups(settings)
    excluded = _ignored(settings)
    for name in tensors:
        packed = name.endswith("weight_packed")
        dtype = tensors.info(name).dtype
        if packed or (name.endswith("weight") and (dtype == "I8" or dtype in FLOAT8_WEIGHTS)):
            excluded.check(tensors, name)
            yield _matrix(tensors, name, groups)


def _refuse_transforms(settings: ConfigReader) -> None:
    """Rotated or sparse weights are something else than their codes say."""
    if settings.config.get("transform_config"):
        raise unsupported(
            settings, "transform_config", "asks for rotated weights, which are not read"
        )
    sparsity = settings.config.get("sparsity_config")
    if isinstance(sparsity, Mapping) and sparsity.get("format") not in (None, "dense"):
        raise unsupported(
            settings, "sparsity_config", "asks for sparse weights, which are not read"
        )


def _ignored(settings: ConfigReader) -> Exclusions:
    entries = strings(settings, "ignore")
    patterns = [
        compiled(settings, "ignore", entry.removeprefix("re:"))
        for entry in entries
        if entry.startswith("re:")
    ]
    return Exclusions("ignore", exact=entries, patterns=patterns)


def _groups(settings: ConfigReader) -> list[Group]:
    entries = settings.config.get("config_groups")
    if not isinstance(entries, Mapping) or not entries:
        raise settings.bad("config_groups", "is missing or not an object")
    default = settings.text("format", "pack-quantized")
    groups = []
    for key, entry in entries.items():
        if not isinstance(entry, Mapping):
            raise settings.bad("config_groups", f"has an entry {key!r} that is not an object")
        reader = ConfigReader(entry, f"{settings.source}: config_groups: {key}")
        form = reader.text("format", default)
        if form not in FORMATS:
            raise unsupported(
                reader, "format", f"is {form!r}, edgekit reads {', '.join(FORMATS[:-1])}"
            )
        if entry.get("weights") is not None:  # else of activations only
            groups.append(_group(reader))
    return groups


def _group(reader: ConfigReader) -> Group:
    weights = reader.config["weights"]
    if not isinstance(weights, Mapping):
        raise reader.bad("weights", "is not an object")
    args = ConfigReader(weights, f"{reader.source}: weights")
    strategy = args.text("strategy", "group" if weights.get("group_size") else "channel")
    if strategy not in STRATEGIES:
        raise unsupported(
            args, "strategy", f"is {strategy!r}, edgekit reads {', '.join(STRATEGIES)}"
        )
    kind = args.text("type", "int")
    bits = args.count("num_bits", 8, maximum=64)
    if kind not in ("int", "float") or bits not in (READ_BITS if kind == "int" else (8,)):
        raise unsupported(
            args, "num_bits", f"is {bits} of type {kind!r}, edgekit reads int 4, 8 and float 8"
        )
    block = read_block(args, "block_structure") if strategy == "block" else None
    if strategy == "block" and (kind == "int" or block is None):
        raise unsupported(
            args, "strategy", "is block, which is read for float8 with a block_structure"
        )
    targets = tuple(strings(reader, "targets"))
    return Group(
        targets=targets,
        patterns=tuple(
            compiled(reader, "targets", target.removeprefix("re:"))
            for target in targets
            if target.startswith("re:")
        ),
        kind=kind,
        bits=bits,
        symmetric=args.flag("symmetric", True),
        group_size=args.count("group_size") if strategy == "group" else 0,
        block=block,
    )


def _matrix(tensors: Tensors, name: str, groups: list[Group]) -> StoredTensor:
    dtype = tensors.info(name).dtype
    kind = "float" if dtype in FLOAT8_WEIGHTS else "int"
    module = module_of(name)
    matching = [group for group in groups if group.kind == kind and group.names(module)]
    choices = matching or [group for group in groups if group.kind == kind]
    if not choices:
        raise tensors.bad(
            name,
            f"is quantized to {kind} and no entry of config_groups says so; config and weights do "
            "not belong together, download the checkpoint again",
        )
    if kind == "float":
        return float8_tensor(tensors, name, choices[0].float8_block())
    return _integer_matrix(tensors, name, choices)


def _integer_matrix(tensors: Tensors, stored: str, choices: list[Group]) -> IntegerMatrix:
    name = stored.removesuffix("_packed")
    scale = tensors.partner(stored, name + "_scale")
    if stored == name:
        shape = _two_axes(tensors, stored, tensors.info(stored).shape)
        parts = [stored, scale.name]
    else:
        shape = _shape(tensors, stored, name)
        choices = _of_width(tensors, stored, shape, choices)
        parts = [stored, scale.name, name + "_shape"]
    group = _of_scale(tensors, scale.name, shape, choices)
    size = group.group_size or max(1, shape[1])
    if not group.symmetric:
        tensors.partner(stored, name + "_zero_point")
    for extra in ("_zero_point", "_g_idx"):
        if name + extra in tensors:
            parts.append(name + extra)
    kind = Int8Matrix if stored == name else PackedMatrix
    matrix = kind(tensors, name, shape, "", tuple(parts), group.bits, size)
    matrix.check_extras()
    return matrix


def _two_axes(tensors: Tensors, name: str, shape: tuple[int, ...]) -> tuple[int, int]:
    if len(shape) != 2:
        raise tensors.bad(
            name, f"is a quantized tensor of shape {list(shape)}, expected a matrix; give the "
            "original, unquantized checkpoint"
        )  # fmt: skip
    return shape[0], shape[1]


def _shape(tensors: Tensors, packed: str, name: str) -> tuple[int, int]:
    """``X_shape``, checked against the rows that there are."""
    info = tensors.partner(packed, name + "_shape")
    tensors.expect(info.name, ("I64", "I32"), (2,))
    rows, columns = (int(size) for size in tensors.array(info.name))
    if _two_axes(tensors, packed, tensors.info(packed).shape)[0] != rows or columns < 0:
        raise tensors.bad(
            info.name,
            f"says {[rows, columns]} but {packed!r} has shape {list(tensors.info(packed).shape)}; "
            "download the checkpoint again",
        )
    return rows, columns


def _of_width(
    tensors: Tensors, packed: str, shape: tuple[int, int], choices: list[Group]
) -> list[Group]:
    """The entries whose bits explain the width of the packed tensor."""
    width = tensors.info(packed).shape[1]
    fitting = [group for group in choices if ceil_divide(shape[1] * group.bits, 32) == width]
    if not fitting:
        bits = " or ".join(sorted({str(group.bits) for group in choices}))
        raise tensors.bad(
            packed,
            f"has {width} words per row, which {shape[1]} codes of {bits} bits do not fill; "
            "config and weights do not belong together, download the checkpoint again",
        )
    tensors.expect(packed, ("I32",), (shape[0], width))
    return fitting


def _of_scale(tensors: Tensors, scale: str, shape: tuple[int, int], choices: list[Group]) -> Group:
    """The entry whose groups explain the shape of the scales."""
    rows, columns = shape
    found = tensors.info(scale).shape
    for group in choices:
        expected: set[tuple[int, ...]] = {
            (rows, ceil_divide(columns, group.group_size or max(1, columns)))
        }
        if not group.group_size:
            expected |= {(rows,), (1,), ()}
        if found in expected:
            tensors.expect(scale, SCALE_DTYPES, found)
            return group
    raise tensors.bad(
        scale,
        f"has shape {list(found)}, which no entry of config_groups explains for a matrix of "
        f"{list(shape)}; config and weights do not belong together, download the checkpoint again",
    )


class CompressedMatrix(IntegerMatrix):
    """What both integer forms share: scales, zero points and the order of groups."""

    def _extra(self, suffix: str) -> str | None:
        name = self.name + suffix
        return name if name in self.parts else None

    def check_extras(self) -> None:
        """Shapes of zero points and group order."""
        rows, columns = self.shape
        groups = ceil_divide(columns, self.group_size)
        zero_point = self._extra("_zero_point")
        if zero_point and self.tensors.info(zero_point).dtype == "I32":
            words = ceil_divide(rows * self.bits, 32)
            self.tensors.expect(zero_point, ("I32",), (words, groups))
        elif zero_point and self.tensors.info(zero_point).shape not in ((1,), ()):
            self.tensors.expect(zero_point, ("I8",), (rows, groups))
        order = self._extra("_g_idx")
        if order:
            self.tensors.expect(order, ("I32", "I64"), (columns,))

    def scales(self, start: int, stop: int) -> Float:
        """See :class:`IntegerMatrix`."""
        name = self.name + "_scale"
        values = to_float32(self.tensors.array(name), self.tensors.info(name).dtype)
        if values.size == 1:
            return np.broadcast_to(values.reshape(1, 1), (stop - start, 1))
        groups = ceil_divide(self.shape[1], self.group_size)
        return values.reshape(self.shape[0], groups)[start:stop]

    def zero_points(self, start: int, stop: int) -> NDArray[Any] | None:
        """See :class:`IntegerMatrix`."""
        name = self._extra("_zero_point")
        if name is None:
            return None
        stored = self.tensors.array(name)
        if self.tensors.info(name).dtype == "I32":
            return unpack_range(stored.T, self.bits, start, stop).T
        signed = stored.astype(np.int16) + self.implicit_zero_point
        if signed.size == 1:
            return np.broadcast_to(signed.reshape(1, 1), (stop - start, 1))
        return signed[start:stop]

    def reordered_groups(self) -> NDArray[Any] | None:
        """See :class:`IntegerMatrix`."""
        name = self._extra("_g_idx")
        if name is None or (self.tensors.array(name) == -1).all():  # -1: made, then not used
            return None
        return checked_groups(self.tensors, name, self.shape[1], self.group_size)


class PackedMatrix(CompressedMatrix):
    """``pack-quantized``."""

    def unsigned(self, start: int, stop: int) -> NDArray[np.uint8]:
        """See :class:`IntegerMatrix`."""
        words = self.tensors.array(self.parts[0])[start:stop]
        return np.ascontiguousarray(unpack_words(words, self.bits)[:, : self.shape[1]])


class Int8Matrix(CompressedMatrix):
    """``int-quantized``: signed bytes, whatever the number of bits."""

    def unsigned(self, start: int, stop: int) -> NDArray[np.uint8]:
        """See :class:`IntegerMatrix`."""
        signed = self.tensors.array(self.parts[0])[start:stop]
        if self.bits == 8:
            return signed.view(np.uint8) ^ np.uint8(128)
        limit = self.implicit_zero_point
        if signed.size and not (-limit <= signed.min() and signed.max() < limit):
            raise self.tensors.bad(
                self.parts[0],
                f"holds values outside of {self.bits} bits; config and weights do not belong "
                "together, download the checkpoint again",
            )
        return (signed + np.int8(limit)).view(np.uint8)
