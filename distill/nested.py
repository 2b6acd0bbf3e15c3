"""Nested students: one file whose every prefix is a pruned model.

The experts of a layer are stored in the order of their worth, so the first n of them and the first
n rows of the router are a student of n experts, and one weights file serves machines of several
sizes. The order comes from the back: at each size, from the largest to the smallest, the experts
are measured among those that are left (a router divides its weight anew among fewer, which changes
who is used for what), and the least worthy go. Experts that must stay are first.

Each prefix is measured by domain, beside a keep-set that was chosen for its size alone, and with a
budget for training both are healed: what sharing a file costs is a number in the report.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from edgekit.architecture import Architecture
from edgekit.distill.cache import LogitCache
from edgekit.distill.divergence import Divergence, Targets
from edgekit.distill.masked import Mask, measure_masked
from edgekit.distill.open_model import OpenModel, open_model
from edgekit.distill.trainer import Trainer
from edgekit.errors import BadInputError
from edgekit.progress import Progress
from edgekit.recipe import DistillSection
from edgekit.rules import experts_to_keep

Order = dict[int, list[int]]  # sparse layer -> all experts, most worthy first
# (experts that are left, how many of them stay) -> the same experts, most worthy first
Ranking = Callable[[Mask, int], Order]


class NestedPrefix(BaseModel):
    """The student of the first ``experts`` per layer, beside one chosen for this size alone.

    ``separate_experts`` are the other's experts, ``shared_experts`` the share that both have.
    ``healed`` and ``healed_separate`` are KL after training: one run for all prefixes, and one for
    each separate student, of as many steps per student.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    experts: int
    share: float
    prefix: Divergence
    separate: Divergence
    separate_experts: dict[int, list[int]]
    shared_experts: float
    healed: Divergence | None = None
    healed_separate: Divergence | None = None


