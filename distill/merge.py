"""Fewer experts by merging: similar experts become their weighted average.

Layer after layer, the experts are grouped (:mod:`edgekit.distill.merge_groups`), their neurons
aligned (:mod:`edgekit.distill.merge_alignment`), and the next layer measured on what the merged
layer says (:mod:`edgekit.distill.merge_pass`). What to average is then known, and the smaller
checkpoint is written one tensor at a time, opened again and compared with the logits that the pass
ended with. The result is an ordinary checkpoint with fewer experts: the router keeps the rows of
the groups' centres.

Published comparisons and ours find pruning better where the model writes text, merging sometimes
better at choosing among answers; measure both.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from edgekit.architecture import Architecture
from edgekit.atomic import disk_errors, write_json
from edgekit.checkpoint import Checkpoint
from edgekit.describe import describe
from edgekit.distill.chunks import Text
from edgekit.distill.collect import (
    calibration_text,
    chunk_bounds,
    require_fit,
    require_same,
)
from edgekit.distill.keep import require_count
from edgekit.distill.merge_groups import METHODS
from edgekit.distill.merge_pass import MergeOptions, TextStates, plan_merges
from edgekit.distill.merge_tensors import PRECISIONS, centres, merged_tensors
from edgekit.distill.open_model import OpenModel, open_model
from edgekit.distill.pass_memory import pass_needs, weight_needs
from edgekit.distill.prune import (
    PROOF_TOKENS,
    check_pruned,
    pruned_config,
    round_as_written,
    write_smaller,
)
from edgekit.distill.statistics import Statistics, require_whole
from edgekit.errors import BadInputError
from edgekit.memory import require_disk, require_memory
from edgekit.progress import Progress
from edgekit.rules import experts_to_keep
from edgekit.sequences import TokenSequence, evenly_spaced, sequences_digest

REPORT = "merge.json"


@dataclass(frozen=True)
class MergeReport:
    """``groups`` and ``weights`` by sparse layer, the centre of a group first; ``protected``
    experts stayed as they were; ``sequential`` is whether each layer was measured behind the merged
    ones before it."""

    method: str
    sequential: bool
    experts_before: int
    experts_after: int
    parameters_before: int
    parameters_after: int
    groups: dict[int, list[list[int]]]
    weights: dict[int, list[list[float]]]
    protected: dict[int, list[int]]
    calibration: str
    seed: int


def merge(
    model: Path,
    sequences: Sequence[TokenSequence],
    options: MergeOptions,
    out: Path,
    scratch: Path,
    progress: Progress,
    statistics: Statistics | None = None,
) -> MergeReport:
    """Write ``model`` with fewer, merged experts into the existing, empty directory ``out``.

    One layer of the model is in memory at a time; the hidden states of the text are in ``scratch``
    until the end. With ``statistics`` of the model on this text all layers are grouped by them, and
    no more text is run than the alignment needs.

    Raises:
        BadInputError: the model is dense, too few experts would be left for its router, there is
            no text, the statistics are of another model or text, or an option is out of range.
        OutOfResourcesError: memory or disk are too small, or the disk is full.
    """
    require_options(model, options)
    text = calibration_text(sequences)
    calibration = sequences_digest(text.sequences)
    if statistics:
        require_whole(statistics, "statistics")
        require_same(statistics.info, model, sequences, "statistics")
        text = _enough(text, options.sample_tokens)
    with open_model(model, device=options.device, load=False) as opened:
        keep = experts_to_keep(opened.architecture, options.keep, str(model))
        before = opened.architecture.moe
        assert before is not None
        require_fit(opened, text.sequences)
        _require_protected(opened, options)
        count = {layer: list(range(keep)) for layer in opened.mixtures}  # which is not known yet
        smaller = describe(pruned_config(opened.checkpoint.config, opened.architecture, count))
        if not options.force:
            _require_resources(opened, text, smaller, scratch, out)
        with disk_errors(scratch):
            scratch.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=scratch) as directory:
            if opened.checkpoint.source.method != "none":
                opened.after_loading = partial(round_as_written, opened)
            states = TextStates(opened, text, Path(directory))
            plan = plan_merges(opened, smaller, states, options, progress, statistics)
            opened.load_rest()
            opened.after_loading()
            expected = states.logits()[:PROOF_TOKENS]
        tensor = merged_tensors(opened.checkpoint, plan)
        write_smaller(opened.checkpoint, centres(plan), tensor, out, progress)
        parameters = opened.architecture.parameters()
    proof = text.sequences[0].tokens.tolist()
    check_pruned(out, smaller.parameters(), centres(plan), proof, expected, "what was merged")
    report = MergeReport(
        method=options.method,
        sequential=statistics is None,
        experts_before=before.num_experts,
        experts_after=keep,
        parameters_before=parameters,
        parameters_after=smaller.parameters(),
        groups={n: [list(e.group.members) for e in experts] for n, experts in plan.items()},
        weights={n: [list(e.group.weights) for e in experts] for n, experts in plan.items()},
        protected={n: sorted(experts) for n, experts in options.protected.items()},
        calibration=calibration,
        seed=options.seed,
    )
    write_json(out / REPORT, asdict(report))
    return report


def _require_resources(
    opened: OpenModel, text: Text, smaller: Architecture, scratch: Path, out: Path
) -> None:
    """Refuse what will not fit: a layer beside its merged experts, and the states on disk."""
    needs, weights = pass_needs(opened, text), weight_needs(opened)
    what = f"{opened.path}: merging experts"
    if opened.device.type == "cpu":
        require_memory(needs.streamed + weights.largest_layer + weights.rest, what)
    require_disk(scratch, needs.states_disk, what)
    written = smaller.parameters() * PRECISIONS[opened.checkpoint.dtype].itemsize
    require_disk(out, written, what)


def require_options(model: Path, options: MergeOptions) -> None:
    """Refuse what can be told to fail before anything is run.

    Raises:
        BadInputError: names the option, or says why ``model`` cannot be merged so.
    """
    if not 0 < options.keep < 1:
        raise BadInputError(
            f"keep is {options.keep}, expected the share of the experts that is left, above 0 and "
            "below 1"
        )
    if options.method not in METHODS:
        raise BadInputError(f"no way to merge named {options.method!r}; use {', '.join(METHODS)}")
    if options.sample_tokens < 1:
        raise BadInputError(
            f"{options.sample_tokens} sampled tokens cannot align neurons; sample at least 1"
        )
    with Checkpoint(model) as checkpoint:
        keep = experts_to_keep(checkpoint.architecture, options.keep, str(model))
        assert checkpoint.architecture.moe is not None
        require_count(checkpoint.architecture.moe, keep)


def _require_protected(opened: OpenModel, options: MergeOptions) -> None:
    for layer, experts in options.protected.items():
        block = opened.mixtures.get(layer)
        if block is None or not all(0 <= e < block.mixture.num_experts for e in experts):
            raise BadInputError(
                f"{opened.path}: not all protected experts {sorted(experts)} of layer {layer} "
                "exist; name sparse layers and their experts"
            )


def _enough(text: Text, tokens: int) -> Text:
    """Sequences from all over every domain that have about ``tokens`` together."""
    some = evenly_spaced(text.sequences, tokens / sum(len(s.tokens) for s in text.sequences))
    return Text.of(some, chunk_bounds(some))
