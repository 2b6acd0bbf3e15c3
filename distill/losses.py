"""Distillation losses: divergences between the teacher's and the student's next token.

Every divergence here is a sum over outcomes of a term of t and s, the probabilities that teacher
and student give it. From ``top_k`` targets the terms of the kept tokens are added, and that of one
outcome more into which all others are lumped: by the log-sum inequality a lower bound of the whole,
and exact when the kept tokens are the vocabulary. At temperature 1, that is: the mass of the others
does not say what they would have softened, so training refuses another. Leaving the tail out would
teach the student to put no mass there (biased, arXiv 2503.16870). From draws i of the teacher, the
sum of terms is the mean of term(i) / t(i), weighted by their shares: unbiased, whatever the
divergence, though of a larger variance where the student has much mass that the teacher has not.

| divergence | term | source |
|---|---|---|
| forward_kl | t log(t / s) | |
| reverse_kl | s log(s / t) | arXiv 2306.08543 |
| jsd | β t log(t / m) + (1 - β) s log(s / m), m = β t + (1 - β) s | arXiv 2306.13649 |
| skew_forward | t log(t / (λ t + (1 - λ) s)) | arXiv 2402.03898 |
| skew_reverse | s log(s / (λ s + (1 - λ) t)) | arXiv 2402.03898 |
| total_variation | abs(t - s) / 2 | arXiv 2307.15190 |
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from edgekit.distill.outcomes import log_probabilities, outcomes
from edgekit.distill.targets import SampledTargets, TeacherTargets, TopTargets
from edgekit.errors import BadInputError
from edgekit.recipe import DistillSection
from edgekit.recipe_section import DivergenceName

IGNORED = -100  # a label that no token is
Term = Callable[[Tensor, Tensor], Tensor]  # of log t and log s


@dataclass(frozen=True)
class Loss:
    """What is minimised: (1 - ``cross_entropy``) divergence + ``cross_entropy`` cross-entropy.

    A ``temperature`` other than 1 softens both distributions and multiplies the divergence by its
    square, which keeps the size of the gradient (arXiv 1503.02531). ``beta`` is of jsd, ``skew`` of
    the skewed divergences.
    """

    divergence: DivergenceName = "forward_kl"
    beta: float = 0.5
    skew: float = 0.1
    cross_entropy: float = 0.0
    temperature: float = 1.0

    @classmethod
    def of(cls, section: DistillSection) -> Loss:
        """As a recipe says."""
        return cls(
            section.loss, section.beta, section.skew, section.cross_entropy, section.temperature
        )

    def __call__(self, logits: Tensor, targets: TeacherTargets, labels: Tensor) -> Tensor:
        """float32 [T] in nats, from logits [T, V] and the next tokens int64 [T], IGNORED if none.

        Raises:
            BadInputError: the targets do not carry what the divergence needs.
        """
        values = self.of_targets(logits, targets)
        if self.cross_entropy:
            taught = cross_entropy(logits.float(), labels, ignore_index=IGNORED, reduction="none")
            values = (1 - self.cross_entropy) * values + self.cross_entropy * taught
        return values

    def of_targets(self, logits: Tensor, targets: TeacherTargets) -> Tensor:
        """The divergence alone, float32 [T] in nats."""
        if isinstance(targets, SampledTargets):
            return self._of_draws(logits, targets)
        return self._of_top(logits, targets)

    def _of_top(self, logits: Tensor, targets: TopTargets) -> Tensor:
        teacher, student = outcomes(logits, targets)
        if self.temperature != 1.0:
            teacher = (teacher / self.temperature).log_softmax(-1)
            student = (student / self.temperature).log_softmax(-1)
        return self._term()(teacher, student).sum(-1) * self.temperature**2

    def _of_draws(self, logits: Tensor, targets: SampledTargets) -> Tensor:
        """The targets were drawn at the same temperature."""
        softened = logits if self.temperature == 1.0 else logits.float() / self.temperature
        student = log_probabilities(softened, targets.ids)
        if self.divergence == "forward_kl":
            values = -(targets.shares * student).sum(-1) - targets.entropy
        elif targets.logprobs is None:
            raise BadInputError(
                f"{self.divergence} needs the probabilities of the drawn tokens, which this cache "
                f"has not; capture it with --loss {self.divergence}, or with top_k targets"
            )
        else:
            ratio = self._term()(targets.logprobs, student) * (-targets.logprobs).exp()
            values = (targets.shares * ratio).sum(-1)
        return values * self.temperature**2

    def _term(self) -> Term:
        return {
            "forward_kl": _kl,
            "reverse_kl": lambda t, s: _kl(s, t),
            "jsd": lambda t, s: _jensen_shannon(t, s, self.beta),
            "skew_forward": lambda t, s: _kl(t, _mixture(t, s, self.skew)),
            "skew_reverse": lambda t, s: _kl(s, _mixture(s, t, self.skew)),
            "total_variation": lambda t, s: (t.exp() - s.exp()).abs() / 2,
        }[self.divergence]


def _kl(p: Tensor, q: Tensor) -> Tensor:
    return p.exp() * (p - q)


def _mixture(p: Tensor, q: Tensor, share: float) -> Tensor:
    """log(share p + (1 - share) q)."""
    return torch.logaddexp(p + math.log(share), q + math.log1p(-share))


def _jensen_shannon(t: Tensor, s: Tensor, beta: float) -> Tensor:
    middle = _mixture(t, s, beta)
    return beta * _kl(t, middle) + (1 - beta) * _kl(s, middle)
