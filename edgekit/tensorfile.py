"""Safetensors files read in place and written in a chosen order.

Every runtime reads the weights file by offset, so edgekit needs what the ``safetensors`` package
does not give: absolute offsets, and a writer that lays tensors out in the order it is told (all
experts of one projection side by side) while holding one tensor in memory. The file format is the
published one: eight bytes of little-endian header length, a JSON header, the tensors without gaps.
The header is checked in full before anything is mapped.
"""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import threading
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekit.errors import BadInputError, EdgekitError

MAX_HEADER_BYTES = 100_000_000  # the limit of the safetensors reference implementation
DATA_ALIGNMENT = 64
MAX_DIMENSIONS = 64  # of a numpy array
READ_BYTES = 8 << 20  # of a file, widened and forgotten at once
WILL_NEED: int | None = getattr(mmap, "MADV_WILLNEED", None)  # None on Windows
DONT_NEED: int | None = getattr(mmap, "MADV_DONTNEED", None)
WRITEBACK_BYTES = 64 << 20  # written between two nudges to the disk

# safetensors dtype -> (bits per element, numpy dtype of the stored bytes)
DTYPES: dict[str, tuple[int, str]] = {
    "BOOL": (8, "?"),
    "U8": (8, "u1"),
    "I8": (8, "i1"),
    "I16": (16, "<i2"),
    "U16": (16, "<u2"),
    "F16": (16, "<f2"),
    "BF16": (16, "<u2"),
    "I32": (32, "<i4"),
    "U32": (32, "<u4"),
    "F32": (32, "<f4"),
    "I64": (64, "<i8"),
    "U64": (64, "<u8"),
    "F64": (64, "<f8"),
    "F8_E4M3": (8, "u1"),
    "F8_E5M2": (8, "u1"),
    "F8_E8M0": (8, "u1"),  # powers of two: scales of MX formats
}
FLOAT8 = frozenset({"F8_E4M3", "F8_E5M2", "F8_E8M0"})


@dataclass(frozen=True)
class TensorInfo:
    """One tensor of a file: safetensors ``dtype``, ``shape``, absolute byte ``offset``."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int = 0

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return int(np.prod(self.shape, dtype=object)) * DTYPES[self.dtype][0] // 8


def read_header(path: Path) -> tuple[dict[str, TensorInfo], dict[str, str]]:
    """Return the tensors and the metadata of a safetensors file.

    Raises:
        BadInputError: the file is missing, truncated, or its header is malformed, overlapping,
            or points outside the file.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            prefix = file.read(8)
            length = int.from_bytes(prefix, "little")
            if len(prefix) < 8 or length > min(size - 8, MAX_HEADER_BYTES):
                raise BadInputError(
                    f"{path}: not a whole safetensors file (header of {length} bytes in a file of "
                    f"{size}); download it again"
                )
            raw = file.read(length)
    except OSError as error:
        raise BadInputError(f"{path}: cannot be read ({error.strerror}); check the path") from error
    try:
        header = json.loads(raw)
        if not isinstance(header, dict):
            raise ValueError("not an object")
    except (ValueError, RecursionError) as error:  # also UnicodeDecodeError, JSONDecodeError
        raise BadInputError(
            f"{path}: the safetensors header is not JSON; download the file again"
        ) from error
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise BadInputError(f"{path}: __metadata__ is not an object of strings; write it again")
    tensors = {name: _tensor_info(path, name, entry, 8 + length) for name, entry in header.items()}
    _check_extent(path, tensors.values(), 8 + length, size)
    return tensors, metadata


