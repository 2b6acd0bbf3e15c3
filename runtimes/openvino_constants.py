"""Constants of an OpenVINO graph: views of the weights file, and a few small ones beside them.

Every constant carries a name. Those of the weights file are known by offset already; the small
ones (rotary frequencies, shapes, epsilons) are collected and laid out in the file's
``edgekit.constants`` tensor when the graph is written. Graphs of nested sizes share that tensor:
each adds behind the others what they do not have.
"""

from __future__ import annotations

import mmap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
from numpy.typing import NDArray
from openvino import opset13 as op
from openvino.op import Constant

from edgekit.architecture import TensorTable
from edgekit.errors import EdgekitError
from edgekit.runtimes.stored import StoredTensors
from edgekit.scheme import CONSTANTS
from edgekit.tensorfile import TensorInfo

ALIGNMENT = 64
OV_TYPES = {"F16": ov.Type.f16, "F32": ov.Type.f32}
PACKED_TYPES = {4: ov.Type.u4, 8: ov.Type.u8}
Node = Any  # openvino.Node


def _stand_in(weights: Path) -> NDArray[np.uint8]:
    """Bytes as many as the file's, for constants to lie on while the graph is made.

    The graph needs the places of the weights, not their values, but OpenVINO's serializer looks at
    every byte of every constant: over the file that would bring all of it into memory. These are
    zeros that take none: pages of an anonymous map that are only read are one page of the system.
    """
    size = weights.stat().st_size
    if not hasattr(mmap, "MAP_ANONYMOUS"):  # Windows would set memory aside for all of it
        return np.memmap(weights, np.uint8, mode="c")
    # private, or the system would give each page that is read a place of its own; read only, or it
    # would count all of it as memory that may be asked for
    zeros = mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, mmap.PROT_READ)
    return np.frombuffer(zeros, np.uint8)


class SmallConstants:
    """The small constants of all graphs over one weights file, in the order they came."""

    def __init__(self) -> None:
        self._names: dict[bytes, str] = {}
        self._content: list[tuple[str, bytes]] = []

    def name(self, array: NDArray[Any]) -> str:
        """The name of a constant, which is remembered if it is new."""
        key = f"{array.dtype.str}{array.shape}".encode() + array.tobytes()
        if key not in self._names:
            self._names[key] = f"small.{len(self._names)}"
            self._content.append((self._names[key], array.tobytes()))
        return self._names[key]

    def placed(self, begin: int) -> tuple[dict[str, int], bytes]:
        """Absolute offset of each constant, and all of their bytes from ``begin`` on."""
        content = bytearray()
        places: dict[str, int] = {}
        for name, raw in self._content:
            content += b"\0" * (-(begin + len(content)) % ALIGNMENT)
            places[name] = begin + len(content)
            content += raw
        return places, bytes(content)


class ConstantPool(StoredTensors):
    """Makes the constants of one graph and remembers where each lies in the weights file.

    ``small`` is shared with the graphs that are written over the same file.
    """

    def __init__(
        self, weights: Path, table: TensorTable, small: SmallConstants | None = None
    ) -> None:
        super().__init__(weights, table)
        self._bytes = _stand_in(weights)
        self._small = small or SmallConstants()
        self._alive: list[Any] = []  # a tensor over freed memory is a crash
        self.offsets: dict[str, int] = {}  # constant's friendly name -> absolute offset

    def stacked(self, names: Sequence[str]) -> TensorInfo:
        """Tensors of one shape that lie side by side, as one of shape [n, ...]."""
        first = self.adjacent(names)
        return TensorInfo(first.name, first.dtype, (len(names), *first.shape), first.offset)

    def stored(self, info: TensorInfo, kind: Any, shape: Sequence[int]) -> Node:
        """A constant of OpenVINO type ``kind`` over the bytes of ``info``, read in place."""
        view = self._bytes[info.offset : info.offset + info.nbytes]
        node = Constant(ov.Tensor(view, ov.Shape(list(shape)), kind))
        self._alive.append(view)
        return self._named(node, f"{info.name}@{info.offset}", info.offset)

    def floats(self, name: str, shape: Sequence[int] | None = None) -> Node:
        """A float16 or float32 tensor of the file."""
        parts = self.parts(name)
        kind = parts[0].dtype
        if kind not in OV_TYPES:
            raise EdgekitError(f"{self.path}: {name} is {kind}; quantize again")
        if len(parts) == 1:
            return self.stored(parts[0], OV_TYPES[kind], shape or parts[0].shape)
        joined = op.concat([self.stored(part, OV_TYPES[kind], part.shape) for part in parts], 0)
        return op.reshape(joined, self.value(list(shape), np.int64), False) if shape else joined

    def value(self, value: Any, dtype: Any) -> Node:
        """A small constant."""
        array: NDArray[Any] = np.array(value, dtype, order="C")
        node = Constant(ov.Tensor(array))
        return self._named(node, f"{self._small.name(array)}#{len(self.offsets)}", -1)

    def _named(self, node: Node, name: str, offset: int) -> Node:
        unique = name if name not in self.offsets else f"{name}+{len(self.offsets)}"
        self.offsets[unique] = offset
        node.set_friendly_name(unique)
        return node

    def place_small(self) -> tuple[dict[str, int], bytes]:
        """Absolute offset of each small constant, and the bytes of the constants' tensor."""
        room = self.info(CONSTANTS)
        places, content = self._small.placed(room.offset)
        if len(content) > room.nbytes:
            raise EdgekitError(
                f"{self.path}: the graph's constants need {len(content)} bytes, {CONSTANTS} has "
                f"{room.nbytes}; this is a defect of edgekit, please report it"
            )
        return places, content
