"""Adds up what the routed experts of one layer do, while the model runs.

A :class:`LayerSums` hangs on a :class:`edgekit.distill.mixture.MixtureBlock` as its observer. It
sees the outputs that the forward computes anyway, of routed tokens only, so a pass costs about a
forward. Norms are taken in float32, sums in float64. Every token belongs to a *class*: the half of
the calibration text that it is in, times the domains, plus its domain.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edgekit.architecture import Mixture
from edgekit.distill.mixture import Routing

# what is summed per class and expert, in this order: N, Σg, Σ|f|, Σ|f|², Σg|f|, Σ(g|f|)²
SUMS = ("tokens", "gate_sum", "norm_sum", "norm_sq_sum", "gated_sum", "gated_sq_sum")
HALVES = 2


@dataclass
class TokenClasses:
    """The class of every token of the batch that runs: int64 [T]; set before each forward."""

    domains: int
    of_tokens: Tensor

    @property
    def count(self) -> int:
        """Number of classes."""
        return HALVES * self.domains


class LayerSums:
    """The sums of one sparse layer; names and shapes as in
    :class:`edgekit.distill.statistics.Statistics`, classes flattened to [S·D]."""

    def __init__(
        self,
        mixture: Mixture,
        hidden_size: int,
        classes: TokenClasses,
        device: torch.device | None = None,
    ) -> None:
        experts, wide = mixture.num_experts, mixture.intermediate_size
        choices = experts + mixture.num_identities
        self.classes = classes
        self.scoring = mixture.scoring
        self.experts = experts

        def zeros(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=torch.float64, device=device)

        self.per_class = zeros(experts, classes.count, len(SUMS))
        self.output_max = zeros(experts, classes.count)
        self.probability_sum = zeros(classes.domains, choices)
        self.entropy_sum = zeros(classes.domains)
        self.coactivation = zeros(experts, experts)
        self.logit_gram = zeros(choices, choices)
        self.gated_output_sum = zeros(experts, hidden_size)
        self.neuron_gated_sum = zeros(experts, wide)
        self.neuron_sq_sum = zeros(experts, wide)

    def routed(self, x: Tensor, routing: Routing) -> None:
        """Add up the router's decisions for a batch."""
        domain = self.classes.of_tokens % self.classes.domains
        logits = routing.logits.float()
        if self.scoring in ("sigmoid", "sigmoid_input"):
            scores = logits.sigmoid()
            shares = scores / scores.sum(-1, keepdim=True).clamp(min=1e-30)
        else:
            shares = logits.softmax(-1)
        entropy = torch.special.entr(shares).sum(-1)
        add_rows(self.probability_sum, domain, shares)
        add_rows(self.entropy_sum, domain, entropy)
        finite = logits.masked_fill(logits == -torch.inf, 0.0)  # experts that are not allowed
        self.logit_gram += (finite.T @ finite).double()
        chosen = torch.zeros(len(logits), logits.shape[1], device=logits.device)
        chosen.scatter_(1, routing.index, 1.0)
        chosen = chosen[:, : self.experts]
        self.coactivation += (chosen.T @ chosen).double()  # whole numbers, far below 2^24

    def expert(
        self, expert: int, tokens: Tensor, gate: Tensor, hidden: Tensor, output: Tensor
    ) -> None:
        """Add up one expert's outputs for a batch."""
        gate, hidden, output = gate.float(), hidden.float(), output.float()
        norms = torch.linalg.vector_norm(output, dim=-1).double()
        wide = gate.double()
        gated = wide * norms
        values = torch.stack(
            (torch.ones_like(norms), wide, norms, norms.square(), gated, gated.square()), 1
        )
        classes = self.classes.of_tokens[tokens]
        add_rows(self.per_class[expert], classes, values)
        largest = output.abs().amax(-1).double()
        self.output_max[expert].scatter_reduce_(0, classes, largest, "amax")
        self.gated_output_sum[expert] += (gate @ output).double()
        self.neuron_gated_sum[expert] += (gate @ hidden.abs()).double()
        self.neuron_sq_sum[expert] += hidden.square().sum(0).double()

    def arrays(self) -> dict[str, NDArray[np.float64]]:
        """The sums of :meth:`tensors` as numpy arrays."""
        return {name: tensor.cpu().numpy() for name, tensor in self.tensors().items()}

    def tensors(self) -> dict[str, Tensor]:
        """The sums by name, classes as [S, D] before the experts."""
        split = (HALVES, self.classes.domains)
        result = {
            name: self.per_class[:, :, i].T.unflatten(0, split) for i, name in enumerate(SUMS)
        }
        result["output_max"] = self.output_max.T.unflatten(0, split)
        for name in ("probability_sum", "entropy_sum", "coactivation", "logit_gram",
                     "gated_output_sum", "neuron_gated_sum", "neuron_sq_sum"):  # fmt: skip
            result[name] = getattr(self, name)
        return result


def add_cosines(total: Tensor, classes: TokenClasses, before: Tensor, after: Tensor) -> None:
    """Add to ``total`` [D] how alike a decoder layer's input and output [B, T, H] are."""
    before, after = before.float(), after.float()
    lengths = torch.linalg.vector_norm(before, dim=-1) * torch.linalg.vector_norm(after, dim=-1)
    alike = (before * after).sum(-1) / lengths.clamp(min=1e-30)
    add_rows(total, classes.of_tokens % classes.domains, alike.reshape(-1))


def add_rows(total: Tensor, rows: Tensor, values: Tensor) -> None:
    """``total[rows[i]] += values[i]``, on every device in the same order each time."""
    total.index_put_((rows,), values.to(total.dtype), accumulate=True)
