"""Short trainings of tiny students on a tiny teacher's answers."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from edgekit.checkpoint import Checkpoint
from edgekit.distill.capture import CaptureOptions, capture
from edgekit.distill.train import train
from edgekit.distill.trainer import Trainer
from edgekit.progress import Silent
from edgekit.recipe import DistillSection
from edgekit.sequences import FILE_NAME, TokenSequence, write_sequences

OPTIONS = {
    "steps": 6,
    "batch_tokens": 120,
    "learning_rate": 3e-3,
    "trainable": ("all",),
    "precision": "float32",
}


def text(count=24, seed=1, longest=40):
    rng = np.random.default_rng(seed)
    return [
        TokenSequence(
            rng.integers(3, 60, rng.integers(12, longest)).astype(np.int32), "ab"[i % 2], i % 5 == 4
        )
        for i in range(count)
    ]


def captured(teacher, directory: Path, sequences=None, top_k=512):
    """A cache of what ``teacher`` says about :func:`text`, by default everything."""
    out = directory / "cache"
    out.mkdir()
    write_sequences(directory / FILE_NAME, text() if sequences is None else sequences)
    capture(teacher, directory, CaptureOptions("top_k", top_k=top_k), out, Silent())
    return out


def healed(student, cache, out, scratch=None, **options):
    """Report and weights of a training."""
    out.mkdir()
    section = DistillSection(**{**OPTIONS, **options})
    report = train(student, cache, section, out, Silent(), scratch)
    with Checkpoint(out) as checkpoint:
        return report, {s.name: checkpoint.float32(s.name).copy() for s in checkpoint.specs}


@contextmanager
def interrupted_in(number: int) -> Iterator[None]:
    """A training inside is interrupted when it comes to step ``number``."""
    original = Trainer._step

    def step(self, step, parts):
        if step == number:
            raise KeyboardInterrupt
        return original(self, step, parts)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Trainer, "_step", step)
        yield
