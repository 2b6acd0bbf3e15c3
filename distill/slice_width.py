"""A narrower model: fewer neurons in every feed-forward, then fewer hidden channels.

One pass over calibration text says what neurons and channels are worth
(:mod:`edgekit.distill.slice_importance`). Every dense layer, expert and shared expert keeps its own
best neurons, the same number everywhere; the model keeps one set of hidden channels. What stays
keeps its order, and heads stay (Minitron, arXiv 2407.14679). The checkpoint is written one tensor
at a time, opened again, and must say what the whole model says with the same neurons and channels
silenced (:mod:`edgekit.distill.slice_proof`); then it is measured against it.
"""

from __future__ import annotations

import gc
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from edgekit.architecture import Architecture, ShortConv
from edgekit.atomic import write_json
from edgekit.checkpoint import Checkpoint, copy_tokenizer, write_checkpoint
from edgekit.distill.divergence import (
    Divergence,
    Targets,
    held_out_sequences,
    measure,
    remember,
)
from edgekit.distill.open_model import open_model
from edgekit.distill.proof import proof_logits, require_finite_divergence, require_same
from edgekit.distill.slice_importance import Importance, measure_importance
from edgekit.distill.slice_plan import (
    REPORT,
    WidthOptions,
    WidthPlan,
    plan_width,
    require_sizes,
)
from edgekit.distill.slice_proof import narrow_in_memory
from edgekit.progress import Progress
from edgekit.sequences import TokenSequence


class SlicedPart(BaseModel):
    """What stayed of one part of a layer: "dense", "experts", "shared" or "convolution".

    ``worth`` is the share of all neurons' squared worth that lies in those that stay, ``digest``
    the sha256 of their indices, both over all experts. ``unreached`` counts experts that no token
    of the calibration text was routed to; of these the first neurons stay.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    layer: int
    part: str
    size_before: int
    size_after: int
    worth: float
    unreached: int
    digest: str


class WidthReport(BaseModel):
    """What was kept and what it cost; ``divergence`` is the KL to the teacher on held-out text.

    ``channels`` are the hidden channels that stay and ``channel_worth`` their share of all worth.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    feed_forward: float
    hidden: float
    multiple_of: int
    calibration_tokens: int
    parameters_before: int
    parameters_after: int
    hidden_before: int
    hidden_after: int
    channels: list[int]
    channel_worth: float
    parts: list[SlicedPart]
    divergence: Divergence


def slice_width(
    model: Path,
    sequences: Sequence[TokenSequence],
    options: WidthOptions,
    out: Path,
    progress: Progress,
    teacher: Path | None = None,
) -> WidthReport:
    """Write a narrower ``model`` into the existing, empty directory ``out``.

    Importance is measured on the sequences that are not held out, the loss on those that are: to
    ``teacher``, of which ``model`` was made, or to ``model``.

    Raises:
        BadInputError: a share is not within 0 and 1, the family's heads follow its hidden size, a
            size has no multiple of ``multiple_of``, there is no text, or the model gives values
            that are not finite.
        EdgekitError: the written model is not what was planned.
    """
    require_sizes(model, options)  # refused before anything is run
    whole = _ask_whole(model, sequences, options, progress, teacher)
    gc.collect()  # cycles keep its weights
    before, plan, worth = whole.architecture, whole.plan, whole.importance.channels
    with Checkpoint(model) as checkpoint:
        write_narrower(checkpoint, plan, out, progress)
    copy_tokenizer(model, out)
    with open_model(out) as opened:
        said = proof_logits(opened, sequences)
        require_same(said, whole.expected, out, model, "what was planned")
        measured = measure(opened.model, whole.targets, progress, "the narrower model")
    divergence = measured.divergence()
    require_finite_divergence(divergence, teacher or model)
    report = WidthReport(
        feed_forward=options.feed_forward,
        hidden=options.hidden,
        multiple_of=options.multiple_of,
        calibration_tokens=whole.importance.tokens,
        parameters_before=before.parameters(),
        parameters_after=plan.architecture.parameters(),
        hidden_before=before.hidden_size,
        hidden_after=plan.architecture.hidden_size,
        channels=plan.channels.tolist(),
        channel_worth=float(worth[plan.channels].sum() / worth.sum()),
        parts=list(_parts(before, plan, whole.importance)),
        divergence=divergence,
    )
    write_json(out / REPORT, report.model_dump(mode="json"))
    return report


