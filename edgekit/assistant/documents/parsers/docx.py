"""Word documents, read from the zip file's XML directly.

Only the main text, the notes and the style names are unpacked, in bounded pieces and never to
disk, and the size of everything in the archive is judged first: what a zip bomb unpacks to is not
unpacked. A document type declaration ends the reading, so there are no entities to expand.
Deleted and hidden text is left out.
"""

from __future__ import annotations

import io
import lzma
import zipfile
import zlib
from collections.abc import Callable, Iterator
from xml.parsers import expat

from edgekit.assistant.documents.limits import MB, Limits
from edgekit.assistant.documents.records import Block, Parsed, UnreadableError

_WORD = "http://schemas.openxmlformats.org/wordprocessingml/2006/main"
_STRICT_WORD = "http://purl.oclc.org/ooxml/wordprocessingml/main"
_ALTERNATIVE = "http://schemas.openxmlformats.org/markup-compatibility/2006 Fallback"
_MAIN = "word/document.xml"
_STYLES = "word/styles.xml"
_NOTES = ("word/footnotes.xml", "word/endnotes.xml")
_PIECE = 64 * 1024
_XML_DEPTH = 500
_OLE = b"\xd0\xcf\x11\xe0"  # old .doc, and how Word encrypts a .docx


def parse_docx(data: bytes, limits: Limits) -> Parsed:
    """Headings (by style or outline level), paragraphs and table rows, then foot- and endnotes.

    Raises:
        UnreadableError: not a Word document, protected, damaged, or larger than the limits.
    """
    if data.startswith(_OLE):
        raise UnreadableError("it is protected by a password, or an old .doc with another name")
    try:
        archive = zipfile.ZipFile(io.BytesIO(data))
    except (zipfile.BadZipFile, ValueError, OSError, RuntimeError) as error:
        raise UnreadableError("it is not a whole Word document") from error
    with archive:
        _judge(archive, limits)
        names = set(archive.namelist())
        if _MAIN not in names:
            raise UnreadableError(f"it is not a Word document (it holds no {_MAIN})")
        levels = _heading_levels(archive, limits) if _STYLES in names else {}
        text = _Text(levels)
        for part in (_MAIN, *(n for n in _NOTES if n in names)):
            _read(archive, part, limits, text.start, text.end, text.characters)
        return Parsed(text.blocks)


def _judge(archive: zipfile.ZipFile, limits: Limits) -> None:
    entries = archive.infolist()
    if len(entries) > limits.archive_entries:
        raise UnreadableError(f"it holds more than {limits.archive_entries} files")
    if sum(e.file_size for e in entries) > limits.archive_bytes:
        raise UnreadableError(f"it unpacks to more than {limits.archive_bytes // MB} MB")
    for entry in entries:
        if entry.file_size > MB and entry.file_size > limits.archive_ratio * entry.compress_size:
            raise UnreadableError(f"{entry.filename[:80]} in it unpacks to a suspicious size")
        if entry.flag_bits & 1:
            raise UnreadableError("it is protected by a password")


def _pieces(archive: zipfile.ZipFile, part: str, limits: Limits) -> Iterator[bytes]:
    """The bytes of a part; what its header says about the size is not trusted."""
    left = limits.archive_bytes
    with archive.open(part) as file:
        while piece := file.read(_PIECE):
            left -= len(piece)
            if left < 0:
                raise UnreadableError(f"{part} in it is larger than it says")
            yield piece


