"""From a mixture of experts to a dense model that any runtime loads, an NPU's too.

1. The dense architecture is found and compared (:mod:`edgekit.distill.dense_families`), before any
   work.
2. One pass over calibration text, a layer in memory at a time, says how the outputs of all experts
   relate (:mod:`edgekit.distill.dense_moments`).
3. Experts or neurons are chosen (:mod:`edgekit.distill.dense_choice`), and constants stand for
   their gates. ``scaling`` "auto" measures each kind of constants: KL to the sparse model on
   held-out text.
4. The dense checkpoint is written one tensor at a time (:mod:`edgekit.distill.dense_plan`), opened
   again through transformers and must say what the sparse model says with the same constants.

What is lost is that gates depend on the token; training the result heals it
(:mod:`edgekit.distill.dense_warm_up`, then distillation).
"""

from __future__ import annotations

import gc
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict

from edgekit.architecture import Architecture, Mixture
from edgekit.atomic import write_json
from edgekit.checkpoint import Checkpoint, copy_tokenizer, write_checkpoint
from edgekit.distill.chunks import Text
from edgekit.distill.dense_choice import CHOICES, SCALINGS
from edgekit.distill.dense_families import DenseTarget, dense_target
from edgekit.distill.dense_pass import Chosen, Wanted, choose_pieces
from edgekit.distill.dense_plan import Plan, as_dense, dense_tensors
from edgekit.distill.divergence import Divergence, held_out_sequences, measure, remember
from edgekit.distill.merge_tensors import PRECISIONS
from edgekit.distill.open_model import OpenModel, open_model
from edgekit.distill.pass_memory import pass_needs, weight_needs
from edgekit.distill.proof import proof_logits, require_finite_divergence, require_same
from edgekit.distill.prune import round_as_written
from edgekit.distill.resident import resident
from edgekit.errors import BadInputError
from edgekit.memory import require_disk, require_memory
from edgekit.progress import Progress
from edgekit.recipe_shapes import DenseSection
from edgekit.sequences import TokenSequence, evenly_spaced, sequences_digest

REPORT = "densify.json"
SEQUENCE = 512  # tokens of a calibration sequence, at most
MEASURED_PER_DOMAIN = 8  # held-out sequences


@dataclass(frozen=True)
class DenseOptions:
    """How to make a dense model.

    ``choice`` is one of "do_acp", "acp", "cp", "frequency", "random" or "neurons". ``experts`` per
    layer, 0 for as many as a token uses; ``neurons`` of a layer instead, 0 for as many as those
    experts have, or more where the width has room. ``scaling`` is "uniform", "marginal", "fitted"
    or "auto". The width is a multiple of ``multiple_of``; ``family`` names the dense architecture
    where there are several. ``force`` goes on where memory or disk seem too small.
    """

    choice: str = "do_acp"
    experts: int = 0
    neurons: int = 0
    scaling: str = "auto"
    family: str = ""
    multiple_of: int = 128
    calibration_tokens: int = 8192
    seed: int = 0
    force: bool = False

    @classmethod
    def of(
        cls, section: DenseSection, calibration_tokens: int, force: bool = False
    ) -> DenseOptions:
        """As a recipe says."""
        return cls(
            section.choice, section.experts, section.neurons, section.scaling, section.family,
            section.multiple_of, calibration_tokens, section.seed, force,
        )  # fmt: skip


class DenseLayer(BaseModel):
    """What a sparse layer became. ``experts`` in the order in which they were taken, with the
    number of their ``neurons`` and the constant that stands for the gate; ``scores`` of all
    experts. ``errors`` are squared errors of the feed-forward's output relative to the squared
    output, per kind of constants. ``room`` counts the neurons that say nothing until they are
    trained."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    experts: list[int]
    neurons: list[int]
    scales: list[float]
    scores: list[float]
    errors: dict[str, float]
    room: int


class DenseReport(BaseModel):
    """A sparse model made dense. ``divergence`` is KL to the sparse model on held-out text, per
    kind of constants that was measured; ``notes`` are sentences for a person."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    source_family: str
    family: str
    choice: str
    scaling: str
    seed: int
    calibration: str
    calibration_tokens: int
    width: int
    parameters_before: int
    parameters_after: int
    active_parameters_before: int
    active_parameters_after: int
    layers: dict[int, DenseLayer]
    divergence: dict[str, Divergence]
    reload_error: float
    notes: list[str]


