"""Rows of a damaged SQLite file, read from its pages without SQLite.

A row lies in a leaf page of its table, so every leaf that is whole gives its rows, whatever became
of the file's header, its schema and the pages above. Pages that the write-ahead log has committed
take the place of those in the file, as they do in SQLite. Freed pages are overwritten with zeros
(``secure_delete``), so nothing that was deleted comes back.

The layout is that of https://www.sqlite.org/fileformat2.html; names are the ones used there.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from edgekit.assistant.history_schema import PAGE

MAGIC = b"SQLite format 3\0"
TABLE_LEAF, INDEX_LEAF, INDEX_INTERIOR = 0x0D, 0x0A, 0x02
FILE_HEADER = 100  # bytes before the tree of page 1
LOG_HEADER, FRAME_HEADER = 32, 24
MOST_COLUMNS = 64
_INTEGERS = {1: 1, 2: 2, 3: 3, 4: 4, 5: 6, 6: 8}  # serial type: bytes

Value = int | float | str | bytes | None


@dataclass(frozen=True)
class Record:
    """A row of a table, or a key of an index.

    Attributes:
        rowid: of a table's row; 0 in an index, where it is the last value.
        values: one per column; the rest are missing where a page was unreadable.
        whole: whether everything could be read.
    """

    rowid: int
    values: tuple[Value, ...]
    whole: bool


class Pages:
    """The pages of a database file and its log, numbered from 1. A context manager."""

    def __init__(self, database: Path) -> None:
        self._file: BinaryIO | None = database.open("rb") if database.exists() else None
        self._log, self.count = _committed(database.with_name(database.name + "-wal"))
        if not self._log and self._file:
            self.count = -(-database.stat().st_size // PAGE)

    def __enter__(self) -> Pages:
        return self

    def __exit__(self, *error: object) -> None:
        if self._file:
            self._file.close()

    def page(self, number: int) -> bytes:
        """``PAGE`` bytes; zeros where there is nothing or the disk gives none."""
        if number in self._log:
            return self._log[number]
        try:
            if self._file is None or number < 1:
                return bytes(PAGE)
            self._file.seek((number - 1) * PAGE)
            return self._file.read(PAGE).ljust(PAGE, b"\0")
        except OSError:
            return bytes(PAGE)

    def records(self) -> Iterator[tuple[int, Record]]:
        """(page type, record) of everything that can be read."""
        for number in range(1, self.count + 1):
            page = self.page(number)
            start = FILE_HEADER if number == 1 else 0
            kind = page[start]
            if kind in (TABLE_LEAF, INDEX_LEAF, INDEX_INTERIOR):
                for offset in _cells(page, start, kind):
                    record = self._record(page, offset, kind)
                    if record is not None:
                        yield kind, record

    def _record(self, page: bytes, offset: int, kind: int) -> Record | None:
        try:
            if kind == INDEX_INTERIOR:
                offset += 4  # the page below
            size, offset = _varint(page, offset)
            rowid = 0
            if kind == TABLE_LEAF:
                rowid, offset = _varint(page, offset)
            payload = self._payload(page, offset, size, kind)
            return _decode(rowid, payload, len(payload) == size)
        except (IndexError, ValueError, struct.error):
            return None

    def _payload(self, page: bytes, offset: int, size: int, kind: int) -> bytes:
        """A cell's bytes with its overflow pages, as far as the chain can be followed."""
        local = _local_size(size, kind)
        payload = page[offset : offset + local]
        if local == size or len(payload) < local or size > self.count * PAGE:
            return payload
        following = int.from_bytes(page[offset + local : offset + local + 4], "big")
        pieces, length = [payload], local
        while length < size and 1 < following <= self.count:
            overflow = self.page(following)
            following = int.from_bytes(overflow[:4], "big")
            pieces.append(overflow[4 : 4 + size - length])
            length += len(pieces[-1])  # grows to no more than the file, in a circle too
        return b"".join(pieces)


def _cells(page: bytes, start: int, kind: int) -> list[int]:
    """Offsets of the cells of a page that lie inside it."""
    count = int.from_bytes(page[start + 3 : start + 5], "big")
    first = start + (12 if kind == INDEX_INTERIOR else 8)
    last = min(first + 2 * count, PAGE - 1)
    offsets = (int.from_bytes(page[i : i + 2], "big") for i in range(first, last, 2))
    return [offset for offset in offsets if first < offset < PAGE]


