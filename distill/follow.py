"""Keep a student with a teacher that is being trained on.

The prompts of an earlier cache are shown to the new teacher; how far it moved, against how far the
student once had to come, says how much training the student needs; then the previous student is
trained on. What is made stands in one directory: ``cache``, from which the next time goes on,
``student``, and ``follow.json``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from edgekit.atomic import link_or_copy, write_json
from edgekit.checkpoint import read_config
from edgekit.describe import describe
from edgekit.distill.cache import CacheIndex, LogitCache
from edgekit.distill.capture import CaptureOptions, capture, capture_settings
from edgekit.distill.collect import PassOptions
from edgekit.distill.divergence import Divergence, measure
from edgekit.distill.open_model import open_model
from edgekit.distill.teacher_move import Moved, compare, require_comparable, require_held_out
from edgekit.distill.train import require_fit, train
from edgekit.progress import Progress
from edgekit.recipe import DistillSection

CACHE, STUDENT, REPORT = "cache", "student", "follow.json"


@dataclass(frozen=True)
class Previous:
    """How the previous student came to be: ``steps`` of training, from ``student_kl`` nats per
    token, its held-out KL to the old teacher before them. None: unknown; then what it is from the
    old teacher now is taken, which is less, so that more steps follow."""

    steps: int
    student_kl: float | None = None


@dataclass(frozen=True)
class FollowOptions:
    """``params`` are those of the training; its ``steps`` and ``temperature`` are replaced."""

    previous: Previous
    params: DistillSection
    running: PassOptions = field(default_factory=PassOptions)


class FollowReport(BaseModel):
    """What was gained against the previous student: its KL to the new teacher ``before`` and
    ``after``, in nats per token on held-out text. ``student_kl`` is what the budget was taken
    against."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    moved: Moved
    student_kl: float
    steps: int
    before: Divergence
    after: Divergence


def budget(moved_kl: float, student_kl: float, previous_steps: int) -> int:
    """Steps in proportion to how far the teacher moved, in nats per token, against the
    ``student_kl`` that ``previous_steps`` began with: between none and as many as then.

    A rule of thumb: a gap of that size took so many steps, a smaller one takes its share of them.
    """
    if moved_kl <= 0:
        return 0
    return round(previous_steps * min(1.0, moved_kl / max(student_kl, 1e-9)))


def follow(
    teacher: Path,
    student: Path,
    cache: Path,
    options: FollowOptions,
    out: Path,
    progress: Progress,
    scratch: Path,
) -> FollowReport:
    """Write the new cache and student into ``out``; ``cache`` is of the old teacher, whom
    ``student`` resembles. ``scratch`` keeps what an interrupted run did.

    Raises:
        BadInputError: the teachers' tokenizers differ, the cache has no held-out text, or the
            student does not fit it; all of that is known before the teacher runs.
        OutOfResourcesError: memory or disk are too small.
    """
    old = LogitCache(cache)
    _require_fit(student, old, options.params)
    capturing = _as_before(old.index, options)
    vocab_size = describe(read_config(teacher), str(teacher / "config.json")).vocab_size
    settings = capture_settings(teacher, vocab_size, capturing)
    require_comparable(str(cache), old.index, str(teacher), settings)
    shards = scratch / "shards"
    shards.mkdir(parents=True, exist_ok=True)
    (out / CACHE).mkdir()
    capture(teacher, cache, capturing, out / CACHE, progress, shards)
    new = LogitCache(out / CACHE)
    moved = compare(old, new)
    student_kl = options.previous.student_kl
    if student_kl is None:
        student_kl = _divergence(student, old, options, progress).all.value
    steps = budget(moved.kl.all.value, student_kl, options.previous.steps)
    (out / STUDENT).mkdir()
    if steps:
        trained = train(
            student, out / CACHE, _training(options.params, old.index, steps), out / STUDENT,
            progress, scratch / "training", device=options.running.device,
            force=options.running.force,
        ).students[0]  # fmt: skip
        before, after = trained.before, trained.after
    else:
        before = after = _divergence(student, new, options, progress)
        for file in filter(Path.is_file, student.iterdir()):
            link_or_copy(file.resolve(), out / STUDENT / file.name)
    report = FollowReport(
        moved=moved, student_kl=student_kl, steps=steps, before=before, after=after
    )
    write_json(out / REPORT, report.model_dump(mode="json"))
    return report


def _training(params: DistillSection, index: CacheIndex, steps: int) -> DistillSection:
    return params.model_copy(update={"steps": steps, "temperature": index.temperature})


def _require_fit(student: Path, old: LogitCache, params: DistillSection) -> None:
    """Refuse a student that cannot be trained on a cache like ``old``, before one is captured."""
    likewise = _training(params, old.index, 0)
    # the new cache has what another loss needs
    require_fit(student, old, likewise.model_copy(update={"loss": "forward_kl"}))
    require_held_out(old)


def _as_before(index: CacheIndex, options: FollowOptions) -> CaptureOptions:
    """How the old cache was captured, and the probabilities if the loss needs them now."""
    needed = CaptureOptions.of(options.params).probabilities
    return CaptureOptions(
        targets=index.targets,
        bytes_per_token=index.bytes_per_token,
        probabilities=index.probabilities or needed,
        top_k=index.top_k,
        temperature=index.temperature,
        seed=index.seed,
        running=options.running,
    )


def _divergence(
    student: Path, cache: LogitCache, options: FollowOptions, progress: Progress
) -> Divergence:
    with open_model(student, device=options.running.device) as opened:
        return measure(opened.model, cache, progress, "the previous student").divergence()
