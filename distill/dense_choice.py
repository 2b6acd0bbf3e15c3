"""Which experts, or which neurons of all experts, a dense feed-forward is made of.

The scores (arXiv 2605.28207): SF counts tokens, CP is the mean gate of the tokens that chose an
expert, ACP multiplies it by the root mean square of the expert's output over all tokens. DO-ACP
picks a set instead of a ranking: the one whose outputs, weighted by ACP, span the most volume, so
of two experts that say the same it takes one. Neurons are scored across experts by what they add
to the layer's output, E[g |h|] times the length of their column of down.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from edgekit.distill.dense_moments import Moments

Floats = NDArray[np.float64]
CHOICES = ("do_acp", "acp", "cp", "frequency", "random", "neurons")
SCALINGS = ("uniform", "marginal", "fitted")


def expert_scores(moments: Moments, choice: str, rng: np.random.Generator) -> Floats:
    """Worth of every expert of a layer, [E]; DO-ACP's is ACP, from which it starts."""
    chosen = np.maximum(moments.routed, 1)
    confidence = moments.gate_sum / chosen
    if choice == "frequency":
        return moments.routed / moments.tokens
    if choice == "cp":
        return confidence
    if choice == "random":
        return rng.random(len(confidence))
    return confidence * np.sqrt(np.diag(moments.routed_gram) / moments.tokens)


def choose_experts(
    moments: Moments, choice: str, count: int, rng: np.random.Generator
) -> tuple[list[int], Floats]:
    """``count`` experts of a layer in the order in which they are taken, and all scores [E]."""
    scores = expert_scores(moments, choice, rng)
    if choice != "do_acp":
        return np.argsort(-scores, kind="stable")[:count].tolist(), scores
    weights = np.sqrt(scores)
    kernel = weights[:, None] * weights * moments.routed_gram / moments.tokens
    ridge = float(np.diag(kernel).mean()) / count
    return greedy_log_determinant(kernel, ridge, count), scores


def greedy_log_determinant(kernel: Floats, ridge: float, count: int) -> list[int]:
    """Indices that greedily maximise ``log det(kernel[S, S] + ridge I)``, in their order.

    A row of the Cholesky factor per step keeps, for every candidate, the factor by which it would
    raise the determinant: count * n^2 operations instead of n determinants a step.

    Args:
        kernel: [n, n], symmetric and positive semidefinite.
    """
    gain = np.diag(kernel) + ridge  # by which each index would multiply the determinant
    rows = np.zeros((count, len(kernel)))
    taken: list[int] = []
    for step in range(count):
        gain[taken] = -np.inf
        best = int(np.argmax(gain))
        column = kernel[best] - rows[:step].T @ rows[:step, best]
        pivot = gain[best]
        rows[step] = column / np.sqrt(pivot) if pivot > 0 else 0.0  # nothing is left to span
        gain = gain - rows[step] ** 2
        taken.append(best)
    return taken


def choose_neurons(worth: Floats, count: int) -> dict[int, list[int]]:
    """The ``count`` best of all neurons ``worth`` [E, I]: neurons in ascending order by expert.

    Experts come in the order of what their chosen neurons are worth together.
    """
    best = np.argsort(-worth, axis=None, kind="stable")[:count]
    experts, neurons = np.unravel_index(best, worth.shape)
    chosen = {int(e): sorted(neurons[experts == e].tolist()) for e in np.unique(experts)}
    total = {e: float(worth[e, list(kept)].sum()) for e, kept in chosen.items()}
    return {e: chosen[e] for e in sorted(chosen, key=lambda e: -total[e])}


def scales(
    moments: Moments, chosen: Sequence[int], kind: str, equivalents: float | None = None
) -> Floats:
    """The constant [n] that stands for the gate of each of the ``chosen`` rows of ``moments``.

    "uniform" shares the mean sum of a token's gates among them, "marginal" is each one's mean gate
    over all tokens, "fitted" leaves the smallest squared error of the layer's output.

    Args:
        equivalents: how many whole experts the chosen stand for; their number if not given.
    """
    rows = list(chosen)
    if kind == "uniform":
        mass = moments.gate_sum.sum() / moments.tokens
        return np.full(len(rows), mass / (equivalents or len(rows)))
    if kind == "marginal":
        return moments.gate_sum[[moments.experts[row] for row in rows]] / moments.tokens
    if kind == "fitted":
        return _fitted(moments, rows)
    raise ValueError(f"no scaling {kind!r}")


def _fitted(moments: Moments, rows: list[int]) -> Floats:
    """Least squares on the moments; the shared expert stays as it is.

    A little of the mean diagonal keeps experts that say the same from cancelling each other.
    """
    gram = moments.gram[np.ix_(rows, rows)]
    right = moments.cross[rows]
    if moments.shared:
        right = right - moments.gram[rows, -1] * moments.shared_gate
    ridge = 1e-6 * float(np.diag(gram).mean()) + np.finfo(np.float64).tiny
    return np.asarray(np.linalg.solve(gram + ridge * np.eye(len(rows)), right), np.float64)


def reconstruction_error(moments: Moments, chosen: Sequence[int], scale: Floats) -> float:
    """Squared error of the dense feed-forward's output, relative to the squared output."""
    rows, factors = list(chosen), np.asarray(scale)
    if moments.shared:
        rows, factors = [*rows, len(moments.gram) - 1], np.append(factors, moments.shared_gate)
    gram = moments.gram[np.ix_(rows, rows)]
    error = factors @ gram @ factors - 2 * moments.cross[rows] @ factors + moments.power
    return max(0.0, float(error / moments.power)) if moments.power > 0 else 0.0
