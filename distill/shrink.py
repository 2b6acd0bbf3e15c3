"""Fewer experts: measure them once, choose which stay, write the smaller checkpoint, prove it.

With ``nested`` all experts stay, stored in the order of their worth, so that every prefix of them
is a smaller student over the same file.
"""

from __future__ import annotations

import dataclasses
import gc
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from edgekit.atomic import write_json
from edgekit.checkpoint import Checkpoint
from edgekit.distill.automatic import AutomaticReport, candidates_of, choose_by_measurement
from edgekit.distill.collect import PassOptions, collect, collect_masked, require_same
from edgekit.distill.criteria import scores
from edgekit.distill.divergence import held_out_sequences, remember
from edgekit.distill.keep import (
    Choice,
    Kept,
    choose,
    enough_text,
    require_count,
    require_same_layers,
)
from edgekit.distill.keep_map import KEEP_MAP, read_keep_map
from edgekit.distill.masked import Mask
from edgekit.distill.nested import (
    NestedReport,
    Order,
    compare,
    nested_sizes,
    order_experts,
    ranked_by,
)
from edgekit.distill.open_model import OpenModel, open_model
from edgekit.distill.prune import check_pruned, masked_logits, write_pruned
from edgekit.distill.resident import resident
from edgekit.distill.skew import skew
from edgekit.distill.statistics import Statistics, require_whole
from edgekit.nested import NESTED
from edgekit.progress import Progress
from edgekit.recipe import ShrinkSection
from edgekit.rules import experts_to_keep
from edgekit.sequences import FILE_NAME, TokenSequence, evenly_spaced, read_sequences

STATISTICS = "statistics.safetensors"
MEASURED_PER_DOMAIN = 32  # held-out sequences, at most
USAGE_SEQUENCES = 16