def _read(
    archive: zipfile.ZipFile,
    part: str,
    limits: Limits,
    start: Callable[[str, dict[str, str]], None],
    end: Callable[[str], None],
    characters: Callable[[str], None] = lambda _: None,
) -> None:
    """Parse one part; names reach the handlers as "NAMESPACE NAME"."""
    parser = expat.ParserCreate(namespace_separator=" ")
    depth = 0

    def open_element(name: str, attributes: dict[str, str]) -> None:
        nonlocal depth
        depth += 1
        if depth > _XML_DEPTH:
            raise UnreadableError(f"{part} in it is nested too deeply")
        start(name, attributes)

    def close_element(name: str) -> None:
        nonlocal depth
        depth -= 1
        end(name)

    def refuse(*_: object) -> None:
        raise UnreadableError(f"{part} in it declares a document type, which Word never does")

    parser.StartDoctypeDeclHandler = refuse
    parser.EntityDeclHandler = refuse
    parser.StartElementHandler = open_element
    parser.EndElementHandler = close_element
    parser.CharacterDataHandler = characters
    parser.buffer_text = True
    try:
        for piece in _pieces(archive, part, limits):
            parser.Parse(piece, False)
        parser.Parse(b"", True)
    except (expat.ExpatError, zipfile.BadZipFile, EOFError, OSError, ValueError) as error:
        raise UnreadableError(f"{part} in it is damaged") from error
    except (zlib.error, lzma.LZMAError, RuntimeError) as error:  # or a method zipfile has not
        raise UnreadableError(f"{part} in it cannot be unpacked") from error


def _local(name: str) -> str:
    """The name of a Word element, or "" for another namespace."""
    namespace, _, local = name.rpartition(" ")
    return local if namespace in (_WORD, _STRICT_WORD) else ""


def _value(attributes: dict[str, str], name: str = "val") -> str:
    for namespace in (_WORD, _STRICT_WORD):
        if (value := attributes.get(f"{namespace} {name}")) is not None:
            return value
    return ""


def _heading_levels(archive: zipfile.ZipFile, limits: Limits) -> dict[str, int]:
    """Style id to heading level; ids are numbers or in the language of the program."""
    levels: dict[str, int] = {}
    style = ""

    def start(name: str, attributes: dict[str, str]) -> None:
        nonlocal style
        match _local(name):
            case "style":
                style = _value(attributes, "styleId")
            case "name":
                kind, _, level = _value(attributes).lower().rpartition(" ")
                if kind == "heading" and level in "123456":
                    levels[style] = int(level)
                elif _value(attributes).lower() == "title":
                    levels[style] = 1
            case "outlineLvl" if style and _value(attributes) in "012345":
                levels.setdefault(style, int(_value(attributes) or 0) + 1)

    _read(archive, _STYLES, limits, start, lambda _: None)
    return levels


class _Text:
    """Collects paragraphs; the cells of a table row become one block."""

    def __init__(self, levels: dict[str, int]) -> None:
        self.blocks: list[Block] = []
        self._levels = levels
        self._paragraph: list[str] = []
        self._cells: list[str] = []
        self._rows = 0  # open table rows: tables nest
        self._level = 0
        self._left_out = 0  # depth inside an element whose text is left out
        self._hidden_run = False
        self._in_text = False

    def start(self, name: str, attributes: dict[str, str]) -> None:
        if self._left_out or name == _ALTERNATIVE:
            self._left_out += 1
            return
        match _local(name):
            case "p":
                self._level = 0
            case "pStyle":
                self._level = self._levels.get(_value(attributes), self._level)
            case "outlineLvl" if _value(attributes) in tuple("012345"):
                self._level = int(_value(attributes)) + 1
            case "r":
                self._hidden_run = False
            case "vanish":
                self._hidden_run = _value(attributes) not in ("0", "false", "off")
            case "t":
                self._in_text = not self._hidden_run
            case "tab":
                self._paragraph.append("\t")
            case "br" | "cr":
                self._paragraph.append("\n")
            case "noBreakHyphen":
                self._paragraph.append("-")
            case "tr":
                self._rows += 1

    def end(self, name: str) -> None:
        if self._left_out:
            self._left_out -= 1
            return
        match _local(name):
            case "t":
                self._in_text = False
            case "p":
                self._end_paragraph()
            case "tr":
                self._rows -= 1
                if not self._rows and self._cells:
                    self.blocks.append(Block(" | ".join(self._cells)))
                    self._cells = []

    def characters(self, text: str) -> None:
        if self._in_text and not self._left_out:
            self._paragraph.append(text)

    def _end_paragraph(self) -> None:
        text = "".join(self._paragraph).strip()
        self._paragraph.clear()
        if not text:
            return
        if self._rows:
            self._cells.append(text)
        else:
            self.blocks.append(Block(text, level=self._level))
