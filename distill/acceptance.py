"""How often a teacher would accept what a student drafts, in speculative decoding.

A token that the student draws is accepted with probability min(1, t / s), so at a position the
share that is accepted is Σ min(t, s), which is 1 less the total variation (arXiv 2211.17192,
section 3). Training with ``total_variation`` raises just that.

From ``top_k`` targets two bounds are known. min(Σ a, Σ b) >= Σ min(a, b), so with all other tokens
lumped into one outcome the sum is at least the whole one: an upper bound. Without that outcome only
terms that are not negative are missing: a lower bound. They differ by min(tail of t, tail of s).
"""

from __future__ import annotations

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from edgekit.distill.outcomes import outcomes
from edgekit.distill.targets import TopTargets


class Acceptance(BaseModel):
    """The share of a student's drafted tokens that the teacher accepts lies between these two."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    at_least: float
    at_most: float


def acceptance(logits: Tensor, targets: TopTargets) -> Tensor:
    """float32 [T, 2]: a lower and an upper bound of the acceptance, from student logits [T, V]."""
    teacher, student = outcomes(logits, targets)
    shared = torch.minimum(teacher, student).exp()
    return torch.stack([shared[:, :-1].sum(-1), shared.sum(-1)], -1)


def tokens_per_verification(accepted: float, draft_tokens: int) -> float:
    """Expected tokens that one pass of the teacher yields, its own included, when the student
    drafts ``draft_tokens`` and each is accepted with probability ``accepted``, whatever became of
    the others: (1 - a^(k + 1)) / (1 - a) (arXiv 2211.17192, equation 1)."""
    if accepted == 1:
        return float(draft_tokens + 1)
    return (1 - accepted ** (draft_tokens + 1)) / (1 - accepted)