class ShrinkReport(BaseModel):
    """What was kept and why. ``saliency`` [layers][experts] by the chosen criterion; ``usage_*``
    are shares of routed tokens [layers][experts], by domain too. ``block_influence`` is of the
    decoder's layers, ``router_entropy`` of the sparse ones
    (:class:`edgekit.distill.statistics.Statistics`). ``overlap``: of the keep-sets of
    two halves of the text, per layer, of a nested student's smallest size; empty where that says
    nothing. ``notes`` are sentences for a person."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    criterion: str
    seed: int
    calibration: str
    experts_before: int
    experts_after: int
    parameters_before: int
    parameters_after: int
    kept: dict[int, list[int]]
    protected: dict[int, list[int]]
    exchanged: dict[int, list[int]]
    overlap: list[float]
    saliency: list[list[float]]
    usage_before: list[list[float]]
    usage_after: list[list[float]]
    usage_by_domain: dict[str, list[list[float]]]
    block_influence: list[float]
    router_entropy: list[float]
    automatic: AutomaticReport | None
    nested: NestedReport | None
    notes: list[str]


def shrink(
    model: Path,
    sequences: Path,
    params: ShrinkSection,
    out: Path,
    progress: Progress,
    scratch: Path,
    statistics: Path | None = None,
    passes: PassOptions | None = None,
) -> ShrinkReport:
    """Write ``model`` with a part of its experts into the existing, empty directory ``out``.

    A model that does not fit in memory, or that ``passes`` streams, is read a layer at a time,
    whenever it runs. ``scratch`` keeps what an interrupted pass has measured; ``statistics`` is a
    file of an earlier pass over the same checkpoint.

    Raises:
        BadInputError: the model is dense, its router cannot work with as few experts, there is no
            held-out text where it is needed, or ``previous`` is of another model: said before
            anything runs.
    """
    text = read_sequences(sequences / FILE_NAME)
    previous = read_keep_map(Path(params.previous)) if params.previous else None
    with Checkpoint(model) as checkpoint:
        architecture = checkpoint.architecture
        keep = experts_to_keep(architecture, params.keep, str(model))
        sizes = nested_sizes(architecture, params.nested, str(model)) if params.nested else []
    mixture = architecture.moe
    assert mixture is not None
    require_count(mixture, keep)
    sparse = [layer.index for layer in architecture.layers if layer.mixture]
    require_same_layers(previous, sparse, mixture.num_experts)
    if params.criterion == "auto" or sizes:
        held_out_sequences(text, MEASURED_PER_DOMAIN)
    passes = passes or PassOptions()
    streamed = passes.mode == "streamed"
    measured = statistics_on(model, text, scratch, statistics, passes, progress)
    nested = None
    with open_model(model, load=False) as opened:
        opened.load_rest()
        with resident(opened, streamed):
            choice, automatic = _choose(opened, measured, keep, params, previous, text, progress)
            least = choice  # of a nested student the choice of fewest experts, the least sure
            if sizes:
                choice, nested, least = _nest(
                    opened, measured, choice, sizes, params, text, progress
                )
            proof = text[0].tokens.tolist()
            expected = masked_logits(opened, choice.kept, proof)
    del opened
    gc.collect()  # cycles keep its embedding and head, which writing has no use for
    more = {NESTED: [p.experts for p in nested.prefixes]} if nested else {}
    with Checkpoint(model) as checkpoint:
        smaller = write_pruned(checkpoint, choice.kept, out, progress, more)
    check_pruned(out, smaller.parameters(), choice.kept, proof, expected, streamed=streamed)
    after = _usage(out, text, scratch, passes, progress)
    report = ShrinkReport(
        criterion=choice.criterion,
        seed=params.seed,
        calibration=measured.info.sequences,
        experts_before=mixture.num_experts,
        experts_after=keep,
        parameters_before=architecture.parameters(),
        parameters_after=smaller.parameters(),
        kept=choice.kept,
        protected=choice.protected,
        exchanged=choice.exchanged,
        overlap=least.overlap,
        saliency=_rounded(scores(measured, choice.criterion, params.seed)),
        usage_before=_rounded(measured.frequency),
        usage_after=_rounded(after.frequency),
        usage_by_domain={d: _rounded(measured.domain(d).frequency) for d in measured.domains},
        block_influence=measured.block_influence.tolist(),
        router_entropy=measured.router_entropy.tolist(),
        automatic=automatic,
        nested=nested,
        notes=_notes(measured, after, least, automatic),
    )
    write_json(out / KEEP_MAP, report.model_dump(mode="json"))
    return report


def measure_experts(
    model: Path,
    sequences: Path,
    out: Path,
    progress: Progress,
    scratch: Path,
    options: PassOptions | None = None,
) -> Statistics:
    """Write the statistics of ``model`` on a text into ``out`` for :func:`shrink`.

    What several workers have measured into ``scratch`` is not measured again.
    """
    text = read_sequences(sequences / FILE_NAME)
    found = collect(model, text, scratch, progress, options=options)
    require_whole(found, str(scratch))
    found.save(out / STATISTICS)
    return found


def statistics_on(
    model: Path,
    text: Sequence[TokenSequence],
    scratch: Path,
    given: Path | None,
    passes: PassOptions,
    progress: Progress,
) -> Statistics:
    """Those of ``model`` on ``text``: of an earlier pass if they are ``given``, or measured."""
    if given is None:
        found = collect(model, text, scratch, progress, options=passes)
        require_whole(found, str(scratch))
        return found
    found = Statistics.load(given / STATISTICS if given.is_dir() else given)
    require_same(found.info, model, text, str(given))
    return found


def _choose(
    opened: OpenModel,
    measured: Statistics,
    keep: int,
    params: ShrinkSection,
    previous: Kept | None,
    text: Sequence[TokenSequence],
    progress: Progress,
) -> tuple[Choice, AutomaticReport | None]:
    """The keep-set, and with ``auto`` the table of all that were tried."""
    mixture = opened.architecture.moe
    assert mixture is not None
    seed, margin = params.seed, params.margin
    if params.criterion != "auto":
        return choose(measured, mixture, keep, params.criterion, seed, previous, margin), None
    choices, candidates = candidates_of(measured, mixture, keep, seed, previous, margin)
    held_out = held_out_sequences(text, MEASURED_PER_DOMAIN)
    targets = remember(opened, held_out, progress)
    report = choose_by_measurement(opened, candidates, targets, progress)
    return choices[report.chosen], report


def _nest(
    opened: OpenModel,
    measured: Statistics,
    choice: Choice,
    sizes: list[int],
    params: ShrinkSection,
    text: Sequence[TokenSequence],
    progress: Progress,
) -> tuple[Choice, NestedReport, Choice]:
    """The kept experts in the order of their worth, what each prefix costs, and the choice that
    would be made for the smallest size alone.

    At each size the experts are measured again among those that are left.
    """
    mixture = opened.architecture.moe
    assert mixture is not None

    def ranking(left: Mask, _: int) -> Order:
        whole = all(len(experts) == mixture.num_experts for experts in left.values())
        found = measured if whole else collect_masked(opened, text, left, progress)
        worth = scores(found, params.criterion, params.seed)
        return ranked_by(worth, measured.layers, left, choice.protected)

    order = order_experts(measured.layers, mixture.num_experts, sizes, ranking)
    alone = {size: choose(measured, mixture, size, params.criterion, params.seed) for size in sizes}
    separate: dict[int, Mask] = {size: found.kept for size, found in alone.items()}
    targets = remember(opened, held_out_sequences(text, MEASURED_PER_DOMAIN), progress)
    prefixes = compare(opened, order, separate, targets, progress)
    kept = {layer: experts[: sizes[0]] for layer, experts in order.items()}
    report = NestedReport(criterion=params.criterion, order=order, prefixes=prefixes)
    return dataclasses.replace(choice, kept=kept), report, alone[sizes[-1]]


def _usage(
    out: Path,
    text: Sequence[TokenSequence],
    scratch: Path,
    passes: PassOptions,
    progress: Progress,
) -> Statistics:
    """Who uses what is left: a picture, and whether every expert is reached."""
    calibration = [s for s in text if not s.held_out]
    sample = evenly_spaced(calibration, USAGE_SEQUENCES / len(calibration))
    return collect(out, sample, scratch, progress, options=passes)


def _notes(
    before: Statistics, after: Statistics, choice: Choice, automatic: AutomaticReport | None
) -> list[str]:
    notes = [skew(before).sentence, *enough_text(choice, before)]
    if automatic:
        notes.append(automatic.reason)
    for layer, experts in before.unreached().items():
        numbers = ", ".join(map(str, experts))
        notes.append(f"layer {layer}: no calibration token reached expert {numbers}")
    for layer, experts in after.unreached().items():
        numbers = ", ".join(map(str, experts))
        notes.append(f"layer {layer}: of what stays, the sample did not reach expert {numbers}")
    return notes


def _rounded(values: NDArray[np.float64]) -> list[list[float]]:
    return [[float(f"{v:.5g}") for v in row] for row in values]
