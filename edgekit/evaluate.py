"""Measure a compiled variant against its teacher, as it will run.

For every held-out sequence the teacher's logits and those of each target's engine are compared
position by position: KL(teacher || student) in nats per token over the whole vocabulary, top-1
agreement, and the perplexity of both. Where their heads have different numbers of rows, those that
only pad them are cut off. Speed and memory are measured in a process of its own. Every
size of a nested variant is measured so, beside the others: the teacher runs once.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from edgekit.atomic import write_json
from edgekit.bootstrap import exponential, mean_interval
from edgekit.distill.same_tokenizer import real_tokens
from edgekit.errors import BadInputError, MissingRuntimeError
from edgekit.manifest import Quality, TargetResult
from edgekit.progress import Progress
from edgekit.runtimes.engine import Engine, load_engine
from edgekit.runtimes.speed import measure_speed
from edgekit.sequences import TokenSequence
from edgekit.variant_files import files_of, folder_size, size_directories

ROWS_AT_ONCE = 64  # positions; bounds the memory of float64 distributions over the vocabulary
Float = NDArray[np.float32]
LogitsFunction = Callable[[NDArray[np.int32]], Float]


class NestedResults(BaseModel):
    """What was measured of a nested variant's first ``num_experts`` experts, per target."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    num_experts: int
    results: list[TargetResult]


