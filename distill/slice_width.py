"""A narrower model: fewer neurons in every feed-forward, then fewer hidden channels.

One pass over calibration text says what neurons and channels are worth
(:mod:`edgekit.distill.slice_importance`). Every dense layer, expert and shared expert keeps its own
best neurons, the same number everywhere; the model keeps one set of hidden channels. What stays
keeps its order, and heads stay (Minitron, arXiv 2407.14679). The checkpoint is written one tensor
at a time and measured against the model that it came from.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from edgekit.architecture import Architecture, FeedForward, ShortConv, TensorSpec
from edgekit.atomic import write_json
from edgekit.checkpoint import Checkpoint, copy_tokenizer, write_checkpoint
from edgekit.describe import describe
from edgekit.distill.divergence import Divergence, held_out_sequences, measure, remember
from edgekit.distill.open_model import open_model
from edgekit.distill.slice_config import (
    check_with_transformers,
    narrower_feed_forward,
    narrower_hidden,
)
from edgekit.distill.slice_hidden import (
    Cut,
    Indices,
    Scale,
    check_hidden,
    hidden_cuts,
    hidden_scales,
)
from edgekit.distill.slice_importance import (
    Array,
    Importance,
    measure_importance,
    neuron_places,
)
from edgekit.errors import BadInputError
from edgekit.progress import Progress
from edgekit.sequences import TokenSequence


@dataclass(frozen=True)
class WidthOptions:
    """``feed_forward`` and ``hidden`` are the shares that stay, rounded to ``multiple_of``."""

    feed_forward: float = 1.0
    hidden: float = 1.0
    multiple_of: int = 128


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
    """What was kept and what it cost; ``divergence`` is the KL to the whole model on held-out text.

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


