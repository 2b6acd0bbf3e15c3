"""Reading a logit cache: what the teacher said, kept once and read back in every epoch.

``index.json`` says what the cache is of and names the shards; the sequences lie beside it, so a
cache is all that training needs. docs/cache-format.md describes every byte. A cache on an object
store is given by its address (``s3://...``), which fsspec resolves; its shards are copied into a
temporary directory when they are first read.
"""

from __future__ import annotations

import functools
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import fsspec
import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError

from edgekit.checkpoint import read_json
from edgekit.distill.targets import WHOLE, SampledTargets, TeacherTargets, TopTargets
from edgekit.errors import BadInputError
from edgekit.sequences import FILE_NAME, TokenSequence, read_sequences, sequences_digest
from edgekit.tensorfile import TensorFile, read_header

INDEX = "index.json"
TOKENIZER = "tokenizer"  # directory with the teacher's
OPEN_SHARDS = 64
QUESTIONS = 16  # to an object store at once


class CacheShard(BaseModel):
    """A file with the targets of ``sequences`` sequences that follow on each other."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    file: str
    sequences: int
    positions: int
    sha256: str


class CacheIndex(BaseModel):
    """``index.json``. ``training`` and ``held_out`` are shards over the sequences of that split, in
    order; those of ``held_out`` have ``top_k`` targets always."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal["edgekit logit cache"] = "edgekit logit cache"
    version: Literal[3] = 3
    teacher: str  # digest of the checkpoint, or the name of a served model
    tokenizer: str  # digest, see edgekit.distill.same_tokenizer
    vocab_size: int
    temperature: float  # of the distribution that was drawn from; top_k targets are of 1
    targets: Literal["sampled", "top_k"]
    bytes_per_token: int  # of drawn targets, on average at most; 0 for top_k
    probabilities: bool  # of drawn tokens are kept
    top_k: int
    seed: int
    sequences: str  # digest
    training: tuple[CacheShard, ...]
    held_out: tuple[CacheShard, ...]


class LogitCache:
    """An opened cache: ``sequences`` and, by number, the teacher's targets for each.

    Args:
        directory: a directory, or the address of one that fsspec can read.
        skip_missing: leave out the sequences whose shard is not there, or not whole; on an object
            store, not there.

    Attributes:
        missing: the shards that were left out.

    Raises:
        BadInputError: it is not a cache, or a shard is missing that may not be left out.
    """

    def __init__(self, directory: Path | str, skip_missing: bool = False) -> None:
        self.directory = str(directory)
        self.index = read_index(self.local(INDEX))
        every = read_sequences(self.local(FILE_NAME))
        if sequences_digest(every) != self.index.sequences:
            raise BadInputError(
                f"{self.directory}/{FILE_NAME}: not the sequences that the cache was captured on; "
                "capture it again"
            )
        self.sequences: list[TokenSequence] = []
        self.missing = missing_shards(directory, self.index)
        if self.missing and not skip_missing:
            raise BadInputError(
                f"{self.directory}/{self.missing[0]} is missing or not whole; copy it again, "
                "capture it with --sequences and --shards, or train without it (--skip-missing)"
            )
        self._place: list[tuple[CacheShard, int, int]] = []  # shard, positions [begin, end)
        for held_out, shards in ((False, self.index.training), (True, self.index.held_out)):
            self._add([s for s in every if s.held_out == held_out], shards)
        self._open = functools.lru_cache(OPEN_SHARDS)(lambda name: TensorFile(self.local(name)))

    @property
    def vocab_size(self) -> int:
        """Tokens that the distributions are over; further rows of a head only pad it."""
        return self.index.vocab_size

    @property
    def shards(self) -> int:
        """How many the whole cache has."""
        return len(self.index.training) + len(self.index.held_out)

    def targets(self, number: int) -> TeacherTargets:
        """Targets of sequence ``number``: a row for each of its :attr:`TokenSequence.positions`;
        that of position t is the distribution of token t + 1."""
        shard, begin, end = self._place[number]
        file = self._open(shard.file)
        if "kept" not in file.tensors:
            return TopTargets(
                torch.from_numpy(token_ids(file.array("ids")[begin:end])),
                torch.from_numpy(_floats(file, "logprobs", begin, end)),
                torch.from_numpy(_floats(file, "tail", begin, end)),
            )
        return _drawn_targets(file, begin, end)

    def local(self, name: str) -> Path:
        """The file ``name`` of the cache on this machine."""
        return cache_file(self.directory, name)

    def _add(self, sequences: list[TokenSequence], shards: tuple[CacheShard, ...]) -> None:
        first, missing = 0, set(self.missing)
        for shard in shards:
            mine = sequences[first : first + shard.sequences]
            first += shard.sequences
            if sum(s.positions for s in mine) != shard.positions:
                raise BadInputError(
                    f"{self.directory}/{INDEX}: {shard.file} has other positions than its "
                    "sequences; capture it again"
                )
            if shard.file in missing:
                continue
            begin = 0
            for sequence in mine:
                self.sequences.append(sequence)
                self._place.append((shard, begin, begin + sequence.positions))
                begin += sequence.positions


