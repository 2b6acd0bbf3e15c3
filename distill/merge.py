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

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from edgekit.describe import describe
from edgekit.distill.collect import _require_fit as require_fit
from edgekit.distill.collect import checkpoint_digest
from edgekit.distill.keep import require_count
from edgekit.distill.layer_states import LayerStates
from edgekit.distill.merge_pass import MergeOptions, plan_merges
from edgekit.distill.merge_tensors import centres, merged_tensors
from edgekit.distill.open_model import open_model
from edgekit.distill.prune import PROOF_TOKENS, check_pruned, pruned_config, write_smaller
from edgekit.distill.statistics import Statistics, require_same, require_whole
from edgekit.errors import BadInputError
from edgekit.progress import Progress
from edgekit.rules import experts_to_keep
from edgekit.sequences import TokenSequence, sequences_digest

STATES = "states.bin"


@dataclass(frozen=True)
class MergeReport:
    """``groups`` and ``weights`` by sparse layer, the centre of a group first; ``sequential`` is
    whether each layer was measured behind the merged ones before it."""

    method: str
    sequential: bool
    experts_before: int
    experts_after: int
    parameters_before: int
    parameters_after: int
    groups: dict[int, list[list[int]]]
    weights: dict[int, list[list[float]]]
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

    One layer of the model is in memory at a time; ``scratch`` holds the hidden states of the text.
    With ``statistics`` of the model all layers are grouped by them, and no more text is run than
    the alignment needs.

    Raises:
        BadInputError: the model is dense, too few experts would be left for its router, there is
            no text, or the statistics are of another model.
    """
    text = [s for s in sequences if not s.held_out]
    if not text:
        raise BadInputError("no calibration text; raise [data] tokens")
    if statistics:
        require_whole(statistics, "statistics")
        digests = checkpoint_digest(model), sequences_digest(text)
        require_same(statistics.info, *digests, "statistics")
    run = _enough(text, options.sample_tokens) if statistics else text
    with open_model(model, load=False) as opened:
        keep = experts_to_keep(opened.architecture, options.keep, str(model))
        before = opened.architecture.moe
        assert before is not None
        require_count(before, keep)
        require_fit(opened, run)
        places = dict.fromkeys(opened.mixtures, list(range(keep)))  # how many; which is not known
        smaller = describe(pruned_config(opened.checkpoint.config, opened.architecture, places))
        opened.load_rest()
        with LayerStates(opened, run, scratch / STATES) as states:
            plan = plan_merges(opened, smaller, states, options, progress, statistics)
            expected = states.logits()[:PROOF_TOKENS]
        tensor = merged_tensors(opened.checkpoint, plan)
        write_smaller(opened.checkpoint, centres(plan), tensor, out, progress)
        parameters = opened.architecture.parameters()
    check_pruned(out, smaller.parameters(), centres(plan), run[0].tokens.tolist(), expected)
    return MergeReport(
        method=options.method,
        sequential=statistics is None,
        experts_before=before.num_experts,
        experts_after=keep,
        parameters_before=parameters,
        parameters_after=smaller.parameters(),
        groups={n: [list(e.group.members) for e in experts] for n, experts in plan.items()},
        weights={n: [list(e.group.weights) for e in experts] for n, experts in plan.items()},
        calibration=sequences_digest(text),
        seed=options.seed,
    )


def _enough(text: Sequence[TokenSequence], tokens: int) -> list[TokenSequence]:
    """Sequences from all over the text that have at least ``tokens`` together, if it has."""
    total = sum(len(s.tokens) for s in text)
    return list(text[:: max(1, total // max(tokens, 1))])