def densify(
    model: Path,
    sequences: Sequence[TokenSequence],
    options: DenseOptions,
    out: Path,
    progress: Progress,
) -> DenseReport:
    """Write ``model`` as a dense one into the existing, empty directory ``out``.

    Raises:
        BadInputError: an option makes no sense for the model, there is no calibration text, or no
            dense architecture is the same but for the experts.
        OutOfResourcesError: memory or disk are too small.
        EdgekitError: the written model is not what was planned.
    """
    text = calibration_text(sequences, options.calibration_tokens)
    held_out = held_out_sequences(sequences, MEASURED_PER_DOMAIN)
    with open_model(model, load=False) as opened:
        source = opened.architecture
        wanted, width, target = plan_dense(opened.checkpoint.config, source, options, str(model))
        _require_resources(opened, text, target.architecture, out, options.force)
        chosen = choose_pieces(opened, text, wanted, progress)
        plans = {kind: _plan(chosen, kind, source) for kind in SCALINGS}
        if opened.checkpoint.source.method != "none":
            opened.after_loading = partial(round_as_written, opened)
        opened.load_rest()
        opened.after_loading()
        with resident(opened):
            scaling, divergence = _scaling(opened, plans, held_out, options.scaling, progress)
            require_finite_divergence(divergence[scaling], model)
            with as_dense(opened, plans[scaling]):
                expected = proof_logits(opened, text)
        write_dense(opened.checkpoint, target, plans[scaling], out, progress)
    del opened
    gc.collect()  # cycles keep its embedding and head
    with open_model(out, load=False) as dense:
        dense.load_rest()
        with resident(dense):
            found = proof_logits(dense, text)
    constant = "the sparse one with the same constants"
    reload_error = require_same(found, expected, out, model, constant)
    layers = {
        layer: _layer_report(pieces, scaling, _mixture(source, layer), width)
        for layer, pieces in chosen.items()
    }
    report = DenseReport(
        source_family=source.model_type,
        family=target.architecture.model_type,
        choice=options.choice,
        scaling=scaling,
        seed=options.seed,
        calibration=sequences_digest(text),
        calibration_tokens=sum(len(s.tokens) for s in text),
        width=width,
        parameters_before=source.parameters(),
        parameters_after=target.architecture.parameters(),
        active_parameters_before=source.active_parameters(),
        active_parameters_after=target.architecture.active_parameters(),
        layers=layers,
        divergence=divergence,
        reload_error=reload_error,
        notes=[],
    )
    report = report.model_copy(update={"notes": _notes(source, report)})
    write_json(out / REPORT, report.model_dump(mode="json"))
    return report


def plan_dense(
    config: Mapping[str, Any], source: Architecture, options: DenseOptions, path: str
) -> tuple[Wanted, int, DenseTarget]:
    """What is taken of every layer, how wide its feed-forward becomes, and the dense model.

    Raises:
        BadInputError: an option makes no sense for the model that ``path`` names, or no dense
            architecture is the same but for the experts.
    """
    wanted = _wanted(source, options, path)
    width = _width(source, wanted, options.multiple_of)
    target = dense_target(config, source, width, path, options.family)
    if wanted.neurons and not options.neurons:
        wanted = replace(wanted, neurons=_neurons_that_fit(source, width))
    return wanted, width, target


def _require_resources(
    opened: OpenModel, text: Sequence[TokenSequence], dense: Architecture, out: Path, force: bool
) -> None:
    """Refuse what will not fit. The pass has a layer in memory beside the states of all text, what
    is proven a layer of either model beside what is in no layer."""
    if force:
        return
    needs = pass_needs(opened, Text.of(text, [(0, len(text))]))
    memory = needs.streamed + needs.states_disk + weight_needs(opened).rest
    require_memory(memory, f"{opened.path}: making the model dense")
    width = PRECISIONS[opened.checkpoint.dtype].itemsize
    require_disk(out, dense.parameters() * width, f"{opened.path}: making the model dense")


def write_dense(
    checkpoint: Checkpoint, target: DenseTarget, plan: Plan, out: Path, progress: Progress
) -> None:
    """Write the planned model into ``out``, one tensor at a time; what is taken over as it is stays
    in its precision."""
    specs, whole = target.architecture.by_name, checkpoint.architecture.by_name
    dtypes = checkpoint.dtypes
    sources = {
        specs[new].source.tensor: whole[old].source.tensor
        for new, old in target.source_names.items()
    }
    stored_as = {new: dtypes[old] for new, old in sources.items() if old in dtypes}
    tensor = dense_tensors(checkpoint, target, plan)
    with progress.task("write the dense model", len(specs)) as task:
        write_checkpoint(out, target.config, tensor, checkpoint.dtype, task.advance, stored_as)
    copy_tokenizer(checkpoint.path, out)


def calibration_text(sequences: Sequence[TokenSequence], tokens: int) -> list[TokenSequence]:
    """About ``tokens`` of the text that is not held out, from all over every domain, in short
    sequences.

    Raises:
        BadInputError: there is none.
    """
    text = [
        TokenSequence(s.tokens[:SEQUENCE], s.domain, s.held_out) for s in sequences
        if not s.held_out
    ]  # fmt: skip
    if not text:
        raise BadInputError("no calibration text; raise [data] tokens")
    return evenly_spaced(text, tokens / sum(len(s.tokens) for s in text))