def missing_shards(directory: Path | str, index: CacheIndex) -> list[str]:
    """The shards of a cache that are not there; on this machine also those that are not whole, as
    an interrupted copy leaves them."""
    names = [shard.file for shard in (*index.training, *index.held_out)]
    if "://" not in str(directory):
        return [name for name in names if not is_whole(Path(directory) / name)]
    store, root = fsspec.core.url_to_fs(str(directory).rstrip("/"))
    with ThreadPoolExecutor(QUESTIONS) as pool:  # each answer is a round trip
        there = pool.map(lambda name: store.exists(f"{root}/{name}"), names)
        return [name for name, found in zip(names, there, strict=True) if not found]


def is_whole(path: Path) -> bool:
    """Whether a shard is there, and as long as its header says."""
    try:
        read_header(path)
    except BadInputError:
        return False
    return True


def cache_file(directory: Path | str, name: str) -> Path:
    """The file ``name`` of a cache on this machine; that of an address is copied first.

    Raises:
        BadInputError: it cannot be fetched.
    """
    if "://" not in str(directory):
        return Path(directory) / name
    address = f"{str(directory).rstrip('/')}/{name}"
    try:
        return Path(fsspec.open_local(f"simplecache::{address}"))
    except (OSError, ImportError, ValueError) as error:  # gone, without its library, unknown scheme
        raise BadInputError(
            f"{address}: cannot be fetched ({error}); check the address, and that fsspec's library "
            "for it is installed"
        ) from error


def read_index(path: Path) -> CacheIndex:
    """The index of a cache.

    Raises:
        BadInputError: it is damaged, or of another version.
    """
    try:
        return CacheIndex.model_validate(read_json(path))
    except ValidationError as error:
        raise BadInputError(
            f"{path}: not the index of a logit cache of this version; capture it again"
        ) from error


def token_ids(stored: NDArray[np.uint8]) -> NDArray[np.int64]:
    """int64 [...] of little-endian bytes [..., 2 or 3]."""
    if stored.shape[-1] == 2:
        return stored.view("<u2")[..., 0].astype(np.int64)
    ids = stored[..., 0].astype(np.int64)
    for place in range(1, stored.shape[-1]):
        ids |= stored[..., place].astype(np.int64) << (8 * place)
    return ids


def _drawn_targets(file: TensorFile, begin: int, end: int) -> SampledTargets:
    """Those of positions ``begin`` to ``end`` of a shard of draws."""
    kept, drawn = (file.array(name) for name in ("kept", "drawn"))
    first_kept, first = int(kept[:begin].sum()), int(kept[:begin].sum() + drawn[:begin].sum())
    here, there = (values[begin:end, None].astype(np.int64) for values in (kept, drawn))
    place = np.arange((here + there).max(initial=1))
    own, taken = place < here, place < here + there
    last_kept, last = first_kept + int(here.sum()), first + int((here + there).sum())

    def padded(values: NDArray[Any], places: NDArray[np.bool_]) -> NDArray[Any]:
        whole = np.zeros(places.shape, values.dtype)  # ten times as fast as torch's
        whole[places] = values
        return whole

    shares = padded(_floats(file, "shares", first_kept, last_kept), own)
    left = (WHOLE - shares.sum(-1, keepdims=True)) / np.maximum(there, 1)
    shares = np.where(own | ~taken, shares, left.astype(np.float32)) / np.float32(WHOLE)
    logprobs = None
    if "logprobs" in file.tensors:
        logprobs = torch.from_numpy(padded(_floats(file, "logprobs", first, last), taken))
    return SampledTargets(
        torch.from_numpy(padded(token_ids(file.array("ids")[first:last]), taken)),
        torch.from_numpy(shares),
        torch.from_numpy(own),
        torch.from_numpy(_floats(file, "entropy", begin, end)),
        logprobs,
    )


def _floats(file: TensorFile, name: str, begin: int, end: int) -> NDArray[np.float32]:
    return file.array(name)[begin:end].astype(np.float32)
