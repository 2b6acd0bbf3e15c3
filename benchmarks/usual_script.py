"""How scripts for expert pruning usually measure: every expert on every token, in float32.

Written here after the published method (arXiv 2510.13999) as such scripts do it, to be compared
with edgekit's pass: hooks on transformers' expert modules keep what a layer reads, all experts run
on all of it, their outputs lie in memory together, and the router is computed once more, as a
softmax over all logits. That is right for routers of the Mixtral and Qwen3-MoE kind only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

BATCH = 8  # sequences of one forward


@dataclass
class Accumulators:
    """Sums of one layer over the tokens routed to each expert: float32 [E] each."""

    tokens: torch.Tensor
    gated_norms: torch.Tensor


def load(model: Path) -> Any:
    """transformers' model with the experts computed one after the other."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(
        model, dtype=torch.float32, experts_implementation="eager"
    ).eval()


@torch.inference_mode()
def saliencies(model: Any, ids: NDArray[np.int64], batch: int = BATCH) -> NDArray[np.float32]:
    """REAP saliency [layers, experts] from token ids [n, T]."""
    layers = [layer.mlp for layer in model.model.layers if hasattr(layer.mlp, "experts")]
    experts = len(layers[0].experts.gate_up_proj)
    sums = [Accumulators(*(torch.zeros(experts) for _ in range(2))) for _ in layers]
    handles = [
        layer.experts.register_forward_pre_hook(_hook(layer, found))
        for layer, found in zip(layers, sums, strict=True)
    ]
    for begin in range(0, len(ids), batch):
        model.model(input_ids=torch.from_numpy(ids[begin : begin + batch]), use_cache=False)
    for handle in handles:
        handle.remove()
    return torch.stack([s.gated_norms / s.tokens.clamp(min=1) for s in sums]).numpy()


def _hook(layer: Any, sums: Accumulators) -> Any:
    def watch(_: Any, args: tuple[torch.Tensor, ...]) -> None:
        x = args[0]  # [T, H]
        outputs = torch.stack([_expert(layer.experts, e, x) for e in range(len(sums.tokens))])
        probabilities = functional.linear(x, layer.gate.weight).softmax(-1)
        gates, chosen = probabilities.topk(layer.gate.top_k, dim=-1)
        if getattr(layer.gate, "norm_topk_prob", True):  # Mixtral always does
            gates = gates / gates.sum(-1, keepdim=True)
        routed = functional.one_hot(chosen, len(sums.tokens)).float()  # [T, k, E]
        weights = (routed * gates[..., None]).sum(1)  # [T, E]
        norms = outputs.norm(dim=-1).T  # [T, E]
        sums.tokens += routed.sum((0, 1))
        sums.gated_norms += (weights * norms).sum(0)

    return watch


def _expert(experts: Any, number: int, x: torch.Tensor) -> torch.Tensor:
    gate, up = functional.linear(x, experts.gate_up_proj[number]).chunk(2, dim=-1)
    return functional.linear(experts.act_fn(gate) * up, experts.down_proj[number])


def keep_set(saliency: NDArray[np.float32], keep: int) -> list[list[int]]:
    """The ``keep`` experts of each layer with the largest saliency, in their order."""
    best: Sequence[Any] = np.argsort(-saliency, axis=1, kind="stable")[:, :keep]
    return [sorted(row.tolist()) for row in best]
