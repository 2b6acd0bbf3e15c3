"""Which weights of a loaded model are trained, and how they map to the checkpoint's tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from edgekit.architecture import Architecture
from edgekit.distill.loading import Model, sparse_blocks
from edgekit.errors import BadInputError

# part of the recipe's ``trainable`` -> fragments of transformers' parameter names
PARTS: dict[str, tuple[str, ...]] = {
    "router": (".mlp.gate.weight",),
    "norms": ("norm",),
    "attention": (".self_attn.",),
    "experts": (".mlp.experts.",),
    "mlp": (".mlp.gate_proj.", ".mlp.up_proj.", ".mlp.down_proj."),
    "embedding": ("embed_tokens", "lm_head"),
    "all": ("",),
}


def trainable_parameters(model: Model, parts: Sequence[str]) -> dict[str, torch.nn.Parameter]:
    """Switch on the gradients of ``parts`` and return them by name.

    Raises:
        BadInputError: the model has no such weights.
    """
    fragments = [f for part in parts for f in PARTS[part]]
    chosen = {
        name: parameter
        for name, parameter in model.named_parameters()
        if any(f in name for f in fragments)
    }
    if not chosen:
        raise BadInputError(
            f"[distill] trainable: the student has no weights of {', '.join(parts)}; name others"
        )
    for parameter in chosen.values():
        parameter.requires_grad_(True)
    return chosen


def named_weights(model: Model, architecture: Architecture) -> Mapping[str, torch.Tensor]:
    """The model's weights under the names of the checkpoint's tensors."""
    weights = {name: p for name, p in model.named_parameters() if ".mlp.experts." not in name}
    for layer, experts in sparse_blocks(model, architecture).items():
        weights[architecture.router(layer) + ".weight"] = model.model.layers[layer].mlp.gate.weight
        half = experts.gate_up_proj.shape[1] // 2
        for expert in range(experts.gate_up_proj.shape[0]):
            parts = {
                "gate": experts.gate_up_proj[expert, :half],
                "up": experts.gate_up_proj[expert, half:],
                "down": experts.down_proj[expert],
            }
            for projection, value in parts.items():
                weights[architecture.expert(layer, expert, projection) + ".weight"] = value
    return weights
