"""What each expert of a model does on a set of sequences.

REAP (arXiv 2510.13999, eq. 9): the saliency of expert j is the mean, over the tokens routed to it,
of its gate value times the norm of its output,

    S_j = 1 / |X_j| * sum over x in X_j of g_j(x) * ||f_j(x)||_2 .
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from edgekit.architecture import Architecture
from edgekit.distill.loading import Model, sparse_blocks
from edgekit.progress import Progress
from edgekit.sequences import TokenSequence, equal_length_runs, stacked

BATCH_TOKENS = 1024


@dataclass
class ExpertStatistics:
    """Sums over the tokens routed to each expert, per sparse layer: arrays [layers, experts]."""

    layers: tuple[int, ...]
    tokens: NDArray[np.int64]
    gate_sum: NDArray[np.float64]
    saliency_sum: NDArray[np.float64]

    @property
    def frequency(self) -> NDArray[np.float64]:
        """Share of routed tokens [layers, experts]; each row sums to 1."""
        return self.tokens / np.maximum(self.tokens.sum(1, keepdims=True), 1)

    @property
    def reap(self) -> NDArray[np.float64]:
        """REAP saliency [layers, experts]; 0 for an expert that was never used."""
        return self.saliency_sum / np.maximum(self.tokens, 1)


@torch.inference_mode()
def collect_statistics(
    model: Model,
    architecture: Architecture,
    sequences: Sequence[TokenSequence],
    progress: Progress,
    description: str = "measure the experts",
) -> ExpertStatistics:
    """Run the sequences through the model and watch every expert."""
    assert architecture.moe is not None
    blocks = sparse_blocks(model, architecture)
    shape = (len(blocks), architecture.moe.num_experts)
    result = ExpertStatistics(
        tuple(blocks), np.zeros(shape, np.int64), np.zeros(shape), np.zeros(shape)
    )
    handles = [
        experts.register_forward_pre_hook(_watch(result, row), with_kwargs=True)
        for row, experts in enumerate(blocks.values())
    ]
    try:
        total = sum(len(s.tokens) for s in sequences)
        with progress.task(description, total) as task:
            for begin, end in equal_length_runs(sequences, BATCH_TOKENS):
                ids = torch.from_numpy(stacked(sequences[begin:end]))
                model.model(input_ids=ids, use_cache=False)
                task.advance(ids.numel())
    finally:
        for handle in handles:
            handle.remove()
    return result


def _watch(result: ExpertStatistics, row: int) -> Any:
    def hook(experts: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        names = ("hidden_states", "top_k_index", "top_k_weights")
        given = dict(zip(names, args)) | kwargs
        hidden, index, weight = (given[name] for name in names)
        for expert in index.unique().tolist():
            token, slot = torch.where(index == expert)
            gates = weight[token, slot].double()
            norms = expert_output(experts, expert, hidden[token]).norm(dim=-1).double()
            result.tokens[row, expert] += len(token)
            result.gate_sum[row, expert] += gates.sum().item()
            result.saliency_sum[row, expert] += (gates * norms).sum().item()

    return hook


def expert_output(experts: Any, expert: int, hidden: torch.Tensor) -> torch.Tensor:
    """Output [T, H] of one expert before the gate."""
    gate, up = torch.nn.functional.linear(hidden, experts.gate_up_proj[expert]).chunk(2, dim=-1)
    return torch.nn.functional.linear(experts.act_fn(gate) * up, experts.down_proj[expert])
