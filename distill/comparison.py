"""What every criterion costs at every size: the picture from which a size is chosen.

The keep-sets of all criteria, and random ones, are measured as masks over the teacher on held-out
text of every domain. The recommendation is a rule, and says so: the smallest size whose best
criterion stays below a limit on its worst domain.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from edgekit.architecture import Architecture
from edgekit.distill.automatic import AutomaticReport, candidates_of, choose_by_measurement
from edgekit.distill.collect import require_same
from edgekit.distill.criteria import scores
from edgekit.distill.divergence import held_out_sequences, remember
from edgekit.distill.keep import choose
from edgekit.distill.open_model import open_model
from edgekit.distill.resident import resident
from edgekit.distill.skew import skew
from edgekit.distill.statistics import Statistics
from edgekit.errors import BadInputError
from edgekit.progress import Progress
from edgekit.rules import experts_to_keep
from edgekit.sequences import FILE_NAME, read_sequences

MEASURED_PER_DOMAIN = 16  # held-out sequences, at most: there are many keep-sets
# nats per token, a rule of thumb of PEFT's documentation of MoE to dense: below the first hardly
# told apart, up to the second useful, beyond the third another model
ALIKE, USEFUL, ANOTHER = 0.05, 0.3, 0.5


class Size(BaseModel):
    """All keep-sets of one number of experts; ``share`` is that of the teacher's parameters."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    experts: int
    share: float
    table: AutomaticReport


class Comparison(BaseModel):
    """``saliency`` [layers][experts] is by REAP; ``recommendation`` is for a person."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model_type: str
    experts: int
    sizes: list[Size]
    saliency: list[list[float]]
    kept: dict[int, list[int]]  # of the largest size, by its best criterion
    usage_by_domain: dict[str, list[list[float]]]
    block_influence: list[float]
    router_entropy: list[float]
    skew: str
    recommendation: str


def compare_sizes(
    model: Path, statistics: Path, keeps: Sequence[float], progress: Progress, seed: int = 0
) -> Comparison:
    """Measure every criterion at every share of ``keeps``; ``statistics`` is a directory of
    `edgekit shrink stats`.

    Raises:
        BadInputError: the statistics are of another checkpoint, the text has no held-out part, or a
            share is not possible.
    """
    from edgekit.distill.shrink import STATISTICS

    measured = Statistics.load(statistics / STATISTICS)
    text = read_sequences(statistics / FILE_NAME)
    require_same(measured.info, model, text, str(statistics))
    with open_model(model, load=False) as opened:
        architecture = opened.architecture
        mixture = architecture.moe
        counts = sorted({experts_to_keep(architecture, k, str(model)) for k in keeps}, reverse=True)
        if mixture is None or not counts or counts[0] == mixture.num_experts:
            raise BadInputError(f"{model}: give shares below 1, such as 0.75,0.5")
        opened.load_rest()
        with resident(opened):
            targets = remember(opened, held_out_sequences(text, MEASURED_PER_DOMAIN), progress)
            sizes = []
            for count in counts:
                _, candidates = candidates_of(measured, mixture, count, seed)
                table = choose_by_measurement(opened, candidates, targets, progress)
                share = _share(architecture, count)
                sizes.append(Size(experts=count, share=share, table=table))
    best = choose(measured, mixture, counts[0], sizes[0].table.chosen, seed)
    uneven = skew(measured)
    return Comparison(
        model_type=architecture.model_type,
        experts=mixture.num_experts,
        sizes=sizes,
        saliency=scores(measured, "reap").tolist(),
        kept=best.kept,
        usage_by_domain={d: measured.domain(d).frequency.tolist() for d in measured.domains},
        block_influence=measured.block_influence.tolist(),
        router_entropy=measured.router_entropy.tolist(),
        skew=uneven.sentence,
        recommendation=recommend(sizes, mixture.num_experts, uneven.uneven),
    )


def recommend(sizes: Sequence[Size], experts: int, uneven: bool) -> str:
    """The recommendation in words with its reason; ``sizes`` fall."""
    if not uneven:
        return (
            "keep all experts: they are used too evenly for any to be missed little; quantize "
            "to int4 instead"
        )
    worst = {size.experts: _chosen(size)[1] for size in sizes}
    fitting = [size for size in sizes if worst[size.experts] <= USEFUL]
    if not fitting:
        largest = sizes[0]
        return (
            f"keep all {experts} experts, or heal: at {largest.experts} the best criterion loses "
            f"{worst[largest.experts]:.3f} nats per token on its worst domain, more than {USEFUL}"
        )
    size = fitting[-1]
    name, value = _chosen(size)
    degree = "hardly told apart from the teacher" if value <= ALIKE else "useful, and worth healing"
    return (
        f"{size.experts} of {experts} experts by {name}: {size.share:.0%} of the parameters for "
        f"{value:.3f} nats per token on the worst domain ({degree}); int4 before fewer experts"
    )


def points(comparison: Comparison) -> list[dict[str, object]]:
    """What :func:`edgekit.shrink_plots.cost_of_size` draws."""
    result: list[dict[str, object]] = []
    for size in comparison.sizes:
        for candidate in size.table.candidates:
            divergence = candidate.divergence
            interval = divergence.domains[divergence.worst_domain]
            result.append(
                {
                    "criterion": candidate.name, "parameters": size.share,
                    "worst": divergence.worst,
                    "low": interval.value - interval.errors[0],
                    "high": interval.value + interval.errors[1], "control": candidate.control,
                }
            )  # fmt: skip
    return result


def _chosen(size: Size) -> tuple[str, float]:
    table = size.table
    return table.chosen, next(
        c.divergence.worst for c in table.candidates if c.name == table.chosen
    )


def _share(architecture: Architecture, experts: int) -> float:
    """Parameters with ``experts`` of a layer's, as a share of all."""
    kept = sum(s.parameters for s in architecture.tensors() if s.expert < experts)
    return kept / architecture.parameters()
