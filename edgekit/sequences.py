"""Token sequences with their domain: what calibration, capture and evaluation read.

A file ``sequences.safetensors`` holds ``tokens`` int32 [total], ``offsets`` int64 [n + 1],
``domain`` uint8 [n] (index into the metadata's ``domains``) and ``held_out`` uint8 [n]. Where some
positions do not count there is ``counted`` uint8 [total] as well.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgekit.errors import BadInputError
from edgekit.tensorfile import TensorFile, TensorFileWriter, TensorInfo

FILE_NAME = "sequences.safetensors"


@dataclass(frozen=True)
class TokenSequence:
    """``tokens`` int32 [length]; ``domain`` a label such as "chat"; ``held_out`` for evaluation.

    ``counted`` bool [length] says at which positions what comes next is learned and measured, such
    as those before an assistant's words; None for all.
    """

    tokens: NDArray[np.int32]
    domain: str
    held_out: bool
    counted: NDArray[np.bool_] | None = None

    @property
    def positions(self) -> int:
        """How many positions count."""
        return len(self.tokens) if self.counted is None else int(self.counted.sum())


def write_sequences(path: Path, sequences: Sequence[TokenSequence]) -> None:
    """Write ``sequences`` to one file."""
    domains = sorted({s.domain for s in sequences})
    lengths = [len(s.tokens) for s in sequences]
    arrays = {
        "tokens": np.concatenate([np.asarray(s.tokens, np.int32) for s in sequences]),
        "offsets": np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        "domain": np.array([domains.index(s.domain) for s in sequences], np.uint8),
        "held_out": np.array([s.held_out for s in sequences], np.uint8),
    }
    if any(s.counted is not None for s in sequences):
        arrays["counted"] = np.concatenate([_counted(s) for s in sequences]).astype(np.uint8)
    kinds = {"tokens": "I32", "offsets": "I64", "domain": "U8", "held_out": "U8", "counted": "U8"}
    layout = [TensorInfo(name, kinds[name], array.shape) for name, array in arrays.items()]
    with TensorFileWriter(path, layout, {"domains": json.dumps(domains)}) as writer:
        for name, array in arrays.items():
            writer.write(name, array)


def read_sequences(path: Path) -> list[TokenSequence]:
    """Read a file written by :func:`write_sequences`.

    Raises:
        BadInputError: the file is damaged or of another kind.
    """
    with TensorFile(path) as file:
        try:
            domains = json.loads(file.metadata["domains"])
            offsets = file.array("offsets")
            tokens = file.array("tokens").copy()
            labels = [domains[i] for i in file.array("domain")]
            held_out = [bool(h) for h in file.array("held_out")]
            masked = "counted" in file.tensors
            counted = file.array("counted").astype(np.bool_) if masked else None
            bounds = list(zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True))
        except (KeyError, IndexError, ValueError) as error:
            raise BadInputError(f"{path}: not a file of token sequences; make it again") from error
    return [
        TokenSequence(tokens[begin:end], label, held, _mask(counted, begin, end))
        for (begin, end), label, held in zip(bounds, labels, held_out, strict=True)
    ]


def equal_length_runs(sequences: Sequence[TokenSequence], max_tokens: int) -> list[tuple[int, int]]:
    """Ranges [begin, end) of neighbours of one length, of at most ``max_tokens`` together.

    They stack without padding; a batch keeps the experts of an MoE busier than one sequence.
    """
    runs: list[tuple[int, int]] = []
    for number, sequence in enumerate(sequences):
        length = len(sequence.tokens)
        if runs:
            begin, end = runs[-1]
            same = len(sequences[begin].tokens) == length
            if same and (end - begin + 1) * length <= max_tokens:
                runs[-1] = (begin, number + 1)
                continue
        runs.append((number, number + 1))
    return runs


def evenly_spaced(sequences: Sequence[TokenSequence], share: float) -> list[TokenSequence]:
    """About ``share`` of the sequences of every domain, at least one, from all over it.

    They stay in their order. (Every n-th sequence of a text that alternates between n domains would
    be of one domain only.)
    """
    by_domain: dict[str, list[int]] = {}
    for number, sequence in enumerate(sequences):
        by_domain.setdefault(sequence.domain, []).append(number)
    chosen: list[int] = []
    for numbers in by_domain.values():
        count = min(len(numbers), max(1, math.ceil(share * len(numbers))))
        chosen += [numbers[i * len(numbers) // count] for i in range(count)]
    return [sequences[number] for number in sorted(chosen)]


def stacked(sequences: Sequence[TokenSequence]) -> NDArray[np.int64]:
    """Token ids [B, T] of sequences of one length."""
    return np.stack([s.tokens for s in sequences]).astype(np.int64)


def sequences_digest(sequences: Sequence[TokenSequence]) -> str:
    """sha256 over tokens, domains and splits, in order."""
    digest = hashlib.sha256()
    for sequence in sequences:
        digest.update(f"{sequence.domain}\0{sequence.held_out}\0{len(sequence.tokens)}\0".encode())
        digest.update(np.ascontiguousarray(sequence.tokens, np.int32).tobytes())
        if sequence.counted is not None and not sequence.counted.all():
            digest.update(np.packbits(sequence.counted).tobytes())
    return digest.hexdigest()


def _mask(counted: NDArray[np.bool_] | None, begin: int, end: int) -> NDArray[np.bool_] | None:
    """Of one sequence; None where every position counts."""
    return None if counted is None or counted[begin:end].all() else counted[begin:end]


def _counted(sequence: TokenSequence) -> NDArray[np.bool_]:
    return np.ones(len(sequence.tokens), np.bool_) if sequence.counted is None else sequence.counted
