"""From a router's logits to experts and gates, for every family's rule.

The rules are those of :class:`edgekit.architecture.Mixture`. Logits of minus infinity are experts
that are not there: no rule chooses them or counts them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from edgekit.architecture import Mixture


def choose_experts(
    logits: Tensor, mixture: Mixture, correction: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Experts int64 [T, k] and gates float32 [T, k] from logits float32 [T, C].

    ``correction`` [C] is added for the choice; the gates do not see it.
    """
    k = mixture.num_experts_per_tok
    if mixture.scoring == "sparsemixer":
        return _sparse_mixer(logits, mixture.jitter)
    if mixture.scoring in ("softmax_top_k", "sigmoid_input"):
        values, index = logits.topk(k, dim=-1)
        soft = mixture.scoring == "softmax_top_k"
        return index, values.softmax(-1) if soft else values.sigmoid()
    scores = logits.softmax(-1) if mixture.scoring == "softmax" else logits.sigmoid()
    choice = scores if correction is None else scores + correction
    choice = choice.masked_fill(logits == -torch.inf, -torch.inf)
    if mixture.num_groups > 1 and mixture.top_groups < mixture.num_groups:
        choice = _best_groups(choice, mixture)
    index = choice.topk(k, dim=-1).indices
    return index, _normalized(scores.gather(-1, index), mixture)


def _normalized(chosen: Tensor, mixture: Mixture) -> Tensor:
    if mixture.normalize:
        total = chosen.sum(-1, keepdim=True)
        if mixture.normalize_clamp:
            total = total.clamp(min=mixture.normalize_epsilon)
        else:
            total = total + mixture.normalize_epsilon
        chosen = chosen / total
    return chosen * mixture.scaling


def _best_groups(choice: Tensor, mixture: Mixture) -> Tensor:
    """``choice`` [T, E] with 0 outside the best groups of each token.

    Zero, not minus infinity, is what transformers and edgekit's graphs do; it matters where a
    correction makes scores negative.
    """
    grouped = choice.unflatten(-1, (mixture.num_groups, -1))
    if mixture.group_score == "max":
        rating = grouped.amax(-1)
    else:
        rating = grouped.topk(2, dim=-1).values.sum(-1)
    best = rating.topk(mixture.top_groups, dim=-1).indices
    outside = torch.ones_like(rating, dtype=torch.bool).scatter(-1, best, False)
    outside = outside[..., None] & (grouped != -torch.inf)
    return grouped.masked_fill(outside, 0.0).flatten(-2)


def _sparse_mixer(logits: Tensor, jitter: float) -> tuple[Tensor, Tensor]:
    """The best two experts (arXiv 2409.12136, at inference): the gate of each is its softmax over
    the logits within a relative distance of it, the second's without the first."""
    indices, gates = [], []
    left = logits
    for _ in range(2):
        best, index = left.max(-1, keepdim=True)
        scale = torch.maximum(logits.abs(), best)
        far = (best - logits) / scale > 2 * jitter
        gate = left.masked_fill(far, -torch.inf).softmax(-1).gather(-1, index)
        indices.append(index)
        gates.append(gate)
        left = left.scatter(-1, index, -torch.inf)
    return torch.cat(indices, -1), torch.cat(gates, -1)
