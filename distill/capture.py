"""Run the teacher once over the sequences and keep what it says.

A teacher that does not fit in memory is run a layer at a time. Several workers may each take a
share of the shards; whoever finds all of them there writes the index.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from edgekit.architecture import Architecture
from edgekit.checkpoint import copy_tokenizer, read_config
from edgekit.describe import describe
from edgekit.digests import json_digest
from edgekit.distill.cache import TOKENIZER, CacheIndex, CacheShard
from edgekit.distill.cache_write import (
    PlannedShard,
    find_shard,
    finish_cache,
    id_bytes,
    plan_shards,
    write_shard,
)
from edgekit.distill.collect import PassOptions, Share, checkpoint_digest
from edgekit.distill.final_states import final_states
from edgekit.distill.head import Head, require_finite
from edgekit.distill.open_model import OpenModel, open_model
from edgekit.distill.same_tokenizer import real_tokens, tokenizer_digest
from edgekit.distill.targets import (
    Room,
    TeacherTargets,
    joined,
    sampled_targets,
    top_k_targets,
    uniform_numbers,
)
from edgekit.errors import BadInputError
from edgekit.progress import Progress
from edgekit.recipe import DistillSection
from edgekit.sequences import FILE_NAME, TokenSequence, read_sequences, sequences_digest

FIXED_BYTES = 4  # of a drawn position: how many tokens of both kinds, and the entropy
SHARE_BYTES, HALF_BYTES = 1, 2


@dataclass(frozen=True)
class CaptureOptions:
    """What is kept of training text, and how the teacher is run.

    "sampled" targets take at most ``bytes_per_token`` on average; "top_k" are ``top_k`` tokens, as
    are held-out text's always. ``probabilities`` keeps those of drawn tokens, which divergences
    other than forward KL need.
    """

    targets: Literal["sampled", "top_k"] = "sampled"
    bytes_per_token: int = 50
    probabilities: bool = False
    top_k: int = 64
    temperature: float = 1.0
    seed: int = 0
    running: PassOptions = field(default_factory=PassOptions)

    @classmethod
    def of(cls, section: DistillSection, force: bool = False) -> CaptureOptions:
        """What a recipe's training needs."""
        return cls(
            targets=section.targets,
            bytes_per_token=section.bytes_per_token,
            probabilities=section.loss != "forward_kl",
            top_k=section.top_k,
            temperature=section.temperature,
            seed=section.seed,
            running=PassOptions(force=force),
        )


@dataclass(frozen=True)
class CaptureReport:
    """What a cache holds: ``size_bytes`` of all shards, ``bytes_per_token`` of training text."""

    positions: int
    targets: str
    size_bytes: int
    bytes_per_token: float


def capture(
    teacher: Path,
    sequences: Path,
    options: CaptureOptions,
    out: Path,
    progress: Progress,
    scratch: Path | None = None,
) -> CaptureReport:
    """Write the logit cache of ``sequences/sequences.safetensors`` into ``out``.

    Shards that an interrupted run or workers finished are taken from ``scratch``.

    Raises:
        BadInputError: the teacher or the sequences cannot be read, or do not fit each other.
        OutOfResourcesError: memory or disk are too small.
    """
    work = scratch or out
    capture_shards(teacher, sequences, options, work, progress)
    return finish_capture(teacher, sequences, options, out, [work], progress)


def capture_shards(
    teacher: Path,
    sequences: Path,
    options: CaptureOptions,
    work: Path,
    progress: Progress,
    share: Share | None = None,
    elsewhere: Sequence[Path] = (),
) -> int:
    """Write a worker's shards into ``work``; those that are there, or in the directories
    ``elsewhere``, are not captured again.

    Returns how many of all shards are still in none of them.

    Raises:
        BadInputError: the teacher or the text cannot be read or do not fit each other, or there
            are fewer shards than workers.
        OutOfResourcesError: memory or disk are too small.
    """
    share, places = share or Share(), [work, *elsewhere]

    def missing(shard: PlannedShard) -> bool:
        return find_shard(shard.file, places) is None

    text, running = read_sequences(sequences / FILE_NAME), options.running
    dtype = getattr(torch, running.dtype)
    with open_model(teacher, dtype=dtype, device=running.device, load=False) as opened:
        require_text_fits(teacher, opened.architecture, text)
        settings = capture_settings(teacher, opened.architecture.vocab_size, options)
        planned = plan_shards(text, settings)
        mine = planned[share.rank :: share.workers]
        if not mine:
            raise BadInputError(
                f"the text has {len(planned)} shards for {share.workers} processes; start at most "
                f"{len(planned)}, or raise [data] tokens"
            )
        left = [shard.file for shard in mine if missing(shard)]
        scratch = _own_states(work, share, planned)
        if left:
            _run(mine, left, opened, settings, running, scratch, progress)
        shutil.rmtree(scratch, ignore_errors=True)
    return sum(map(missing, planned))


def finish_capture(
    teacher: Path,
    sequences: Path,
    options: CaptureOptions,
    out: Path,
    sources: Sequence[Path],
    progress: Progress,
) -> CaptureReport:
    """Put the shards in the directories ``sources`` together as a cache in ``out``.

    Raises:
        BadInputError: shards are missing.
    """
    text = read_sequences(sequences / FILE_NAME)
    vocab_size = describe(read_config(teacher), str(teacher / "config.json")).vocab_size
    settings = capture_settings(teacher, vocab_size, options)
    return put_together(teacher, settings, text, out, sources, progress)


