"""The user's own text: ``.txt``, ``.jsonl`` and ``.parquet`` files to token sequences."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from edgekit.errors import BadInputError, missing_extra
from edgekit.recipe import DataSection
from edgekit.sequences import TokenSequence
from edgekit.text import ChatTokenizer

MIN_TOKENS = 8  # shorter sequences carry too little context to be worth a position


def read_documents(tokenizer: ChatTokenizer, params: DataSection) -> list[TokenSequence]:
    """Sequences of ``params.files``; the domain is the file's name without its ending.

    A document goes to one split, chosen by a hash of its text and the seed: evaluation gets
    ``held_out_tokens`` of it, training ``tokens``.

    Raises:
        BadInputError: a file is missing, of an unknown kind or malformed, or there is too little
            text for either split.
    """
    pools: dict[bool, list[TokenSequence]] = {False: [], True: []}
    share = params.held_out_tokens / (params.tokens + params.held_out_tokens)
    limits = {False: params.tokens, True: params.held_out_tokens}
    for name in params.files:
        path = Path(name)
        for text in _texts(path, tokenizer):
            held_out = _fraction(text, params.seed) < share
            room = limits[held_out] - sum(len(s.tokens) for s in pools[held_out])
            tokens = tokenizer.encode(text, allow_special=path.suffix != ".txt")[: max(room, 0)]
            for start in range(0, len(tokens), params.sequence_length):
                piece = tokens[start : start + params.sequence_length]
                if len(piece) >= MIN_TOKENS:
                    pools[held_out].append(
                        TokenSequence(np.array(piece, np.int32), path.stem, held_out)
                    )
    for held_out, field in ((False, "tokens"), (True, "held_out_tokens")):
        if not pools[held_out]:
            raise BadInputError(
                f"{', '.join(params.files)}: too little text for [data] {field}; add files or "
                "shorter documents"
            )
    return pools[False] + pools[True]


def _fraction(text: str, seed: int) -> float:
    digest = hashlib.sha256(f"{seed}\0{text}".encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def _texts(path: Path, tokenizer: ChatTokenizer) -> Iterator[str]:
    readers = {".txt": _paragraphs, ".jsonl": _json_lines, ".parquet": _parquet}
    if path.suffix not in readers:
        raise BadInputError(f"{path}: not .txt, .jsonl or .parquet; convert it to one of them")
    if not path.is_file():
        raise BadInputError(f"{path}: no such file; correct [data] files")
    try:
        for row in readers[path.suffix](path):
            yield _row_text(path, row, tokenizer)
    except UnicodeDecodeError as error:
        raise BadInputError(f"{path}: not UTF-8 text ({error.reason}); convert it") from error


def _paragraphs(path: Path) -> Iterator[dict[str, Any]]:
    """Runs of paragraphs of about 2,000 characters: long enough to have context."""
    block: list[str] = []
    for paragraph in path.read_text(encoding="utf-8").split("\n\n"):
        block.append(paragraph)
        if sum(map(len, block)) > 2000:
            yield {"text": "\n\n".join(block)}
            block = []
    if any(p.strip() for p in block):
        yield {"text": "\n\n".join(block)}


def _json_lines(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:
                raise BadInputError(f"{path}: line {number} is not JSON; correct it") from error
            if not isinstance(row, dict):
                raise BadInputError(f"{path}: line {number} is not an object; correct it")
            yield row


def _parquet(path: Path) -> Iterator[dict[str, Any]]:
    try:
        from pyarrow import ArrowInvalid, parquet
    except ImportError as error:
        raise missing_extra("pyarrow", "build") from error
    try:
        file = parquet.ParquetFile(path)
        columns = [c for c in ("text", "messages") if c in file.schema_arrow.names]
        for batch in file.iter_batches(batch_size=256, columns=columns):
            yield from batch.to_pylist()
    except ArrowInvalid as error:
        raise BadInputError(f"{path}: not a whole parquet file; write it again") from error


def _row_text(path: Path, row: dict[str, Any], tokenizer: ChatTokenizer) -> str:
    text, messages = row.get("text"), row.get("messages")
    if isinstance(text, str):
        return text
    if isinstance(messages, list) and all(
        isinstance(m, dict) and isinstance(m.get("content"), str) and isinstance(m.get("role"), str)
        for m in messages
    ):
        return tokenizer.render(messages, add_generation_prompt=False)
    raise BadInputError(
        f"{path}: a row has neither text (a string) nor messages (role and content); correct it"
    )
