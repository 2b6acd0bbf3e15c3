"""``criterion = "auto"``: keep the experts whose absence was measured to cost least.

No criterion wins in every family (arXiv 2607.16721), and their differences are small beside what
chance does. So the keep-sets of several criteria are tried on the teacher itself, as masks, and
the KL to it is measured on held-out text of every domain. What counts is the domain where a
keep-set is worst: the best has the lowest KL there. Those that are not worse than it in their own
worst domain, beyond chance, are told apart by the mean. A few random keep-sets are measured beside
them. They are a control and cannot be chosen: if one of them is no worse than the winner, the
criteria know nothing that chance does not.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict

from edgekit.architecture import Mixture
from edgekit.bootstrap import FEWEST
from edgekit.distill.criteria import CRITERIA
from edgekit.distill.divergence import Divergence, Measured, Targets
from edgekit.distill.keep import Choice, Kept, choose
from edgekit.distill.masked import Mask, measure_masked
from edgekit.distill.open_model import OpenModel
from edgekit.distill.statistics import Statistics
from edgekit.progress import Progress

CONTROLS = 3  # random keep-sets that are measured beside the criteria


@dataclass(frozen=True)
class Candidate:
    """A keep-set; a ``control`` is measured and never chosen."""

    mask: Mask
    control: bool = False


class CandidateResult(BaseModel):
    """What a candidate costs; ``same_as`` names an earlier one with the same experts."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    control: bool
    same_as: str
    divergence: Divergence


class AutomaticReport(BaseModel):
    """The table of all candidates, best worst domain first, and why one was chosen.

    ``tied`` could not be told from the best on the worst domain. ``beats_chance`` is whether the
    winner is better than every control beyond chance; None without controls, and where a domain has
    too few of the held-out ``sequences`` to tell.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    chosen: str
    reason: str
    tied: list[str]
    beats_chance: bool | None
    candidates: list[CandidateResult]
    sequences: dict[str, int]


def candidates_of(
    statistics: Statistics,
    mixture: Mixture,
    keep: int,
    seed: int,
    previous: Kept | None = None,
    margin: float = 0.0,
) -> tuple[dict[str, Choice], dict[str, Candidate]]:
    """The choice of ``keep`` experts by every criterion, and all to measure: controls too."""
    choices = {
        name: choose(statistics, mixture, keep, name, seed, previous, margin)
        for name in CRITERIA
        if name != "random"
    }
    candidates = {name: Candidate(choice.kept) for name, choice in choices.items()}
    for number in range(CONTROLS):
        control = choose(statistics, mixture, keep, "random", seed + number)
        candidates[f"random-{number}"] = Candidate(control.kept, control=True)
    return choices, candidates


def choose_by_measurement(
    opened: OpenModel, candidates: Mapping[str, Candidate], targets: Targets, progress: Progress
) -> AutomaticReport:
    """Measure every candidate on the held-out text of ``targets`` and choose one.

    ``opened`` is the teacher, whose answers ``targets`` are.
    """
    measured: dict[str, Measured] = {}
    same_as: dict[str, str] = {}
    seen: dict[tuple[tuple[int, frozenset[int]], ...], str] = {}
    for name, candidate in candidates.items():
        key = tuple((layer, frozenset(kept)) for layer, kept in sorted(candidate.mask.items()))
        first = same_as[name] = seen.setdefault(key, name)
        if first == name:
            measured[name] = measure_masked(opened, candidate.mask, targets, progress, name)
        else:
            measured[name] = measured[first]
    divergences = {name: values.divergence() for name, values in measured.items()}
    eligible = [name for name, candidate in candidates.items() if not candidate.control]
    best = min(eligible, key=lambda name: divergences[name].worst)
    tied = [name for name in eligible if not measured[name].worse_than(measured[best])]
    chosen = min(tied, key=lambda name: divergences[name].all.value)
    controls = [name for name, candidate in candidates.items() if candidate.control]
    beats = [measured[name].worse_than(measured[chosen]) for name in controls]
    counts = _counts(measured[chosen])
    few = [domain for domain, count in counts.items() if count < FEWEST]
    return AutomaticReport(
        chosen=chosen,
        reason=_reason(
            chosen, tied, len({same_as[n] for n in eligible}) > 1, divergences, all(beats), few
        ),
        tied=tied,
        beats_chance=all(beats) if controls and not few else None,
        candidates=[
            CandidateResult(
                name=name,
                control=candidates[name].control,
                same_as=same_as[name] if same_as[name] != name else "",
                divergence=divergences[name],
            )
            for name in sorted(divergences, key=lambda name: divergences[name].worst)
        ],
        sequences=counts,
    )


def _reason(
    chosen: str,
    tied: list[str],
    rivals: bool,
    divergences: Mapping[str, Divergence],
    beats_chance: bool,
    few: list[str],
) -> str:
    """Some sentences for the report; ``rivals`` is whether the criteria disagree, ``few`` are the
    domains with too few sequences for a comparison beyond chance."""
    mine = divergences[chosen]
    text = (
        f"{chosen} loses {mine.worst:.4f} nats per token on its worst domain, {mine.worst_domain}"
    )
    others = [name for name in tied if divergences[name] != mine]
    if not rivals:
        text += "; every criterion keeps these experts"
    elif others:
        text += (
            f"; {', '.join(others)} cannot be told from it there, and its mean of "
            f"{mine.all.value:.4f} over all domains is the lowest"
        )
    else:
        text += ", less than the others do"
    if not beats_chance:
        text += ". A random choice of experts is no worse: do not believe the difference"
    if few:
        text += (
            f". Fewer than {FEWEST} held-out sequences of {', '.join(few)}: what is a difference "
            "and what is chance cannot be told there; raise [data] held_out_tokens"
        )
    return text + "."


def _counts(measured: Measured) -> dict[str, int]:
    return {domain: measured.domains.count(domain) for domain in sorted(set(measured.domains))}