def put_together(
    teacher: Path,
    settings: CacheIndex,
    text: Sequence[TokenSequence],
    out: Path,
    sources: Sequence[Path],
    progress: Progress,
) -> CaptureReport:
    """The shards in ``sources`` as a cache in ``out``, with the tokenizer of ``teacher``.

    Raises:
        BadInputError: shards are missing.
    """
    index = finish_cache(out, settings, text, sources, progress)
    (out / TOKENIZER).mkdir(exist_ok=True)
    copy_tokenizer(teacher, out / TOKENIZER)
    return report_cache(out, index)


def report_cache(directory: Path, index: CacheIndex) -> CaptureReport:
    """What a cache holds."""

    def size(shards: Sequence[CacheShard]) -> int:
        return sum((directory / shard.file).stat().st_size for shard in shards)

    training = sum(shard.positions for shard in index.training)
    return CaptureReport(
        positions=training + sum(shard.positions for shard in index.held_out),
        targets=index.targets,
        size_bytes=size(index.training) + size(index.held_out),
        bytes_per_token=size(index.training) / max(training, 1),
    )


def position_room(settings: CacheIndex) -> Room:
    """What ``bytes_per_token`` leaves to the tokens of a position.

    Raises:
        BadInputError: not one.
    """
    drawn = id_bytes(settings.vocab_size) + (HALF_BYTES if settings.probabilities else 0)
    room = Room(settings.bytes_per_token - FIXED_BYTES, drawn + SHARE_BYTES, drawn)
    if room.average < room.kept:
        raise BadInputError(
            f"bytes_per_token {settings.bytes_per_token}: a token takes up to {room.kept} bytes "
            f"and {FIXED_BYTES} more a position; allow at least {FIXED_BYTES + room.kept}"
        )
    return room


def capture_settings(teacher: Path, vocab_size: int, options: CaptureOptions) -> CacheIndex:
    """The index of a cache of ``teacher`` without its sequences and shards."""
    drawn = options.targets == "sampled"
    vocab_size = real_tokens(teacher, vocab_size)
    settings = CacheIndex(
        teacher=checkpoint_digest(teacher),
        tokenizer=tokenizer_digest(teacher),
        vocab_size=vocab_size,
        temperature=options.temperature,
        targets=options.targets,
        bytes_per_token=options.bytes_per_token if drawn else 0,
        probabilities=drawn and options.probabilities,
        top_k=min(options.top_k, vocab_size),
        seed=options.seed,
        sequences="",
        training=(),
        held_out=(),
    )
    if drawn:
        position_room(settings)
    return settings


def _own_states(work: Path, share: Share, planned: Sequence[PlannedShard]) -> Path:
    """Where a worker's states between two layers are. Those of other text, or of another number of
    workers, are of use to none and go."""
    suffix = f"-of-{share.workers}-{json_digest([shard.file for shard in planned])[:16]}"
    for left in work.glob("states-*"):
        if not left.name.endswith(suffix):
            shutil.rmtree(left, ignore_errors=True)
    return work / f"states-{share.rank}{suffix}"


def _run(
    shards: Sequence[PlannedShard],
    wanted: Sequence[str],
    opened: OpenModel,
    settings: CacheIndex,
    running: PassOptions,
    scratch: Path,
    progress: Progress,
) -> None:
    """Write the ``wanted`` ones of a worker's shards beside ``scratch``."""
    head = Head(opened, settings.vocab_size)
    groups = {shard.file: shard.sequences for shard in shards}
    tokens = sum(len(s.tokens) for name in wanted for s in groups[name])
    with progress.task("capture the teacher's logits", tokens) as task:
        for name, states in final_states(opened, groups, wanted, running, scratch, task):
            targets = [
                _targets(head, rows, sequence, settings, str(opened.path))
                for rows, sequence in zip(states, groups[name], strict=True)
            ]
            write_shard(scratch.with_name(name), targets, settings)


@torch.inference_mode()
def _targets(
    head: Head, hidden: Tensor, sequence: TokenSequence, settings: CacheIndex, source: str
) -> TeacherTargets:
    """What is kept of one sequence; its ``hidden`` [T, H] are what the head of ``source`` reads."""
    if sequence.counted is not None:
        hidden = hidden[torch.from_numpy(sequence.counted)]
    parts: list[TeacherTargets] = []
    uniform = uniform_numbers(settings.seed, sequences_digest([sequence]), len(hidden), 2)
    for rows in head.chunks(len(hidden)):
        logits = head.logits(hidden[rows])
        require_finite(logits, source)
        if settings.targets == "top_k" or sequence.held_out:
            parts.append(top_k_targets(logits, settings.top_k))
        else:
            room, numbers = position_room(settings), uniform[rows].to(logits.device)
            parts.append(sampled_targets(logits, room, numbers, settings.temperature))
    return joined(parts).to(torch.device("cpu"))


def require_text_fits(
    teacher: Path, architecture: Architecture, text: Sequence[TokenSequence]
) -> None:
    """Refuse text that the teacher cannot read, or that has nothing to keep.

    Raises:
        BadInputError: a sequence is too long, has a token too high or no position that counts.
    """
    if not text or not all(s.positions for s in text):
        raise BadInputError("a sequence has no position that counts; leave it out of the text")
    longest, context = max(len(s.tokens) for s in text), architecture.context_length
    if longest > context:
        raise BadInputError(
            f"{teacher}: a sequence of {longest} tokens is longer than the context of "
            f"{context}; lower [data] sequence_length"
        )
    highest = max(int(s.tokens.max()) for s in text)
    if highest >= architecture.vocab_size:
        raise BadInputError(
            f"{teacher}: the text has token {highest} but the model has "
            f"{architecture.vocab_size}; make the text with this teacher's tokenizer"
        )
