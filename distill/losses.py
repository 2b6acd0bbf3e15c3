"""Distillation losses against the teacher's top-k distribution with its tail.

    KL(p || q) = sum_{i in top k} p_i (log p_i - log q_i) + p_t (log p_t - log q_t)

where t lumps all other tokens together. By the log-sum inequality this is a lower bound of the KL
over the whole vocabulary, and it is exact when k covers it. Keeping the tail matters: renormalising
the top k alone teaches the student to put no mass elsewhere (biased, arXiv 2503.16870).
"""

from __future__ import annotations

import torch

from edgekit.distill.cache import TeacherTargets


def top_k_kl(logits: torch.Tensor, targets: TeacherTargets) -> torch.Tensor:
    """KL(teacher || student) in nats at each position: float32 [T] from logits [T, V]."""
    logprobs = logits.float().log_softmax(-1)
    chosen = logprobs.gather(-1, targets.ids)
    # float16 rounding in the cache leaves a mass of about 1
    whole = torch.logaddexp(targets.logprobs.logsumexp(-1), targets.tail)
    teacher = targets.logprobs - whole[:, None]
    teacher_tail = targets.tail - whole
    head = (teacher.exp() * (teacher - chosen)).sum(-1)
    tail = teacher_tail.exp() * (teacher_tail - _log_rest(logprobs, targets.ids))
    return head + tail


def _log_rest(logprobs: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """Log of the mass outside ``ids``, summed directly: 1 - sum loses all digits when it is small."""
    if ids.shape[-1] == logprobs.shape[-1]:
        return logprobs.new_full(ids.shape[:-1], -60.0)
    inside = torch.zeros_like(logprobs, dtype=torch.bool).scatter(-1, ids, True)
    return logprobs.masked_fill(inside, -torch.inf).logsumexp(-1)
