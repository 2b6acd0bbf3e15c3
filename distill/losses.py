"""Distillation losses against the teacher's top-k distribution with its tail.

    KL(p || q) = sum_{i in top k} p_i (log p_i - log q_i) + p_t (log p_t - log q_t)

where t lumps all other tokens together. By the log-sum inequality this is a lower bound of the KL
over the whole vocabulary, and it is exact when k covers it. Keeping the tail matters: renormalising
the top k alone teaches the student to put no mass elsewhere (biased, arXiv 2503.16870).
"""

from __future__ import annotations

import torch

from edgekit.distill.cache import LOWEST, TeacherTargets


def top_k_kl(
    logits: torch.Tensor, targets: TeacherTargets, temperature: float = 1.0
) -> torch.Tensor:
    """KL(teacher || student) in nats at each position: float32 [T] from logits [T, V].

    A ``temperature`` other than 1 softens both distributions over the k + 1 outcomes and multiplies
    the KL by its square, which keeps the size of the gradient (arXiv 1503.02531).
    """
    logits = logits.float()
    whole = logits.logsumexp(-1)
    chosen = logits.gather(-1, targets.ids) - whole[:, None]
    # float16 rounding in the cache leaves a mass of about 1
    mass = torch.logaddexp(targets.logprobs.logsumexp(-1), targets.tail)
    teacher = targets.logprobs - mass[:, None]
    teacher_tail = targets.tail - mass
    chosen_tail = _log_rest(logits, targets.ids) - whole
    if temperature != 1.0:
        teacher, teacher_tail = _softened(teacher, teacher_tail, temperature)
        chosen, chosen_tail = _softened(chosen, chosen_tail, temperature)
    head = (teacher.exp() * (teacher - chosen)).sum(-1)
    tail = teacher_tail.exp() * (teacher_tail - chosen_tail)
    return (head + tail) * temperature**2


def _softened(
    head: torch.Tensor, tail: torch.Tensor, temperature: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probabilities [T, K] and [T] with every outcome's probability to the power 1 / tau."""
    head, tail = head / temperature, tail / temperature
    whole = torch.logaddexp(head.logsumexp(-1), tail)
    return head - whole[:, None], tail - whole


def _log_rest(logits: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """Logsumexp outside ``ids``, summed directly: 1 - sum loses all digits when it is small."""
    if ids.shape[-1] == logits.shape[-1]:
        return logits.logsumexp(-1) + LOWEST
    return logits.scatter(-1, ids, -torch.inf).logsumexp(-1)