class EvaluationReport(BaseModel):
    """``results`` per target; ``skipped`` says why a target could not be measured here.

    ``nested`` has the same of the smaller sizes, the largest first; all else is about all experts.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    size_bytes: int
    teacher_bytes: int
    positions: int
    domains: dict[str, int]
    results: list[TargetResult]
    skipped: dict[str, str]
    nested: list[NestedResults] = []

    def worst_quality(self) -> Quality:
        """The overall quality of the target with the largest KL."""
        return max((r.quality["all"] for r in self.results), key=lambda q: q.kl.value)


def _positions(sequence: TokenSequence) -> NDArray[np.bool_]:
    """Positions that count and whose next token is known, bool [T - 1]."""
    if sequence.counted is None:
        return np.ones(len(sequence.tokens) - 1, np.bool_)
    return sequence.counted[:-1]


class _Scores:
    """Per-position values of one sequence, float64 [N] each, at the N positions that count."""

    def __init__(self, teacher: Float, student: Float, sequence: TokenSequence) -> None:
        tokens, count = sequence.tokens, len(sequence.tokens) - 1
        self.kl, self.agreement, self.student_nll, self.teacher_nll = np.empty((4, count))
        for begin in range(0, count, ROWS_AT_ONCE):
            rows = slice(begin, min(begin + ROWS_AT_ONCE, count))
            p, q = log_softmax(teacher[rows]), log_softmax(student[rows])
            each, following = np.arange(len(p)), tokens[1:][rows]
            self.kl[rows] = np.sum(np.exp(p) * (p - q), axis=-1)
            self.agreement[rows] = p.argmax(-1) == q.argmax(-1)
            self.student_nll[rows] = -q[each, following]
            self.teacher_nll[rows] = -p[each, following]
        counted = _positions(sequence)
        self.kl, self.agreement = self.kl[counted], self.agreement[counted]
        self.student_nll, self.teacher_nll = self.student_nll[counted], self.teacher_nll[counted]


def evaluate(
    variant: Path,
    teacher: LogitsFunction,
    teacher_bytes: int,
    sequences: Sequence[TokenSequence],
    targets: Sequence[str],
    out: Path,
    progress: Progress,
    teacher_tokens: int | None = None,
) -> EvaluationReport:
    """Measure ``variant`` on the held-out ``sequences`` and write ``out/evaluation.json``.

    ``teacher`` maps tokens [T] to logits [T, vocab_size], of which the first ``teacher_tokens`` are
    tokens; None: as many as the variant's.

    Raises:
        BadInputError: there are no held-out sequences, or the teacher has another vocabulary.
        MissingRuntimeError: none of the targets can be run on this machine.
    """
    held_out = [s for s in sequences if s.held_out and _positions(s).any()]
    if not held_out:
        raise BadInputError("no held-out sequences to evaluate on; raise [data] held_out_tokens")
    sizes = size_directories(variant)
    scores, skipped = _score(sizes, teacher, held_out, targets, progress, teacher_tokens)
    results: dict[Path, list[TargetResult]] = {directory: [] for directory in sizes}
    for (directory, target), values in scores.items():
        domains = ["all", *sorted({s.domain for s in held_out})]
        quality = {d: _quality(values, held_out, d) for d in domains}
        with progress.task(f"measure the speed of {target}", 1) as task:
            speed = measure_speed(directory, target)
            task.advance()
        results[directory].append(TargetResult(target=target, quality=quality, speed=speed))
    counts: dict[str, int] = {}
    for sequence in held_out:
        counts[sequence.domain] = counts.get(sequence.domain, 0) + int(_positions(sequence).sum())
    report = EvaluationReport(
        size_bytes=sum(f.stat().st_size for f in variant.rglob("*") if f.is_file()),
        teacher_bytes=teacher_bytes,
        positions=sum(counts.values()),
        domains=counts,
        results=results[variant],
        skipped=skipped,
        nested=[
            NestedResults(num_experts=folder_size(directory), results=results[directory])
            for directory in sizes[1:]
        ],
    )
    write_json(out / "evaluation.json", report.model_dump(mode="json"))
    return report


def _score(
    sizes: Sequence[Path],
    teacher: LogitsFunction,
    sequences: Sequence[TokenSequence],
    targets: Sequence[str],
    progress: Progress,
    teacher_tokens: int | None,
) -> tuple[dict[tuple[Path, str], list[_Scores]], dict[str, str]]:
    """Scores of every size on every target that this machine can run; the teacher runs once per
    sequence."""
    skipped: dict[str, str] = {}
    tokens = real_tokens(files_of(sizes[0]).shared, sys.maxsize)
    expected = tokens if teacher_tokens is None else teacher_tokens
    with ExitStack() as stack:
        engines: dict[tuple[Path, str], Engine] = {}
        for directory, target in itertools.product(sizes, targets):
            if target in skipped:
                continue
            try:
                engine = stack.enter_context(closing(load_engine(directory, target)))
                engine.logits(sequences[0].tokens[:1].tolist())  # compiles; a driver may refuse now
                engines[directory, target] = engine
            except MissingRuntimeError as error:
                skipped[target] = str(error)
        if not engines:
            raise MissingRuntimeError(
                f"none of the targets can be run here: {'; '.join(skipped.values())}"
            )
        scores: dict[tuple[Path, str], list[_Scores]] = {key: [] for key in engines}
        with progress.task("compare with the teacher", len(sequences)) as task:
            for sequence in sequences:
                reference = teacher(sequence.tokens)
                for key, engine in engines.items():
                    logits = engine.logits(sequence.tokens.tolist())
                    ours, theirs = logits, reference
                    if ours.shape != theirs.shape:
                        ours, theirs = ours[:, :tokens], theirs[:, :expected]
                    _require_same_vocabulary(sizes[0], ours, theirs, sequence)
                    scores[key].append(_Scores(theirs, ours, sequence))
                task.advance()
    return scores, skipped


def _require_same_vocabulary(
    variant: Path, ours: Float, theirs: Float, sequence: TokenSequence
) -> None:
    if ours.shape != theirs.shape:
        raise BadInputError(
            f"{variant}: its vocabulary has {ours.shape[1]} tokens, the teacher's "
            f"{theirs.shape[1]}; give the teacher it was made from"
        )
    highest = int(sequence.tokens.max())
    if highest >= ours.shape[1]:
        raise BadInputError(
            f"{variant}: the text has token {highest}, but the vocabulary {ours.shape[1]}; "
            "evaluate on files of text"
        )


def log_softmax(logits: Float) -> NDArray[np.float64]:
    """Log-probabilities over the last axis, in double precision."""
    shifted = logits.astype(np.float64) - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def _quality(scores: Sequence[_Scores], sequences: Sequence[TokenSequence], domain: str) -> Quality:
    chosen = [
        score
        for score, sequence in zip(scores, sequences, strict=True)
        if domain in ("all", sequence.domain)
    ]
    return Quality(
        kl=mean_interval([s.kl for s in chosen]),
        top1_agreement=mean_interval([s.agreement for s in chosen]),
        perplexity=exponential(mean_interval([s.student_nll for s in chosen])),
        teacher_perplexity=exponential(mean_interval([s.teacher_nll for s in chosen])),
    )
