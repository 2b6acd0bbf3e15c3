"""Which experts of a layer become one, from what was measured of them.

Three published rules. Each gives groups with a centre and the weights of the members' average;
the centre's router row is the one that stays.

* REAM (Samsung, 2026): the most salient experts (REAP) are centres. From the most salient on, each
  takes the experts most like it until its group is full, so that most groups stay single.
* HC-SMoE (arXiv 2410.08589): average linkage of the experts' mean outputs; the most used member is
  the centre, the average is by use. The paper keeps all router rows and adds the gates of a
  cluster's members, which no runtime loads; here one row of a cluster stays.
* M-SMoE (arXiv 2310.01334): the most used experts are centres; every other joins the centre whose
  router logits are most like its own. The average is by use.

A router that chooses groups of experts first needs the same number of experts in each of its
groups, so those are grouped one by one. Experts that have to stay as they are make groups of one.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.cluster.hierarchy import linkage

from edgekit.distill.statistics import Statistics
from edgekit.errors import BadInputError

Method = Literal["ream", "hc_smoe", "m_smoe"]
Floats = NDArray[np.float64]
REAM_SHARE = 8  # REAM's groups have up to E / 8 experts: 16 of 128, 32 of 256


@dataclass(frozen=True)
class Group:
    """Experts that become one: ``members``, the centre first, and their ``weights`` (sum 1)."""

    members: tuple[int, ...]
    weights: tuple[float, ...]

    @property
    def centre(self) -> int:
        """The expert whose router row stays."""
        return self.members[0]


@dataclass(frozen=True)
class Evidence:
    """What was measured of the E experts of a layer.

    ``tokens`` [E] were routed to each; ``saliency`` [E] is REAP's; ``gated_output`` [E, H] is the
    sum over them of gate times output; ``mean_output`` [E, H] the mean of ungated outputs;
    ``logit_gram`` [E, E] the products of router logits, summed over tokens.
    """

    tokens: Floats
    saliency: Floats
    gated_output: Floats
    mean_output: Floats
    logit_gram: Floats

    def of(self, experts: NDArray[np.int64]) -> Evidence:
        """The same of some of the experts."""
        return Evidence(
            self.tokens[experts],
            self.saliency[experts],
            self.gated_output[experts],
            self.mean_output[experts],
            self.logit_gram[np.ix_(experts, experts)],
        )


def evidence(statistics: Statistics, layer: int) -> Evidence:
    """What collected statistics say of one layer.

    They have no outputs of experts on tokens that chose others, so the mean output is over the
    tokens routed to an expert, each times its gate: experts that serve different text look less
    alike than they are.
    """
    row = statistics.layers.index(layer)
    tokens = statistics.total("tokens")[row]
    gated = statistics.gated_output_sum[row]
    return Evidence(
        tokens=tokens,
        saliency=statistics.total("gated_sum")[row] / np.maximum(tokens, 1),
        gated_output=gated,
        mean_output=gated / np.maximum(tokens, 1)[:, None],
        logit_gram=statistics.logit_gram[row][: len(tokens), : len(tokens)],
    )


def group_experts(
    found: Evidence,
    method: Method,
    keep: int,
    *,
    router_groups: int = 1,
    verbatim: Collection[int] = (),
) -> tuple[Group, ...]:
    """``keep`` groups of all experts, by centre.

    Experts of ``verbatim`` stay single: the rest of the experts form the rest of the groups.

    Raises:
        BadInputError: ``keep`` cannot be shared out over the router's groups, or too many experts
            are to stay as they are.
    """
    count = len(found.tokens)
    if keep % router_groups or not 0 < keep <= count:
        raise BadInputError(
            f"{keep} of {count} experts cannot be kept: the router chooses among "
            f"{router_groups} groups of equal size; keep a multiple of {router_groups}"
        )
    result: list[Group] = []
    for experts in np.arange(count).reshape(router_groups, -1):
        single = [e for e in experts.tolist() if e in verbatim]
        result += _group(found, experts, method, keep // router_groups, single)
    return tuple(sorted(result, key=lambda group: group.centre))


def _group(
    found: Evidence,
    experts: NDArray[np.int64],
    method: Method,
    keep: int,
    single: list[int],
) -> list[Group]:
    rest = np.setdiff1d(experts, single)
    left = keep - len(single)
    if left < min(1, len(rest)):
        raise BadInputError(
            f"{len(single)} experts of {len(experts)} are protected and {keep} are to be kept, so "
            "there is none to merge the others into; keep more experts"
        )
    groups = [Group((e,), (1.0,)) for e in single]
    if len(rest):
        part = found.of(rest)
        for members in METHODS[method].group(part, left):
            worth = METHODS[method].worth(part)[members]
            groups.append(Group(tuple(rest[members].tolist()), tuple(_shares(worth))))
    return groups


def _shares(worth: Floats) -> list[float]:
    """``worth`` as shares of 1; equal ones if nothing is known of any."""
    total = worth.sum()
    shares = worth / total if total > 0 else np.full(len(worth), 1 / len(worth))
    return [float(share) for share in shares]


def ream_groups(found: Evidence, keep: int) -> list[list[int]]:
    """REAM's groups, the centre first."""
    centres = np.argsort(-found.saliency, kind="stable")[:keep].tolist()
    distance = ream_distance(found)
    limit = ream_group_size(len(found.saliency), keep)
    left = set(range(len(found.saliency))) - set(centres)
    groups = []
    for centre in centres:
        nearest = sorted(left, key=lambda e: (distance[centre, e], e))[: limit - 1]
        left -= set(nearest)
        groups.append([centre, *nearest])
    return groups