@dataclass(frozen=True)
class _Whole:
    """What the whole model says of itself, and what a narrower one has to say (``expected``)."""

    architecture: Architecture
    targets: Targets
    importance: Importance
    plan: WidthPlan
    expected: Tensor


def _ask_whole(
    model: Path,
    sequences: Sequence[TokenSequence],
    options: WidthOptions,
    progress: Progress,
    teacher: Path | None,
) -> _Whole:
    """Run the whole model, before it its teacher; neither is in memory afterwards."""
    held_out = held_out_sequences(sequences)
    targets = _answers(teacher, held_out, progress) if teacher else None
    with open_model(model) as opened:
        text = [s for s in sequences if not s.held_out]
        importance = measure_importance(opened, text, progress)  # names what is not finite
        targets = targets or remember(opened.model, held_out, progress)
        plan = plan_width(opened.checkpoint, importance, options)
        narrow_in_memory(opened, plan, importance)
        expected = proof_logits(opened, sequences)
        return _Whole(opened.architecture, targets, importance, plan, expected)


def _answers(teacher: Path, text: Sequence[TokenSequence], progress: Progress) -> Targets:
    with open_model(teacher) as opened:
        return remember(opened.model, text, progress)


def write_narrower(checkpoint: Checkpoint, plan: WidthPlan, out: Path, progress: Progress) -> None:
    """Write the planned model into ``out``, one tensor at a time."""
    specs = plan.architecture.tensors()
    with progress.task("write the narrower model", len(specs)) as task:
        write_checkpoint(
            out,
            plan.config,
            lambda spec: plan.tensor(spec, checkpoint.float32(spec.name)),
            checkpoint.dtype,
            task.advance,
            plan.stored_as(checkpoint),
        )


def _parts(
    architecture: Architecture, plan: WidthPlan, importance: Importance
) -> Iterator[SlicedPart]:
    for layer in architecture.layers:
        places: dict[str, list[str]] = {}
        if layer.dense:
            places["dense"] = [layer.dense.down]
        if layer.mixture:
            experts = range(layer.mixture.num_experts)
            places["experts"] = [layer.mixture.expert(e, "down") for e in experts]
            if layer.mixture.shared:
                places["shared"] = [layer.mixture.shared.down]
        if isinstance(layer.attention, ShortConv) and layer.attention.output in plan.neurons:
            places["convolution"] = [layer.attention.output]
        for part, modules in places.items():
            yield _sliced_part(layer.index, part, modules, plan, importance)


def _sliced_part(
    layer: int, part: str, modules: Sequence[str], plan: WidthPlan, importance: Importance
) -> SlicedPart:
    digest = hashlib.sha256()
    kept_worth, all_worth = 0.0, 0.0
    for module in modules:
        kept, squares = plan.neurons[module], importance.neurons[module] ** 2
        digest.update(np.ascontiguousarray(kept, "<i8").tobytes())
        kept_worth += float(squares[kept].sum())
        all_worth += float(squares.sum())
    return SlicedPart(
        layer=layer,
        part=part,
        size_before=len(importance.neurons[modules[0]]),
        size_after=len(plan.neurons[modules[0]]),
        worth=kept_worth / all_worth if all_worth else 1.0,
        unreached=sum(not importance.neurons[module].any() for module in modules),
        digest=digest.hexdigest(),
    )
