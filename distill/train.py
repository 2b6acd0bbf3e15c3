"""Heal a student: minimise the KL to the cached teacher, training only a part of the weights.

A nested student (:mod:`edgekit.distill.nested`) is healed as several: every step trains one of its
prefixes, so that all of them recover together.

Interrupted training continues from the last saved state to the same weights, bit for bit on a CPU:
the order of the sequences and of the prefixes depends on the seed and the step alone, and the state
holds the optimizer's moments in full precision.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from edgekit.checkpoint import read_config, read_json, shard_names
from edgekit.describe import describe
from edgekit.digests import json_digest
from edgekit.distill.cache import (
    INDEX,
    TOKENIZER,
    LogitCache,
    cache_file,
    missing_shards,
    read_index,
)
from edgekit.distill.losses import Loss
from edgekit.distill.same_tokenizer import require_tokenizer
from edgekit.distill.stage import open_student
from edgekit.distill.trackers import Trackers, require_trackers
from edgekit.distill.train_report import TrainReport, train_report
from edgekit.distill.trainer import Trainer
from edgekit.errors import BadInputError
from edgekit.progress import Progress
from edgekit.recipe import DistillSection, QuantizeSection
from edgekit.text import TOKENIZER as TOKENIZER_JSON

TRACKED = "trackers"  # directory with what trackers wrote


def train(
    student: Path,
    cache: Path | str,
    params: DistillSection,
    out: Path,
    progress: Progress,
    scratch: Path | None = None,
    quantization: QuantizeSection | None = None,
    *,
    device: str = "auto",
    skip_missing: bool = False,
    force: bool = False,
    notify: Callable[[str], None] = lambda _: None,
) -> TrainReport:
    """Train ``student`` on ``cache`` and write the healed checkpoint into ``out``.

    Of a student with nested sizes (:mod:`edgekit.nested`) all prefixes are trained in turn.

    With ``params.quantization_aware`` every matrix is, during training, what ``quantization`` will
    make of it, so router and norms learn to make up for the rounding (after Norm Tweaking, arXiv
    2309.02784). The matrices themselves are written as they were, and quantizing them gives the
    same codes again. With ``skip_missing`` it goes on without shards that are not there, with
    ``force`` where memory seems too small; ``notify`` is told what a trial chose, and how many
    shards were left out. ``scratch`` keeps what an interrupted training continues from, and the
    best weights meanwhile.

    Of several processes the main one writes; all return the report.

    Raises:
        BadInputError: the cache does not fit the student or the loss, or the student diverged.
        MissingRuntimeError: a tracker is not installed.
        OutOfResourcesError: memory is too small.
    """
    logits = LogitCache(cache, skip_missing)
    if logits.missing:
        notify(f"{len(logits.missing)} of {logits.shards} shards of the cache are left out")
    require_trackers(params.trackers)
    require_fit(student, logits, params)
    longest = max((len(s.tokens) for s in logits.sequences), default=0)
    with (
        kept_directory(scratch) as saved,
        open_student(
            student, params, quantization, device, progress, longest=longest, force=force
        ) as found,
    ):
        saved = Path(found.processes.of_main(str(saved)))
        names = params.trackers if found.processes.is_main else ()
        trackers = Trackers(names, saved / TRACKED, params.with_effect())
        trainer = Trainer(
            found.opened, params, logits.vocab_size, loss=Loss.of(params), masks=found.masks,
            held_out=logits, saved=saved, processes=found.processes, trackers=trackers,
            largest=found.largest, notify=notify,
        )  # fmt: skip
        trainer.begin(progress)
        trainer.train(logits, 0, params.steps, progress)
        after = trainer.finish(progress)
        trackers.close()
        found.write(out, progress)
        if (saved / TRACKED).is_dir() and found.processes.is_main:
            shutil.copytree(saved / TRACKED, out / TRACKED)
        report = train_report(trainer, found.nested, after)
        return report.model_copy(update={"missing_shards": len(logits.missing)})


@contextmanager
def kept_directory(scratch: Path | None) -> Iterator[Path]:
    """``scratch``, or a directory that goes in the end."""
    if scratch:
        yield scratch
        return
    with tempfile.TemporaryDirectory() as directory:
        yield Path(directory)


def training_digest(
    student: Path,
    cache: Path | str,
    params: DistillSection,
    skip_missing: bool = False,
) -> str:
    """Names what a saved state belongs to: these weights, this cache and these options.

    With ``skip_missing`` also to the shards that are there: a shard that comes back changes the
    order of the text, and a state would go on with sequences that it has seen.
    """
    index = cache_file(cache, INDEX)
    missing = missing_shards(cache, read_index(index)) if skip_missing else []
    files = [(student / name).stat() for name in shard_names(student)]
    return json_digest(
        {
            "student": [str(student.resolve()), *([f.st_size, f.st_mtime_ns] for f in files)],
            "cache": [read_json(index), missing],
            "config": read_config(student),
            "params": params.with_effect(),
        }
    )


def require_fit(student: Path, cache: LogitCache, params: DistillSection) -> None:
    """Refuse a cache that ``student`` cannot be trained on as ``params`` say.

    Raises:
        BadInputError: another tokenizer or vocabulary, or targets that do not carry the loss.
    """
    index = cache.index
    vocab_size = describe(read_config(student), str(student / "config.json")).vocab_size
    if index.tokenizer and (student / TOKENIZER_JSON).is_file():
        require_tokenizer(student, index.tokenizer, Path(cache.directory) / TOKENIZER)
    if vocab_size < cache.vocab_size:
        raise BadInputError(
            f"{student}: the vocabulary has {vocab_size} tokens but the teacher's has "
            f"{cache.vocab_size}; choose a student with the teacher's tokenizer"
        )
    if index.targets == "top_k" and index.top_k < cache.vocab_size and params.temperature != 1.0:
        raise BadInputError(
            f"{cache.directory}: a temperature other than 1 softens what its top_k targets have "
            "lumped together; capture with --targets sampled and that temperature, or train at 1"
        )
    if index.targets == "sampled" and index.temperature != params.temperature:
        raise BadInputError(
            f"{cache.directory}: its targets were drawn at temperature {index.temperature:g}, and "
            f"training asks for {params.temperature:g}; use one temperature for both"
        )
    if params.evaluate_every and not any(s.held_out for s in cache.sequences):
        raise BadInputError(
            f"{cache.directory}: has no held-out text for evaluate_every; set it to 0, or capture "
            "with held_out_tokens"
        )
    if index.targets == "sampled" and params.loss != "forward_kl" and not index.probabilities:
        raise BadInputError(
            f"{cache.directory}: {params.loss} needs the probabilities of drawn tokens; capture "
            f"with --loss {params.loss}, or top_k targets"
        )