@dataclass(frozen=True)
class WidthPlan:
    """A narrower model: its config, what stays of each tensor, and what is scaled, by name."""

    config: Mapping[str, Any]
    architecture: Architecture
    neurons: dict[str, Indices]  # by down projection; a convolution's channels by its output
    channels: Indices
    cuts: dict[str, list[Cut]]
    scales: dict[str, Scale]

    def tensor(self, spec: TensorSpec, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """A tensor of the narrower model from that of the whole one."""
        for axis, kept in self.cuts.get(spec.name, []):
            values = values.take(kept, axis)
        scale = self.scales.get(spec.name)
        return scale.apply(values) if scale else values

    def stored_as(self, checkpoint: Checkpoint) -> dict[str, str]:
        """How its tensors are stored: as those of ``checkpoint``, but scaled vectors in float32."""
        scaled = {
            spec.source.tensor: "F32"
            for spec in self.architecture.tensors()
            if spec.name in self.scales and len(spec.shape) == 1
        }
        return checkpoint.dtypes | scaled


def slice_width(
    model: Path,
    sequences: Sequence[TokenSequence],
    options: WidthOptions,
    out: Path,
    progress: Progress,
) -> WidthReport:
    """Write a narrower ``model`` into the existing, empty directory ``out``.

    Importance is measured on the sequences that are not held out, the loss on those that are.

    Raises:
        BadInputError: a share is not within 0 and 1, the family's heads follow its hidden size, a
            size has no multiple of ``multiple_of``, or there is no text.
    """
    _check(options)
    with Checkpoint(model) as checkpoint:  # refused before anything is run
        plan_sizes(checkpoint, options)
    held_out = held_out_sequences(sequences)
    with open_model(model) as opened:
        targets = remember(opened.model, held_out, progress)
        text = [s for s in sequences if not s.held_out]
        importance = measure_importance(opened, text, progress)
    with Checkpoint(model) as checkpoint:
        before = checkpoint.architecture
        plan = plan_width(checkpoint, importance, options)
        write_narrower(checkpoint, plan, out, progress)
    copy_tokenizer(model, out)
    with open_model(out) as opened:
        measured = measure(opened.model, targets, progress, "the narrower model")
    worth = importance.channels
    report = WidthReport(
        feed_forward=options.feed_forward,
        hidden=options.hidden,
        multiple_of=options.multiple_of,
        calibration_tokens=importance.tokens,
        parameters_before=before.parameters(),
        parameters_after=plan.architecture.parameters(),
        hidden_before=before.hidden_size,
        hidden_after=plan.architecture.hidden_size,
        channels=plan.channels.tolist(),
        channel_worth=float(worth[plan.channels].sum() / worth.sum()),
        parts=list(_parts(before, plan, importance)),
        divergence=measured.divergence(),
    )
    write_json(out / "slicing.json", report.model_dump(mode="json"))
    return report


def plan_sizes(
    checkpoint: Checkpoint, options: WidthOptions
) -> tuple[Architecture, Architecture, Mapping[str, Any]]:
    """The model with fewer neurons, that with fewer channels as well, and its config.

    Raises:
        BadInputError: the family cannot be sliced so.
    """
    source, step = str(checkpoint.path / "config.json"), options.multiple_of
    config = narrower_feed_forward(checkpoint.config, options.feed_forward, step, source)
    narrower = describe(config, source)
    if options.feed_forward < 1.0 and narrower.parameters() == checkpoint.architecture.parameters():
        raise _nothing("feed_forward", options.feed_forward, step, source)
    final = narrower_hidden(config, options.hidden, step, source)
    architecture = describe(final, source)
    if architecture.hidden_size != narrower.hidden_size:
        check_hidden(narrower, architecture, source)
    elif options.hidden < 1.0:
        raise _nothing("hidden", options.hidden, step, source)
    check_with_transformers(final, source)
    return narrower, architecture, final


def _nothing(name: str, share: float, step: int, source: str) -> BadInputError:
    return BadInputError(
        f"{source}: {name} {share} takes nothing away, since sizes are rounded to multiples of "
        f"{step}; choose a smaller share or multiple_of"
    )


def plan_width(checkpoint: Checkpoint, importance: Importance, options: WidthOptions) -> WidthPlan:
    """Choose neurons and channels."""
    narrower, final, config = plan_sizes(checkpoint, options)
    old = checkpoint.architecture
    neurons = {
        module: most_worthy(importance.neurons[module], size)
        for layer in narrower.layers
        for module, size in neuron_places(layer)
    }
    cuts = neuron_cuts(old, neurons)
    channels = most_worthy(importance.channels, final.hidden_size)
    scales: dict[str, Scale] = {}
    if final.hidden_size != old.hidden_size:
        for layer in old.layers:
            if isinstance(layer.attention, ShortConv):
                module = layer.attention.output
                neurons[module] = most_worthy(importance.neurons[module], final.hidden_size)
        for name, further in hidden_cuts(narrower, final, channels, neurons).items():
            cuts[name] = cuts.get(name, []) + further
        scales = hidden_scales(narrower, final, channels, importance.energy)
    return WidthPlan(config, final, neurons, channels, cuts, scales)


def most_worthy(worth: Array, count: int) -> Indices:
    """Indices of the ``count`` largest, ascending; ties go to the first."""
    return np.sort(np.argsort(-worth, kind="stable")[:count]).astype(np.int64)


def neuron_cuts(architecture: Architecture, neurons: Mapping[str, Indices]) -> dict[str, list[Cut]]:
    """What stays of gate, up and down of every feed-forward and expert, by tensor name."""
    cuts: dict[str, list[Cut]] = {}
    for layer in architecture.layers:
        for block in (layer.dense, layer.mixture.shared if layer.mixture else None):
            if block is not None:
                cuts.update(_block_cuts(block, neurons[block.down]))
    for spec in architecture.tensors():
        if spec.expert >= 0:
            mixture = architecture.layers[spec.layer].mixture
            assert mixture is not None
            kept = neurons[mixture.expert(spec.expert, "down")]
            cuts.update(_expert_cut(spec, kept))
    return cuts


def _block_cuts(block: FeedForward, kept: Indices) -> Iterator[tuple[str, list[Cut]]]:
    for module in (block.gate, block.up):
        yield module + ".weight", [(0, kept)]
        yield module + ".bias", [(0, kept)]
    yield block.down + ".weight", [(1, kept)]


def _expert_cut(spec: TensorSpec, kept: Indices) -> Iterator[tuple[str, list[Cut]]]:
    if spec.projection == "down":
        if len(spec.shape) == 2:  # its bias has no neurons
            yield spec.name, [(1, kept)]
    elif spec.projection == "gate_up":  # rows alternate
        yield spec.name, [(0, np.stack((2 * kept, 2 * kept + 1), 1).reshape(-1))]
    else:
        yield spec.name, [(0, kept)]


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


def _check(options: WidthOptions) -> None:
    for name, share in (("feed_forward", options.feed_forward), ("hidden", options.hidden)):
        if not 0.0 < share <= 1.0:
            raise BadInputError(f"{name} is {share}, expected a share above 0 and up to 1")
    if options.multiple_of < 1:
        raise BadInputError(f"multiple_of is {options.multiple_of}, expected at least 1")
