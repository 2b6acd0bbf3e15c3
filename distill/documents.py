"""The user's own text: ``.txt``, ``.jsonl`` and ``.parquet`` files to token sequences."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Sequence
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
    ``held_out_tokens`` of it, training ``tokens``; a split of 0 tokens gets none. Every file gives
    the same share of a split, at least the shortest sequence; what one lacks the others give.
    Reading stops once both splits have what they want. With ``params.count`` "assistant" only
    positions that predict an assistant's tokens count in a row of messages; text counts wholly.
    Pieces in which no position counts are left out.

    Raises:
        BadInputError: a file is missing, of an unknown kind or malformed, or has too little text
            for a split that is wanted.
    """
    sequences = _read(tokenizer, params)
    for name in params.files:
        _require_text([s for s in sequences if s.domain == Path(name).stem], params, (name,))
    return sequences


def _read(tokenizer: ChatTokenizer, params: DataSection) -> list[TokenSequence]:
    """What there is of both splits: first of training."""
    require_goal(params)
    files = [_File(split_documents(tokenizer, params, path)) for path in _paths(params)]

    def supply(file: _File, held_out: bool) -> _Supply:
        documents = file.held_out() if held_out else file.training()
        return _Supply(_encode(tokenizer, d, held_out, params.count) for d in documents)

    found: list[TokenSequence] = []
    for held_out, goal in ((False, params.tokens), (True, params.held_out_tokens)):
        if goal:
            supplies = [supply(file, held_out) for file in files]
            found += _shared(supplies, goal, params.sequence_length)
    return found


def _require_text(
    sequences: Sequence[TokenSequence], params: DataSection, files: Sequence[str]
) -> None:
    """Refuse ``files`` whose ``sequences`` lack a split that ``params`` wants."""
    splits = {s.held_out for s in sequences}
    for held_out, field in ((False, "tokens"), (True, "held_out_tokens")):
        if getattr(params, field) and held_out not in splits:
            answers = " (of an assistant's turns)" if params.count == "assistant" else ""
            raise BadInputError(
                f"{', '.join(files)}: too little text for [data] {field}{answers}; give it more "
                "or shorter documents, or leave it out"
            )


def _paths(params: DataSection) -> list[Path]:
    return [_checked(Path(name)) for name in params.files]


def split_documents(
    tokenizer: ChatTokenizer, params: DataSection, path: Path | None = None
) -> Iterator[tuple[Document, bool]]:
    """Every document of ``params.files``, or of ``path`` alone, and whether it is held out."""
    share = params.held_out_tokens / (params.tokens + params.held_out_tokens)
    for file in [path] if path else _paths(params):
        for document in _documents(file, tokenizer):
            yield document, _fraction(document.text, params.seed) < share


def read_domains(tokenizer: ChatTokenizer, params: DataSection) -> list[TokenSequence]:
    """Sequences of the domains of ``params`` that have files, in proportion to their weights.

    Raises:
        BadInputError: as :func:`read_documents`, for the first domain that has too little text in
            all of its files.
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
        found = _read(tokenizer, part)
        _require_text(found, part, files)
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


class _File:
    """The documents of one file, read once: those held out wait until training has enough."""

    def __init__(self, documents: Iterator[tuple[Document, bool]]) -> None:
        self._documents = documents
        self._waiting: list[Document] = []

    def training(self) -> Iterator[Document]:
        """Those of training, from where it was left."""
        for document, held_out in self._documents:
            if not held_out:
                yield document
            else:
                self._waiting.append(document)

    def held_out(self) -> Iterator[Document]:
        """Those held out; ask for them last, because the others are passed over."""
        yield from self._waiting
        yield from (document for document, held_out in self._documents if held_out)


@dataclass
class _Supply:
    """Whole ``documents`` of one file and split, cut as they are asked for. ``left`` is what is
    left of the one that was cut last; ``spent`` says that there is no more."""

    documents: Iterator[TokenSequence]
    left: TokenSequence | None = None
    spent: bool = False

    def take(self, room: int, length: int) -> Iterator[TokenSequence]:
        """Pieces of ``length`` tokens, the last of a document or of all maybe shorter, of at most
        ``room`` tokens together; without those in which nothing counts."""
        while room >= MIN_TOKENS:
            whole = self.left if self.left is not None else next(self.documents, None)
            if whole is None:
                self.spent = True
                return
            piece, self.left = _cut(whole, min(room, length))
            if len(piece.tokens) >= MIN_TOKENS and piece.positions:
                yield piece
                room -= len(piece.tokens)


def _cut(whole: TokenSequence, length: int) -> tuple[TokenSequence, TokenSequence | None]:
    """The first ``length`` tokens, and the rest if there is one."""

    def part(place: slice) -> TokenSequence:
        counted = None if whole.counted is None else whole.counted[place]
        return dataclasses.replace(whole, tokens=whole.tokens[place], counted=counted)

    more = len(whole.tokens) > length
    return part(slice(length)), part(slice(length, None)) if more else None


def _shared(supplies: list[_Supply], goal: int, length: int) -> list[TokenSequence]:
    """About ``goal`` tokens, as many from each supply: what one lacks the others give."""
    found: list[TokenSequence] = []
    room = max(goal, MIN_TOKENS * len(supplies))
    lacking = True
    while lacking and supplies:
        share = max(room // len(supplies), MIN_TOKENS)
        for supply in supplies:
            pieces = list(supply.take(min(share, room), length))
            found += pieces
            room -= sum(len(piece.tokens) for piece in pieces)
        others = [supply for supply in supplies if not supply.spent]
        lacking, supplies = len(others) < len(supplies), others
    return found


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
