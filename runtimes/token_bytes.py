"""The bytes that every token stands for, which grammars are matched against.

They are read from ``tokenizer.json``: byte-level vocabularies spell each byte as a printable
character (GPT-2's table), the others mark spaces with ``▁`` and, with byte fallback, spell the
bytes of rare characters as ``<0x0A>``. Added tokens stand for their text, so that a tool call's
``<tool_call>`` can be part of a grammar; the tokens that end or frame texts have no bytes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from edgekit.checkpoint import read_json
from edgekit.errors import BadInputError
from edgekit.text import TOKENIZER, ChatTokenizer

_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
SPACE = "\u2581"


def token_bytes(directory: Path, tokenizer: ChatTokenizer, vocab_size: int) -> list[bytes]:
    """The bytes of tokens 0 to ``vocab_size``; empty for end tokens, "bos", "pad" and the like.

    Raises:
        BadInputError: the tokenizer is of a kind whose tokens are not pieces of text.
    """
    path = directory / TOKENIZER
    stored = read_json(path)
    spell = _speller(stored.get("decoder"), path)
    result = [b""] * vocab_size
    for token, number in _vocabulary(stored.get("model")):
        if number < vocab_size:
            result[number] = spell(token)
    for added in stored.get("added_tokens") or ():
        if added["id"] < vocab_size:
            result[added["id"]] = added["content"].encode()
    for silent in tokenizer.end_tokens | set(tokenizer.named_special().values()):
        if silent < vocab_size:
            result[silent] = b""
    return result


def _vocabulary(model: Any) -> Iterator[tuple[str, int]]:
    """Tokens and ids of a BPE vocabulary (a table) or a Unigram one (a list of pairs)."""
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    if isinstance(vocabulary, dict):
        yield from vocabulary.items()
    elif isinstance(vocabulary, list):
        yield from ((piece[0], number) for number, piece in enumerate(vocabulary))


def _speller(decoder: Any, path: Path) -> Callable[[str], bytes]:
    """The function from a token as stored to its bytes."""
    steps = decoder.get("decoders", [decoder]) if isinstance(decoder, dict) else []
    kinds = {step.get("type") for step in steps}
    if "ByteLevel" in kinds:
        return _from_byte_level
    if kinds & {"Metaspace", "ByteFallback", "Replace"}:
        return _from_pieces
    raise BadInputError(
        f"{path}: its decoder ({', '.join(map(str, kinds)) or 'none'}) does not say which text a "
        "token is, so no grammar can be followed; ask without tools and response formats"
    )


def _from_byte_level(token: str) -> bytes:
    if all(character in _BYTES for character in token):
        return bytes(_BYTES[character] for character in token)
    return token.encode()


def _from_pieces(token: str) -> bytes:
    if byte := _BYTE.fullmatch(token):
        return bytes([int(byte.group(1), 16)])
    return token.replace(SPACE, " ").encode()


def _byte_characters() -> dict[str, int]:
    """GPT-2's table: printable bytes stand for themselves, the others for 256 and up in order."""
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = [byte for byte in range(256) if byte not in printable]
    table = {chr(byte): byte for byte in printable}
    return table | {chr(256 + number): byte for number, byte in enumerate(others)}


_BYTES = _byte_characters()
