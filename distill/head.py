"""From hidden states to logits and losses, some positions at a time.

The logits of all positions, [tokens, vocabulary] in float32, would often be the largest thing in
memory: 4 GB for 8,192 tokens of a vocabulary of 128,000, and as much again for their gradient. Here
the gradient of a group of positions is taken as soon as its loss is known, in the forward pass, and
its logits are forgotten, so nothing is computed twice either.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from edgekit.distill.open_model import OpenModel
from edgekit.errors import BadInputError

CHUNK_BYTES = 1 << 27  # of the float32 logits of a group of positions
FLOAT32_BYTES = 4
RowsLoss = Callable[[Tensor, slice], Tensor]  # logits of some rows, and which, to their loss


class Head:
    """The head of an opened model.

    Args:
        opened: the model.
        vocab_size: the tokens that count; rows that pad the vocabulary are cut off. 0: all.
    """

    def __init__(self, opened: OpenModel, vocab_size: int = 0) -> None:
        self._module = opened.model.get_output_embeddings()
        architecture = opened.architecture
        self.vocab_size = vocab_size or architecture.vocab_size
        self._scale, self._cap = architecture.logit_scale, architecture.logit_soft_cap
        self.rows = max(1, CHUNK_BYTES // (FLOAT32_BYTES * self.vocab_size))

    def logits(self, hidden: Tensor) -> Tensor:
        """float32 [N, ``vocab_size``] of hidden states [N, H]."""
        logits: Tensor = self._module(hidden)[..., : self.vocab_size].float()
        if self._scale != 1.0:
            logits = logits * self._scale
        if self._cap:
            logits = torch.tanh(logits / self._cap) * self._cap
        return logits

    def chunks(self, count: int) -> list[slice]:
        """Groups of ``count`` positions whose logits may be in memory at once."""
        return [slice(a, min(a + self.rows, count)) for a in range(0, count, self.rows)]

    def summed(self, hidden: Tensor, loss: RowsLoss) -> Tensor:
        """Σ of ``loss`` over hidden states [N, H], a scalar that can be differentiated once."""
        trained = [p for p in self._module.parameters() if p.requires_grad]
        if not torch.is_grad_enabled():
            parts = [loss(self.logits(hidden[rows]), rows) for rows in self.chunks(len(hidden))]
            return torch.stack([part.sum() for part in parts]).sum()
        result: Tensor = _Summed.apply(hidden, self, loss, *trained)
        return result


def require_finite(logits: Tensor, source: str) -> None:
    """Refuse logits that are no numbers.

    Raises:
        BadInputError: names ``source``, the model that gave them.
    """
    if not logits.isfinite().all():
        raise BadInputError(
            f"{source}: gives logits that are not finite; the weights are damaged, download them "
            "again"
        )


class _Summed(torch.autograd.Function):
    """See the module: the gradients exist after the forward pass."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, head: Head, loss: RowsLoss, *trained: Tensor) -> Tensor:
        total = hidden.new_zeros((), dtype=torch.float64)
        of_hidden = torch.empty_like(hidden)
        of_trained: list[Tensor] = []
        for rows in head.chunks(len(hidden)):
            with torch.enable_grad():
                part = hidden[rows].detach().requires_grad_()
                value = loss(head.logits(part), rows).sum()
            of_hidden[rows], *found = torch.autograd.grad(value, [part, *trained])
            total += value.detach()
            if of_trained:
                for whole, more in zip(of_trained, found, strict=True):
                    whole += more
            else:
                of_trained = found
        of_trained = of_trained or [torch.zeros_like(parameter) for parameter in trained]
        ctx.save_for_backward(of_hidden, *of_trained)
        return total.float()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, outer: Tensor) -> tuple[Tensor | None, ...]:
        of_hidden, *of_trained = (value.mul_(outer) for value in ctx.saved_tensors)
        return (of_hidden, None, None, *of_trained)
