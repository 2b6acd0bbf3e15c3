"""Log-probabilities of a few outcomes, from logits over the whole vocabulary.

A loss that looks at few tokens still has a gradient for every logit. With g the gradient of their
log-probabilities, G its sum, and p the softmax, that of logit j is g_j - G p_j (g_j is 0 for tokens
that are not looked at), as log p_j = x_j - log Σ exp x. Where all other tokens are one outcome
more, of probability r and gradient h, it is (h / r - G - h) p_j for each of them, and
g_j - (G + h) p_j for those that are looked at. Written down, this needs one matrix [T, V] beside
the logits: p, which becomes the gradient. torch, which knows single operations, makes three and
more.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from edgekit.distill.targets import LOWEST, TopTargets


def log_probabilities(logits: Tensor, ids: Tensor) -> Tensor:
    """float32 [T, K] of tokens ``ids`` int64 [T, K], from logits [T, V]; can be differentiated
    once."""
    found: Tensor = _LogProbabilities.apply(logits.float(), ids, False)
    return found


def log_probabilities_and_rest(logits: Tensor, ids: Tensor) -> Tensor:
    """The same with that of all other tokens together as the last, float32 [T, K + 1]: ``LOWEST``,
    a constant, where there are no others."""
    if ids.shape[-1] == logits.shape[-1]:
        chosen = log_probabilities(logits, ids)
        return torch.cat([chosen, torch.full_like(chosen[:, :1], LOWEST)], -1)
    found: Tensor = _LogProbabilities.apply(logits.float(), ids, True)
    return found


def outcomes(logits: Tensor, targets: TopTargets) -> tuple[Tensor, Tensor]:
    """Log-probabilities that teacher and student give each kept token and, last, all others
    together: float32 [T, K + 1] each, from student logits [T, V]."""
    # float16 rounding in the cache leaves a mass of about 1
    mass = torch.logaddexp(targets.logprobs.logsumexp(-1), targets.tail)
    teacher = torch.cat([targets.logprobs, targets.tail[:, None]], -1) - mass[:, None]
    return teacher, log_probabilities_and_rest(logits, targets.ids)


class _LogProbabilities(torch.autograd.Function):
    """See the module."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, ids: Tensor, with_rest: bool) -> Tensor:
        whole = logits.log_softmax(-1)
        found = whole.gather(-1, ids)
        if with_rest:  # summed directly: 1 - sum loses all digits when it is small
            others = whole.scatter(-1, ids, -torch.inf)
            largest = others.amax(-1, keepdim=True)
            rest = others.sub_(largest).exp_().sum(-1, keepdim=True).log_() + largest
            found = torch.cat([found, rest], -1)
        ctx.save_for_backward(whole, ids, found[:, -1:] if with_rest else None)
        return found

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, outer: Tensor) -> tuple[Tensor, None, None]:
        whole, ids, rest = ctx.saved_tensors  # changed below: a second time is an error of torch
        total = outer.sum(-1, keepdim=True)
        if rest is None:
            gradient = whole.exp_().mul_(-total)
        else:
            inside = -total * whole.gather(-1, ids).exp()
            # p / r as one power: r alone may be too small for a float
            gradient = whole.sub_(rest).exp_().mul_(outer[:, -1:] - total * rest.exp())
            gradient.scatter_(-1, ids, inside)
            outer = outer[:, :-1]
        return gradient.scatter_add_(-1, ids, outer), None, None