def _wanted(source: Architecture, options: DenseOptions, path: str) -> Wanted:
    """How much of a layer is taken."""
    mixture = source.moe
    if options.multiple_of < 1:
        raise BadInputError(f"multiple_of is {options.multiple_of}, expected at least 1")
    if mixture is None:
        raise BadInputError(f"{path}: a {source.model_type} without experts is dense already")
    for name, value, known in (
        ("choice", options.choice, CHOICES),
        ("scaling", options.scaling, (*SCALINGS, "auto")),
    ):
        if value not in known:
            raise BadInputError(f"{name} {value!r} is not known; choose one of {', '.join(known)}")
    count = options.experts or mixture.num_experts_per_tok
    if not 0 < count <= mixture.num_experts:
        raise BadInputError(
            f"{path}: {count} experts of a layer's {mixture.num_experts} cannot be taken; choose "
            f"from 1 to {mixture.num_experts}"
        )
    if options.choice != "neurons":
        if options.neurons:
            raise BadInputError(f"neurons are chosen by 'neurons', not by {options.choice!r}")
        return Wanted(options.choice, count, 0, options.seed)
    most = mixture.num_experts * mixture.intermediate_size
    taken = options.neurons or count * mixture.intermediate_size
    if not 0 < taken <= most:
        raise BadInputError(f"{path}: {taken} neurons cannot be taken from a layer's {most}")
    return Wanted(options.choice, count, taken, options.seed)


def _width(source: Architecture, wanted: Wanted, multiple_of: int) -> int:
    """Neurons of every layer: what the widest needs, rounded up."""
    needed = []
    for layer in source.layers:
        if layer.mixture:
            taken = wanted.neurons or wanted.experts * layer.mixture.intermediate_size
            needed.append(taken + _shared_size(layer.mixture))
        elif layer.dense:
            needed.append(layer.dense.size)
    return -(-max(needed) // multiple_of) * multiple_of


def _neurons_that_fit(source: Architecture, width: int) -> int:
    assert source.moe is not None
    most = source.moe.num_experts * source.moe.intermediate_size
    return min(most, width - _shared_size(source.moe))


def _shared_size(mixture: Mixture) -> int:
    return mixture.shared.size if mixture.shared else 0


def _plan(chosen: dict[int, Chosen], kind: str, source: Architecture) -> Plan:
    return {layer: found.plan(kind, _mixture(source, layer)) for layer, found in chosen.items()}


def _mixture(source: Architecture, layer: int) -> Mixture:
    mixture = source.layers[layer].mixture
    assert mixture is not None
    return mixture


def _scaling(
    opened: OpenModel,
    plans: dict[str, Plan],
    held_out: Sequence[TokenSequence],
    kind: str,
    progress: Progress,
) -> tuple[str, dict[str, Divergence]]:
    """The kind of constants to write, and what was measured: all kinds, or the one asked for."""
    kinds = SCALINGS if kind == "auto" else (kind,)
    found = {}
    targets = remember(opened, held_out, progress)
    for name in kinds:
        with as_dense(opened, plans[name]):
            found[name] = measure(opened, targets, progress, name).divergence()
    return min(kinds, key=lambda name: found[name].worst), found


def _layer_report(found: Chosen, scaling: str, mixture: Mixture, width: int) -> DenseLayer:
    plan = found.plan(scaling, mixture)
    return DenseLayer(
        experts=[piece.expert for piece in plan.pieces],
        neurons=[len(piece.neurons) or mixture.intermediate_size for piece in plan.pieces],
        scales=[_rounded(piece.outside) for piece in plan.pieces],
        scores=[_rounded(score) for score in found.scores],
        errors={kind: _rounded(found.error(kind, mixture)) for kind in SCALINGS},
        room=width - plan.width(mixture),
    )


def _notes(source: Architecture, report: DenseReport) -> list[str]:
    """What a person should know."""
    errors = {n: layer.errors[report.scaling] for n, layer in report.layers.items()}
    worst = max(errors, key=lambda n: errors[n])
    notes = [
        f"gates became constants ({report.scaling}): the feed-forwards' outputs are off by "
        f"{np.median(list(errors.values())):.2f} of their square, in layer {worst} by "
        f"{errors[worst]:.2f}; train the model before it is used"
    ]
    mixture = source.moe
    assert mixture is not None
    if mixture.shared_gate:
        notes.append(
            "the gate of the shared expert became its mean over the calibration text, which is an "
            "approximation"
        )
    room = max(layer.room for layer in report.layers.values())
    if room >= mixture.intermediate_size:
        notes.append(
            f"the model's dense layers are wider: the sparse ones have {room} neurons that say "
            f"nothing yet, room for {room // mixture.intermediate_size} more experts at no cost"
        )
    filled = [report.width - layer.dense.size for layer in source.layers if layer.dense]
    if any(filled):
        notes.append(
            f"{len(filled)} layers that were dense have {max(filled)} neurons that say nothing "
            "yet, because all layers have one width"
        )
    return notes


def _rounded(value: float) -> float:
    return float(f"{value:.5g}")
