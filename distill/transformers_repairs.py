"""What transformers 5.5 gets wrong in a loaded model, put right before anything runs it."""

from __future__ import annotations

from typing import Any

from edgekit.errors import BadInputError


def repair(model: Any, directory: str) -> None:
    """Repair ``model`` in place where its family needs it; ``directory`` names it in errors."""
    repairs = {"deepseek_v2": _count_experts, "dbrx": _turn_experts}
    if action := repairs.get(model.config.model_type):
        action(model, directory)


def _count_experts(model: Any, directory: str) -> None:
    """DeepSeek-V2's group-limited router reads an attribute that its block never sets."""
    for layer in model.model.layers:
        if hasattr(layer.mlp, "experts"):
            layer.mlp.num_experts = layer.mlp.experts.num_experts


def _turn_experts(model: Any, directory: str) -> None:
    """DBRX's experts are multiplied as x W; the published model (databricks/dbrx) has x W^T.

    Square experts can be turned. Others do not even fit: their router expects the experts' width.
    """
    config = model.config.ffn_config
    if config.ffn_hidden_size != config.hidden_size:
        raise BadInputError(
            f"{directory}: transformers 5.5 cannot run DBRX, whose experts it multiplies from the "
            "wrong side; compile it without a reference (--no-parity)"
        )
    for block in model.transformer.blocks:
        for name in ("w1", "v1", "w2"):
            weight = getattr(block.ffn.experts.mlp, name)
            square = weight.data.view(-1, config.ffn_hidden_size, config.hidden_size)
            weight.data = square.transpose(1, 2).reshape(weight.shape)
