"""The user's own text: ``.txt``, ``.jsonl`` and ``.parquet`` files to token sequences."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekit.errors import BadInputError, missing_extra
from edgekit.recipe import DataSection
from edgekit.sequences import TokenSequence
from edgekit.text import ChatTokenizer

MIN_TOKENS = 8  # shorter sequences carry too little context to be worth a position


@dataclass(frozen=True)
class Document:
    """One row of a file; with ``messages`` its ``text`` is how the template renders them."""

    path: Path
    text: str
    messages: list[dict[str, Any]] | None


def require_goal(params: DataSection) -> None:
    """Refuse a section that wants neither split."""
    if not params.tokens and not params.held_out_tokens:
        raise BadInputError("no text asked for; raise [data] tokens")


def read_documents(tokenizer: ChatTokenizer, params: DataSection) -> list[TokenSequence]:
    """Sequences of ``params.files``; the domain is the file's name without its ending.

    A document goes to one split, chosen by a hash of its text and the seed: evaluation gets
    ``held_out_tokens`` of it, training ``tokens``; a split of 0 tokens gets none. Reading stops
    once both have what they want. With ``params.count`` "assistant" only positions that predict an
    assistant's tokens count in a row of messages; text counts wholly. Pieces in which no position
    counts are left out.

    Raises:
        BadInputError: a file is missing, of an unknown kind or malformed, or there is too little
            text for a split that is wanted.
    """
    require_goal(params)
    pools: dict[bool, list[TokenSequence]] = {False: [], True: []}
    goals = {False: params.tokens, True: params.held_out_tokens}
    # a split that is wanted at all has room for the shortest sequence
    room = {held_out: max(goal, MIN_TOKENS) if goal else 0 for held_out, goal in goals.items()}
    for document, held_out in split_documents(tokenizer, params):
        if room[held_out] < MIN_TOKENS:
            continue
        whole = _encode(tokenizer, document, held_out, params.count)
        for piece in _pieces(whole, room[held_out], params.sequence_length):
            pools[held_out].append(piece)
            room[held_out] -= len(piece.tokens)
        if max(room.values()) < MIN_TOKENS:
            break
    for held_out, field in ((False, "tokens"), (True, "held_out_tokens")):
        if goals[held_out] and not pools[held_out]:
            answers = " (of an assistant's turns)" if params.count == "assistant" else ""
            raise BadInputError(
                f"{', '.join(params.files)}: too little text for [data] {field}{answers}; add "
                "files or shorter documents"
            )
    return pools[False] + pools[True]


def split_documents(
    tokenizer: ChatTokenizer, params: DataSection
) -> Iterator[tuple[Document, bool]]:
    """Every document of ``params.files``, and whether it is held out."""
    paths = [_checked(Path(name)) for name in params.files]
    share = params.held_out_tokens / (params.tokens + params.held_out_tokens)
    for document in itertools.chain.from_iterable(_documents(p, tokenizer) for p in paths):
        yield document, _fraction(document.text, params.seed) < share


def read_domains(tokenizer: ChatTokenizer, params: DataSection) -> list[TokenSequence]:
    """Sequences of the domains of ``params`` that have files, in proportion to their weights.

    Raises:
        BadInputError: as :func:`read_documents`, for the first domain that has too little text.
    """
    sequences: list[TokenSequence] = []
    for name, share in params.shares().items():
        files = params.domains[name].files
        if not files:
            continue
        part = params.model_copy(
            update={
                "files": files,
                "tokens": round(params.tokens * share),
                "held_out_tokens": round(params.held_out_tokens * share),
            }
        )
        found = read_documents(tokenizer, part)
        sequences += [dataclasses.replace(s, domain=name) for s in found]
    return sequences


def _fraction(text: str, seed: int) -> float:
    digest = hashlib.sha256(f"{seed}\0{text}".encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def _encode(
    tokenizer: ChatTokenizer, document: Document, held_out: bool, count: str
) -> TokenSequence:
    """A whole document; only the chat template around messages may write special tokens."""
    counted: NDArray[np.bool_] | None = None
    if document.messages is None:
        tokens = tokenizer.encode(document.text)
    elif count == "all":
        tokens = tokenizer.encode_chat(document.messages, add_generation_prompt=False)
    else:
        try:
            tokens, written = tokenizer.encode_turns(document.messages)
        except BadInputError as error:
            raise BadInputError(f"{document.path}: {error}") from error
        counted = predicting(np.array(written, np.bool_))
    return TokenSequence(np.array(tokens, np.int32), document.path.stem, held_out, counted)


def predicting(written: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The positions whose next token is one of ``written``; after the last nothing is known."""
    return np.append(written[1:], False)


def _pieces(whole: TokenSequence, room: int, length: int) -> Iterator[TokenSequence]:
    """``whole`` in pieces of ``length``, the last maybe shorter, of at most ``room`` tokens
    together; without those in which nothing counts."""
    for start in range(0, len(whole.tokens), length):
        place = slice(start, start + min(length, room))
        counted = None if whole.counted is None else whole.counted[place]
        piece = dataclasses.replace(whole, tokens=whole.tokens[place], counted=counted)
        if len(piece.tokens) < MIN_TOKENS:
            return
        if piece.positions:
            yield piece
            room -= len(piece.tokens)


def _checked(path: Path) -> Path:
    if path.suffix not in READERS:
        raise BadInputError(f"{path}: not .txt, .jsonl or .parquet; convert it to one of them")
    if not path.is_file():
        raise BadInputError(f"{path}: no such file; correct [data] files")
    return path


def _documents(path: Path, tokenizer: ChatTokenizer) -> Iterator[Document]:
    try:
        for row in READERS[path.suffix](path):
            yield _document(path, row, tokenizer)
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
                json.dumps(row, ensure_ascii=False).encode()  # fails on half a character
            except UnicodeEncodeError as error:
                raise BadInputError(
                    f"{path}: line {number} has a lone surrogate such as \\ud800, which is no "
                    "text; correct it"
                ) from error
            except (ValueError, RecursionError) as error:
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


READERS = {".txt": _paragraphs, ".jsonl": _json_lines, ".parquet": _parquet}


def _document(path: Path, row: dict[str, Any], tokenizer: ChatTokenizer) -> Document:
    text, messages = row.get("text"), row.get("messages")
    if isinstance(text, str):
        return Document(path, text, None)
    if isinstance(messages, list) and all(
        isinstance(m, dict) and isinstance(m.get("content"), str) and isinstance(m.get("role"), str)
        for m in messages
    ):
        text = tokenizer.render(messages, add_generation_prompt=False)
        return Document(path, text, messages)
    raise BadInputError(
        f"{path}: a row has neither text (a string) nor messages (role and content); correct it"
    )
