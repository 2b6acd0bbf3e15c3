"""Bytes of a text file to characters: UTF-8, UTF-16 and UTF-32 by their mark, GB18030 by guess."""

from __future__ import annotations

import codecs
import re

from edgekit.assistant.documents.records import UnreadableError

_MARKS = (  # the longer marks first: UTF-32's begins with UTF-16's
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_SAMPLE = 64 * 1024
# what Chinese text in GBK consists of besides ASCII: common ideographs and their punctuation
_CHINESE = re.compile(r"[\u4e00-\u9fff\u3000-\u301e\uff01-\uff5e\u2014\u2018-\u201d\u2026\u00b7]")
_BINARY_SHARE = 0.1  # of control characters or of bytes that are no UTF-8


def decode(data: bytes, declared: str = "") -> tuple[str, list[str]]:
    """The text of a file and what was wrong with it.

    A mark at the beginning decides; then UTF-8 if it is valid, ``declared`` (of a web page) if it
    is, GB18030 if the result is Chinese; else UTF-8 with U+FFFD for each invalid byte.

    Raises:
        UnreadableError: the bytes are not text.
    """
    for mark, encoding in _MARKS:
        if data.startswith(mark):
            return _replaced(data, encoding)
    if b"\0" in data[:_SAMPLE]:
        raise UnreadableError("it is not text (it holds zero bytes)")
    for encoding in ("utf-8", declared):
        text = _strict(data, encoding) if encoding else None
        if text is not None:
            return _text(text), []
    chinese = _strict(data, "gb18030")
    if chinese is not None and _looks_chinese(chinese):
        return chinese, []
    return _replaced(data, "utf-8")


def _strict(data: bytes, encoding: str) -> str | None:
    try:
        # a codec such as "zip" or "hex" is no encoding of text
        if not codecs.lookup(encoding)._is_text_encoding:
            return None
        return data.decode(encoding)
    except (LookupError, ValueError):
        return None


def _replaced(data: bytes, encoding: str) -> tuple[str, list[str]]:
    text = data.decode(encoding, errors="replace")
    lost = text.count("\ufffd") - (data.count("\ufffd".encode()) if encoding == "utf-8" else 0)
    if lost <= 0:
        return _text(text), []
    if lost > _BINARY_SHARE * len(text):
        raise UnreadableError("it is not text in UTF-8, UTF-16 or GB18030")
    name = encoding.removesuffix("-sig").upper()
    return _text(text), [f"{lost} invalid bytes of {name} were replaced"]


def _text(text: str) -> str:
    sample = text[:_SAMPLE]
    odd = sum(1 for c in sample if ord(c) < 32 and c not in "\t\n\r\f\v\x1b")
    if odd > _BINARY_SHARE * len(sample):
        raise UnreadableError("it is not text (it consists of control characters)")
    return text


def _looks_chinese(text: str) -> bool:
    beyond_ascii = re.sub(r"[\x00-\x7f]+", "", text[:_SAMPLE])
    return len(_CHINESE.findall(beyond_ascii)) > 0.9 * len(beyond_ascii)