class NestedReport(BaseModel):
    """``order``: the experts of each sparse layer, most worthy first; ``prefixes`` by size, the
    largest first; ``steps`` of healing per student (0: none)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    criterion: str
    order: dict[int, list[int]]
    prefixes: list[NestedPrefix]
    steps: int = 0


def nested_sizes(architecture: Architecture, shares: Sequence[float], source: str) -> list[int]:
    """Experts per layer of each nested student, the largest first.

    Raises:
        BadInputError: the model is dense, a size is below its top-k, the router chooses groups
            first, or fewer than two sizes differ.
    """
    counts = {experts_to_keep(architecture, share, source) for share in shares}
    mixture = architecture.moe
    assert mixture is not None
    if mixture.num_groups > 1 and mixture.top_groups < mixture.num_groups:
        raise BadInputError(
            f"{source}: its router first chooses {mixture.top_groups} of {mixture.num_groups} "
            "groups of neighbouring experts, and no prefix of one file can take the same number "
            "from every group; shrink it to one size at a time"
        )
    for count in counts:
        if count % mixture.num_groups:
            raise BadInputError(
                f"{source}: {count} experts do not divide into the {mixture.num_groups} groups of "
                "its router; choose shares that do"
            )
    if len(counts) < 2:
        raise BadInputError(
            f"{source}: --nested needs at least two different numbers of experts; give shares "
            "such as 1.0,0.75,0.5"
        )
    return sorted(counts, reverse=True)


def order_experts(
    layers: Sequence[int], num_experts: int, sizes: Sequence[int], ranking: Ranking
) -> Order:
    """All experts of each layer so that, for each of ``sizes``, the first are the ones to keep.

    ``ranking`` is asked at each size about those that are left, so it can measure them anew.
    """
    left: Order = {layer: list(range(num_experts)) for layer in layers}
    behind: Order = {layer: [] for layer in layers}
    for size in sorted(sizes, reverse=True):
        if size == num_experts:
            continue
        ranked = ranking(left, size)
        for layer in layers:
            left[layer] = ranked[layer][:size]
            behind[layer] = ranked[layer][size:] + behind[layer]
    return {layer: left[layer] + behind[layer] for layer in layers}


def ranked_by(
    worth: NDArray[np.float64],
    layers: Sequence[int],
    left: Mask,
    protected: Mapping[int, Collection[int]],
) -> Order:
    """The experts that are ``left``, protected ones first, then by ``worth`` [L, E]; ties by
    number."""
    return {
        layer: sorted(left[layer], key=lambda e: (e not in protected.get(layer, ()), -row[e], e))
        for layer, row in zip(layers, worth, strict=True)
    }


def prefix(order: Order, size: int) -> Mask:
    """The first ``size`` experts of each layer."""
    return {layer: experts[:size] for layer, experts in order.items()}


def compare(
    opened: OpenModel,
    order: Order,
    separate: Mapping[int, Mask],
    targets: Targets,
    progress: Progress,
    healing: DistillSection | None = None,
) -> list[NestedPrefix]:
    """Measure every prefix of ``order`` beside the ``separate`` keep-set of its size.

    ``opened`` is the teacher, whose answers ``targets`` are; with ``healing`` its weights are
    trained and put back.
    """
    sizes = sorted(separate, reverse=True)
    experts = len(next(iter(order.values())))
    nested = [prefix(order, size) for size in sizes]
    alone = [separate[size] for size in sizes]
    before = [_divergence(opened, mask, targets, progress) for mask in nested]
    apart = [_divergence(opened, mask, targets, progress) for mask in alone]
    healed: list[Divergence | None] = [None] * len(sizes)
    healed_apart: list[Divergence | None] = [None] * len(sizes)
    if healing:
        whole = healing.model_copy(update={"steps": healing.steps * len(sizes)})
        healed = _heal(opened, nested, targets, whole, progress)
        healed_apart = [
            # all of the teacher's experts: there is nothing to heal
            apart[i]
            if size == experts
            else _heal(opened, [alone[i]], targets, healing, progress)[0]
            for i, size in enumerate(sizes)
        ]
    return [
        NestedPrefix(
            experts=size,
            share=size / experts,
            prefix=before[i],
            separate=apart[i],
            separate_experts={layer: list(kept) for layer, kept in alone[i].items()},
            shared_experts=_overlap(nested[i], alone[i]),
            healed=healed[i],
            healed_separate=healed_apart[i],
        )
        for i, size in enumerate(sizes)
    ]


def compare_healed(
    teacher: Path, report: NestedReport, cache: Path, params: DistillSection, progress: Progress
) -> NestedReport:
    """``report`` with what its prefixes and their separate rivals are after training on ``cache``.

    Nothing is written: all are masks over the teacher, whose logits ``cache`` holds.

    Raises:
        BadInputError: the cache has no text to train or to measure on, or training diverged.
    """
    separate: dict[int, Mask] = {p.experts: p.separate_experts for p in report.prefixes}
    with open_model(teacher) as opened:
        targets = LogitCache(cache)
        prefixes = compare(opened, report.order, separate, targets, progress, params)
    return report.model_copy(update={"prefixes": prefixes, "steps": params.steps})


def _divergence(opened: OpenModel, mask: Mask, targets: Targets, progress: Progress) -> Divergence:
    return measure_masked(opened, mask, targets, progress, "the students").divergence()


def _heal(
    opened: OpenModel,
    masks: Sequence[Mask],
    targets: Targets,
    params: DistillSection,
    progress: Progress,
) -> list[Divergence | None]:
    """KL under each mask after training under all of them; the weights are put back."""
    trainer = Trainer(opened, params, targets.vocab_size, masks=masks, held_out=targets)
    original = {name: p.detach().clone() for name, p in trainer.parameters.items()}
    try:
        trainer.train(targets, 0, params.steps, progress)
        found = trainer.measure(progress)
        return list(found.students) if found else [None] * len(masks)
    finally:
        with torch.no_grad():
            for name, parameter in trainer.parameters.items():
                parameter.copy_(original[name])


def _overlap(one: Mask, other: Mask) -> float:
    """Share of the experts of ``one`` that ``other`` has too."""
    common = sum(len(set(kept) & set(other[layer])) for layer, kept in one.items())
    return common / sum(len(kept) for kept in one.values())