def ream_distance(found: Evidence) -> Floats:
    """1 minus the mean of two similarities in [0, 1], for every pair of experts [E, E].

    One is the cosine of the gated mean outputs; the other falls with the distance of the experts'
    router logits, as unit vectors over the tokens.
    """
    outputs = (1 + _cosine(found.gated_output @ found.gated_output.T)) / 2
    apart = np.sqrt(np.maximum(2 - 2 * _cosine(found.logit_gram), 0))
    furthest = apart.max()
    logits = 1 - apart / furthest if furthest > 0 else np.ones_like(apart)
    return 1 - (outputs + logits) / 2


def ream_group_size(experts: int, keep: int) -> int:
    """REAM's C, the most experts in a group: E / 8, as published, or more.

    It is more where E / 8 would leave fewer than half of the groups single, because few large
    groups beside many untouched experts are the point of the rule.
    """
    needed = 1 + -(-2 * (experts - keep) // keep)
    return max(2, experts // REAM_SHARE, needed)


def hc_smoe_groups(found: Evidence, keep: int) -> list[list[int]]:
    """Clusters by average linkage of the mean outputs, the most used member first."""
    count = len(found.tokens)
    clusters = {expert: [expert] for expert in range(count)}
    if keep < count:  # linkage names the pairs to join, nearest first, and numbers what they become
        for number, (one, other) in enumerate(linkage(found.mean_output, "average")[:, :2]):
            if len(clusters) == keep:
                break
            clusters[count + number] = clusters.pop(int(one)) + clusters.pop(int(other))
    return [sorted(members, key=lambda e: (-found.tokens[e], e)) for members in clusters.values()]


def m_smoe_groups(found: Evidence, keep: int) -> list[list[int]]:
    """The most used experts, each followed by those whose router logits resemble its own most."""
    order = np.argsort(-found.tokens, kind="stable").tolist()
    groups = [[centre] for centre in order[:keep]]
    likeness = _cosine(found.logit_gram)
    for expert in order[keep:]:
        groups[int(np.argmax(likeness[order[:keep], expert]))].append(expert)
    return groups


def _cosine(gram: Floats) -> Floats:
    """Cosines from products; 0 where a vector has no length."""
    length = np.sqrt(np.diagonal(gram))
    lengths = np.outer(length, length)
    cosine = np.divide(gram, lengths, out=np.zeros_like(gram), where=lengths > 0)
    return np.clip(cosine, -1, 1)


@dataclass(frozen=True)
class _Rule:
    """``group`` gives E experts in ``keep`` groups; ``worth`` [E] weighs them in the average."""

    group: Callable[[Evidence, int], list[list[int]]]
    worth: Callable[[Evidence], Floats]


METHODS: dict[Method, _Rule] = {
    "ream": _Rule(ream_groups, lambda found: found.saliency),
    "hc_smoe": _Rule(hc_smoe_groups, lambda found: found.tokens),
    "m_smoe": _Rule(m_smoe_groups, lambda found: found.tokens),
}