def _tensor_info(path: Path, name: str, entry: Any, base: int) -> TensorInfo:
    def bad(what: str) -> BadInputError:
        return BadInputError(f"{path}: tensor {name!r} {what}; download the file again")

    if not isinstance(entry, dict) or not {"dtype", "shape", "data_offsets"} <= entry.keys():
        raise bad("lacks dtype, shape or data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str):
        raise bad("has a dtype that is not a string")
    if dtype not in DTYPES:
        raise BadInputError(
            f"{path}: tensor {name!r} has dtype {dtype!r}, which edgekit cannot read; "
            "convert the checkpoint to bfloat16"
        )
    if not (_are_sizes(shape, MAX_DIMENSIONS) and _are_sizes(offsets, 2) and len(offsets) == 2):
        raise bad("has a malformed shape or data_offsets")
    info = TensorInfo(name, dtype, tuple(shape), base + offsets[0])
    if offsets[1] - offsets[0] != info.nbytes:
        raise bad(
            f"of shape {list(shape)} and dtype {dtype} needs {info.nbytes} bytes but its "
            f"data_offsets span {offsets[1] - offsets[0]}"
        )
    return info


def _are_sizes(value: Any, most: int) -> bool:
    """Whether ``value`` is a list of at most ``most`` integers that a file can have."""
    return (
        isinstance(value, list)
        and len(value) <= most
        and all(type(n) is int and 0 <= n < 1 << 63 for n in value)
    )


def _check_extent(path: Path, tensors: Iterable[TensorInfo], base: int, size: int) -> None:
    end = base
    for info in sorted(tensors, key=lambda t: (t.offset, t.nbytes)):
        if info.offset != end:
            kind = "overlaps its neighbour" if info.offset < end else "leaves a gap before it"
            raise BadInputError(f"{path}: tensor {info.name!r} {kind}; download the file again")
        end = info.offset + info.nbytes
    if end != size:
        what = "truncated" if end > size else "followed by stray bytes"
        raise BadInputError(
            f"{path}: the tensors end at byte {end} but the file has {size} ({what}); "
            "download the file again"
        )


class TensorFile:
    """A safetensors file mapped into memory, read only.

    ``array`` returns views of the map: keep the file open while they are used. ``float32`` returns
    copies, and takes the pages that it read out of the process's memory again, or a file that is
    read once from end to end would in the end be resident as a whole. A view that lies there too
    stays valid: the system brings a page back when it is touched. Threads may read at once.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.tensors, self.metadata = read_header(path)
        with path.open("rb") as file:
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)

    def __enter__(self) -> TensorFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Unmap the file; a view that is still alive keeps the map until it is freed."""
        with contextlib.suppress(BufferError):  # numpy views are alive; it goes when they go
            self._map.close()

    def info(self, name: str) -> TensorInfo:
        """The description of one tensor; ``BadInputError`` when it is absent."""
        try:
            return self.tensors[name]
        except KeyError:
            raise BadInputError(
                f"{self.path}: tensor {name!r} is missing; the checkpoint is incomplete"
            ) from None

    def array(self, name: str) -> NDArray[Any]:
        """The tensor as stored, without a copy (bfloat16 as ``uint16``, float8 as ``uint8``)."""
        info = self.info(name)
        count = int(np.prod(info.shape, dtype=object))
        flat = np.frombuffer(self._map, DTYPES[info.dtype][1], count, info.offset)
        return flat.reshape(info.shape)

    def float32(self, name: str, part: Any = ...) -> NDArray[np.float32]:
        """A copy of the tensor as float32, or of the ``part`` that a basic numpy index names.

        ``part`` may be some rows of a matrix, or one expert of a tensor that holds all of them (not
        a single number); nothing else is read.

        Raises:
            BadInputError: the tensor is absent, of an integer type, or float8.
        """
        dtype = self.info(name).dtype
        if dtype in FLOAT8:
            raise BadInputError(
                f"{self.path}: tensor {name!r} is float8 ({dtype}) without a scale; download the "
                "checkpoint again or give it in bfloat16"
            )
        if not dtype.startswith(("F", "BF")):
            raise BadInputError(
                f"{self.path}: tensor {name!r} is {dtype}, a floating-point type was expected; "
                "give the original, unquantized checkpoint"
            )
        selected = self.array(name)[part]
        stored = np.atleast_1d(selected)
        values = np.empty(stored.shape, np.float32)
        for rows in _pieces(stored):
            self._advise(WILL_NEED, stored[rows])  # in one request, not as page after page is met
            if dtype == "BF16":
                wide = values[rows].view(np.uint32)
                np.left_shift(stored[rows], 16, out=wide, dtype=np.uint32)
            else:
                values[rows] = stored[rows]
            self._advise(DONT_NEED, stored[rows])
        return values.reshape(selected.shape)

    def forget(self, name: str) -> None:
        """Take the pages of a tensor that was read through ``array`` out of memory again."""
        self._advise(DONT_NEED, self.array(name))

    def _advise(self, advice: int | None, view: NDArray[Any]) -> None:
        """Tell the system what becomes of the pages below a view of the map, where it listens."""
        if advice is None or not view.size:
            return
        base = np.lib.array_utils.byte_bounds(np.frombuffer(self._map, np.uint8))[0]
        begin, end = (place - base for place in np.lib.array_utils.byte_bounds(view))
        begin -= begin % mmap.PAGESIZE
        self._map.madvise(advice, begin, end - begin)


def _pieces(stored: NDArray[Any]) -> Iterator[slice]:
    """Slices along the first axis of about ``READ_BYTES``."""
    rows = len(stored)
    step = max(1, READ_BYTES * rows // max(stored.nbytes, 1))
    return (slice(start, start + step) for start in range(0, rows, step))


class TensorFileWriter:
    """Writes a safetensors file whose layout is decided first, one tensor at a time.

    Tensors are stored in the order of ``layout``; the data begin at a multiple of 64 bytes.
    ``write`` may be called in any order and by several threads. Use it inside
    :func:`edgekit.atomic.atomic_directory`: a file that was not closed is not valid.
    """

    def __init__(
        self, path: Path, layout: Iterable[TensorInfo], metadata: Mapping[str, str] | None = None
    ) -> None:
        header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
        position = 0
        placed: list[TensorInfo] = []
        for info in layout:
            header[info.name] = {
                "dtype": info.dtype,
                "shape": list(info.shape),
                "data_offsets": [position, position + info.nbytes],
            }
            placed.append(TensorInfo(info.name, info.dtype, info.shape, position))
            position += info.nbytes
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-(8 + len(text)) % DATA_ALIGNMENT)
        base = 8 + len(text)
        self.path = path
        self.tensors = {
            t.name: TensorInfo(t.name, t.dtype, t.shape, base + t.offset) for t in placed
        }
        if len(self.tensors) != len(placed):
            raise EdgekitError(f"{path}: a tensor name occurs twice in the layout")
        self._missing = {name: info.nbytes for name, info in self.tensors.items()}
        self._lock = threading.Lock()
        self._file = path.open("wb")
        self._writeback = Writeback(self._file.fileno())
        self._file.write(len(text).to_bytes(8, "little") + text)
        self._file.truncate(base + position)

    def __enter__(self) -> TensorFileWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()
        if kind is None and self._missing:
            names = ", ".join(sorted(self._missing)[:3])
            raise EdgekitError(f"{self.path}: {len(self._missing)} tensors not written: {names}")

    def write(self, name: str, values: NDArray[Any], first_row: int | None = None) -> None:
        """Write one tensor, or with ``first_row`` the rows of it that begin there.

        float32 values are rounded to bfloat16 where the layout says BF16.
        """
        info = self.tensors[name]
        if info.dtype == "BF16" and values.dtype == np.float32:
            values = float32_to_bfloat16(values)
        self._check(info, values, first_row)
        offset = info.offset
        if first_row:
            offset += first_row * (values.nbytes // len(values))
        content = np.ascontiguousarray(values).data.cast("B") if values.size else b""
        with self._lock:
            self._file.seek(offset)
            self._file.write(content)
            self._writeback.written(offset, len(content))
            left = self._missing.pop(name, 0) - len(content)
            if left > 0:
                self._missing[name] = left

    def _check(self, info: TensorInfo, values: NDArray[Any], first_row: int | None) -> None:
        expected = info
        if first_row is not None:
            rows = min(len(values), max(0, info.shape[0] - first_row))
            expected = TensorInfo(info.name, info.dtype, (rows, *info.shape[1:]))
        if tuple(values.shape) != expected.shape or values.nbytes != expected.nbytes:
            at = "" if first_row is None else f" at row {first_row}"
            raise EdgekitError(
                f"{self.path}: {info.name} is {values.dtype}{list(values.shape)}{at}, the layout "
                f"says {info.dtype}{list(info.shape)}"
            )


class Writeback:
    """Has the disk begin with what was written, where the system can be asked.

    Written pages otherwise wait in memory while the disk idles, until the final ``fsync`` waits for
    all of them.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._places: list[tuple[int, int]] = []

    def written(self, offset: int, count: int) -> None:
        """``count`` bytes were written at ``offset``."""
        self._places.append((offset, offset + count))
        if sum(end - begin for begin, end in self._places) >= WRITEBACK_BYTES:
            begin, end = min(b for b, _ in self._places), max(e for _, e in self._places)
            self._places.clear()
            if hasattr(os, "posix_fadvise"):  # not on macOS and Windows
                os.posix_fadvise(self._descriptor, begin, end - begin, os.POSIX_FADV_DONTNEED)


def float32_to_bfloat16(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    """Round to nearest even, as hardware does; NaN stays NaN."""
    bits = np.ascontiguousarray(values).view(np.uint32)
    rounded = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    return np.where(np.isnan(values), np.uint16(0x7FC0), rounded)