def _local_size(size: int, kind: int) -> int:
    """How many of a cell's bytes are in its page."""
    most = PAGE - 35 if kind == TABLE_LEAF else (PAGE - 12) * 64 // 255 - 23
    if size <= most:
        return size
    least = (PAGE - 12) * 32 // 255 - 23
    fitting = least + (size - least) % (PAGE - 4)
    return fitting if fitting <= most else least


def _decode(rowid: int, payload: bytes, whole: bool) -> Record | None:
    header, offset = _varint(payload, 0)
    kinds: list[int] = []
    while offset < header and len(kinds) < MOST_COLUMNS:
        kind, offset = _varint(payload, offset)
        kinds.append(kind)
    if offset != header:
        return None
    values: list[Value] = []
    for kind in kinds:
        length = _length(kind)
        piece = payload[offset : offset + length]
        offset += length
        value, complete = _value(kind, piece)
        values.append(value)
        whole = whole and complete
        if len(piece) < length:
            return Record(rowid, tuple(values), False)
    return Record(rowid, tuple(values), whole)


def _length(kind: int) -> int:
    if kind >= 12:
        return (kind - 12) // 2
    return 8 if kind == 7 else _INTEGERS.get(kind, 0)


def _value(kind: int, piece: bytes) -> tuple[Value, bool]:
    """The value of a serial type, and whether a text was read to its end."""
    if kind >= 13 and kind % 2:
        piece, zero, _ = piece.partition(b"\0")  # no text of ours has one: a page of zeros
        try:
            return piece.decode(), not zero
        except UnicodeDecodeError as error:
            return piece[: error.start].decode(), False
    if kind >= 12:
        return piece, True
    if kind in _INTEGERS:
        return int.from_bytes(piece, "big", signed=True), True
    if kind == 7:
        return float(struct.unpack(">d", piece)[0]), True
    if kind in (8, 9):
        return kind - 8, True
    if kind == 0:
        return None, True
    raise ValueError("a serial type that SQLite does not write")


def _varint(data: bytes, offset: int) -> tuple[int, int]:
    """An integer of 1 to 9 bytes and the offset behind it."""
    value = 0
    for i in range(8):
        byte = data[offset + i]
        value = value << 7 | byte & 0x7F
        if byte < 0x80:
            return value, offset + i + 1
    return value << 8 | data[offset + 8], offset + 9


def _committed(log: Path) -> tuple[dict[int, bytes], int]:
    """Pages of a write-ahead log up to its last valid commit, and the database's size in pages."""
    data = log.read_bytes() if log.exists() else b""
    committed: dict[int, bytes] = {}
    count = 0
    if len(data) < LOG_HEADER or int.from_bytes(data[8:12], "big") != PAGE:
        return committed, count
    order = {0x377F0682: "<", 0x377F0683: ">"}.get(int.from_bytes(data[:4], "big"))
    if order is None:
        return committed, count
    sums = _checksum(order, data[:24], (0, 0))
    if sums != struct.unpack(">II", data[24:32]):
        return committed, count
    pending: dict[int, bytes] = {}
    for start in range(LOG_HEADER, len(data) - FRAME_HEADER - PAGE + 1, FRAME_HEADER + PAGE):
        body = start + FRAME_HEADER
        frame, page = data[start:body], data[body : body + PAGE]
        sums = _checksum(order, page, _checksum(order, frame[:8], sums))
        if frame[8:16] != data[16:24] or sums != struct.unpack(">II", frame[16:24]):
            break  # the end, or what an earlier use of the file left
        number, size = struct.unpack(">II", frame[:8])
        pending[number] = page
        if size:  # a commit
            committed.update(pending)
            pending, count = {}, size
    return {n: page for n, page in committed.items() if n <= count}, count


def _checksum(order: str, data: bytes, sums: tuple[int, int]) -> tuple[int, int]:
    first, second = sums
    words = struct.unpack(f"{order}{len(data) // 4}I", data)
    for i in range(0, len(words), 2):
        first = (first + words[i] + second) & 0xFFFFFFFF
        second = (second + words[i + 1] + first) & 0xFFFFFFFF
    return first, second
