"""Supervised tuning on the user's own text, with the teacher as an anchor.

Cross-entropy on a little text teaches a student its words, and lets it forget what it learnt from
the teacher. So every step has two batches: one of the user's text, on which the loss is the
cross-entropy of the next tokens, and one of the teacher's cache, on which it is the divergence to
the teacher; the second counts ``anchor`` and the first the rest. Each batch has ``batch_tokens``.

What that is worth is measured, and not believed: by default the student is tuned once more without
the anchor, and the report says what both gained on the user's text and lost against the teacher.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict

from edgekit.distill.batches import Lesson
from edgekit.distill.cache import LogitCache
from edgekit.distill.divergence import Divergence, measure
from edgekit.distill.documents import read_documents
from edgekit.distill.losses import Loss
from edgekit.distill.masked import masked
from edgekit.distill.stage import Student, open_student, remembered
from edgekit.distill.targets import SampledTargets
from edgekit.distill.train import require_fit
from edgekit.distill.train_report import TrainReport, train_report
from edgekit.distill.trainer import Trainer
from edgekit.progress import Progress
from edgekit.recipe import DataSection, DistillSection, QuantizeSection
from edgekit.recipe_stages import SupervisedSection
from edgekit.sequences import TokenSequence
from edgekit.text import ChatTokenizer


@dataclass(frozen=True)
class TextTargets:
    """Text that is its own teacher: at each position one draw, which is the next token. Forward KL
    to it is the cross-entropy."""

    sequences: list[TokenSequence]
    vocab_size: int

    @classmethod
    def of(cls, sequences: Sequence[TokenSequence], vocab_size: int) -> TextTargets:
        """Of sequences in which, beside what does not count, the last position does not."""
        found = []
        for sequence in sequences:
            known = np.arange(len(sequence.tokens)) < len(sequence.tokens) - 1
            if sequence.counted is not None:
                known &= sequence.counted
            if known.any():
                found.append(replace(sequence, counted=known))
        return cls(found, vocab_size)

    def targets(self, number: int) -> SampledTargets:
        """The next tokens at the positions of sequence ``number``."""
        sequence = self.sequences[number]
        assert sequence.counted is not None
        following = sequence.tokens[1:][sequence.counted[:-1]].astype(np.int64)
        ids = torch.from_numpy(following)[:, None]
        return SampledTargets.equal(ids, torch.zeros(len(ids)))


class Tuned(BaseModel):
    """One tuning. ``text_*`` are the cross-entropy in nats per token on held-out text of the files;
    ``training`` has the KL to the teacher on the cache's."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    anchor: float
    text_before: Divergence
    text_after: Divergence
    training: TrainReport


class SupervisedReport(BaseModel):
    """What was written, ``anchored``; the ``control`` without anchor; and what both say."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    anchored: Tuned
    control: Tuned | None
    sentences: list[str]


def supervised(
    student: Path,
    cache: Path,
    params: SupervisedSection,
    base: DistillSection,
    sequence_length: int,
    out: Path,
    progress: Progress,
    scratch: Path | None = None,
    quantization: QuantizeSection | None = None,
    *,
    device: str = "auto",
    force: bool = False,
) -> SupervisedReport:
    """Tune ``student`` on ``params.files`` and write it into ``out``.

    ``cache`` is the anchor; ``base`` says what ``params`` does not, its divergence among it.
    Interrupted, it continues from ``scratch``; with ``force`` it goes on where memory seems too
    small.

    Raises:
        BadInputError: a file or the cache cannot be used, or the student diverged.
        OutOfResourcesError: memory is too small.
    """
    text = read_documents(ChatTokenizer(student), _data(params, sequence_length))
    stage, anchors = stage_section(base, params), LogitCache(cache)
    require_fit(student, anchors, stage)
    longest = max(len(s.tokens) for s in [*text, *anchors.sequences])

    def tune(anchor: float, name: str, target: Path | None) -> Tuned:
        place = scratch / name if scratch else None
        with open_student(
            student, stage, quantization, device, progress, longest=longest, force=force
        ) as found:
            return _tune(found, text, anchors, stage, anchor, target, progress, place)

    anchored = tune(params.anchor, "anchored", out)
    control = tune(0.0, "control", None) if params.control and params.anchor else None
    return SupervisedReport(
        anchored=anchored, control=control, sentences=_sentences(anchored, control)
    )


def stage_section(base: DistillSection, params: SupervisedSection) -> DistillSection:
    """``base`` for the steps of this stage; held-out KL does not choose among them."""
    return base.model_copy(
        update={
            "steps": params.steps,
            "learning_rate": params.learning_rate,
            "cross_entropy": 0.0,
            "evaluate_every": 0,
            "patience": 0,
            "seed": params.seed,
        }
    )


def _data(params: SupervisedSection, sequence_length: int) -> DataSection:
    return DataSection(
        files=params.files,
        tokens=params.tokens,
        held_out_tokens=params.held_out_tokens,
        sequence_length=sequence_length,
        count=params.count,
        seed=params.seed,
    )


def _tune(
    student: Student,
    sequences: Sequence[TokenSequence],
    cache: LogitCache,
    stage: DistillSection,
    anchor: float,
    out: Path | None,
    progress: Progress,
    scratch: Path | None,
) -> Tuned:
    """Tune with one weight of the anchor; without ``out`` nothing is written."""
    text = TextTargets.of(sequences, cache.vocab_size)
    lessons = [Lesson(text, Loss(), 1 - anchor)]
    if anchor:
        lessons.append(Lesson(cache, Loss.of(stage), anchor))
    trainer = Trainer(
        student.opened, stage, cache.vocab_size, masks=student.masks, held_out=cache,
        saved=scratch, processes=student.processes, largest=student.largest,
    )  # fmt: skip

    def cross_entropy() -> Divergence:
        with masked(student.opened, student.masks[0]):
            found = measure(student.opened.model, text, progress, "the student on the files")
        return found.divergence()

    trainer.begin(progress)
    before = remembered(scratch, "text.json", student.processes, cross_entropy)
    assert before is not None
    trainer.train_lessons(lessons, 0, stage.steps, progress)
    after = trainer.finish(progress)
    report = Tuned(
        anchor=anchor,
        text_before=before,
        text_after=cross_entropy(),
        training=train_report(trainer, student.nested, after),
    )
    if out:
        student.write(out, progress)
    return report


def _sentences(anchored: Tuned, control: Tuned | None) -> list[str]:
    """In words what was gained and lost, in nats per token on held-out text, which a cache may
    lack."""
    text, kl = anchored.text_after.all.value, anchored.training.held_out_kl_after
    words = (
        f"Cross-entropy on the files went from {anchored.text_before.all.value:.4f} to {text:.4f}"
    )
    if kl is None:
        words += "; the cache has no held-out text to measure the KL to the teacher on"
    else:
        before = anchored.training.held_out_kl_before
        words += f", KL to the teacher on the cache from {before:.4f} to {kl:.4f}"
    sentences = [words + "."]
    if control:
        loose, loose_kl = control.text_after.all.value, control.training.held_out_kl_after
        cost = _changed("cross-entropy", text - loose)
        if kl is None or loose_kl is None:
            sentences += [f"Without the anchor it is {loose:.4f}.", f"So the anchor {cost}."]
        else:
            sentences += [
                f"Without the anchor they are {loose:.4f} and {loose_kl:.4f}.",
                f"So the anchor {_changed('KL', kl - loose_kl)} and {cost}.",
            ]
    return sentences


def _changed(what: str, by: float) -> str:
    return f"{'raised' if by > 0 else 'lowered'} the {what} by {abs(by):.4f}"
