"""Put edgekit's mixtures in the place of transformers' sparse blocks.

A *seat* takes the block's place in the decoder layer and is called as the layer calls it. What
stands beside the routed experts in a block (a shared expert and its gate) stays transformers' and
keeps its name, so that its weights load as ever.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from edgekit.architecture import Architecture
from edgekit.distill.mixture import MixtureBlock, Routing

BLOCKS = ("mlp", "feed_forward", "block_sparse_moe", "ffn")  # where layers keep a sparse block
SHARED = ("shared_expert", "shared_experts", "shared_mlp")
PAIRED = ("gpt_oss", "llama4_text")  # families whose blocks return a second value


class Seat(nn.Module):
    """A sparse block: routed experts plus what the block has beside them."""

    def __init__(self, mixture: MixtureBlock, block: nn.Module, paired: bool) -> None:
        super().__init__()
        self.mixture = mixture
        self.paired = paired
        self.shared = ""
        for name in SHARED:
            if isinstance(getattr(block, name, None), nn.Module):
                self.add_module(name, getattr(block, name))
                self.shared = name
        gate = getattr(block, "shared_expert_gate", None)
        if gate is not None:
            self.add_module("shared_expert_gate", gate)

    def forward(self, hidden_states: Tensor) -> Any:
        """x [B, T, H] to [B, T, H], with None beside it where the family expects a pair."""
        result = self.mixture(hidden_states)
        if self.shared:
            beside = getattr(self, self.shared)(hidden_states)
            if hasattr(self, "shared_expert_gate"):
                beside = torch.sigmoid(self.shared_expert_gate(hidden_states)) * beside
            result = result + beside
        return (result, None) if self.paired else result


class RouterSeat(nn.Module):
    """The router of a layer that calls router and experts by itself."""

    def __init__(self, mixture: MixtureBlock) -> None:
        super().__init__()
        self.mixture = mixture
        self.last: Routing | None = None  # until the experts take it

    def forward(self, hidden_states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x [T, H] to logits, gates and experts."""
        self.last = self.mixture.route(hidden_states)
        return self.last.logits, self.last.weight, self.last.index


class ExpertsSeat(nn.Module):
    """The experts of such a layer; they do what its router decided last."""

    def __init__(self, router: RouterSeat) -> None:
        super().__init__()
        self._router = [router]  # in a list: the router is no child of this module

    def forward(self, hidden_states: Tensor, *_: Tensor) -> Tensor:
        """x [T, H] to [T, H]."""
        router = self._router[0]
        routing, router.last = router.last, None
        assert routing is not None
        return router.mixture.combine(hidden_states, routing)


def take_seats(
    model: nn.Module, layers: nn.ModuleList, architecture: Architecture, dtype: torch.dtype
) -> dict[int, MixtureBlock]:
    """Replace the sparse block of every layer; returns the mixtures by layer."""
    mixtures: dict[int, MixtureBlock] = {}
    parts = len(architecture.layers) // len(layers)  # of a layer of transformers
    for description in architecture.layers:
        if description.mixture is None:
            continue
        block = MixtureBlock(description.mixture, architecture.hidden_size, dtype)
        mixtures[description.index] = block
        layer: Any = layers[description.index // parts]
        if hasattr(layer, "experts"):
            layer.router = RouterSeat(block)
            layer.experts = ExpertsSeat(layer.router)
            continue
        name = next(n for n in BLOCKS if _is_sparse(getattr(layer, n, None)))
        seat = Seat(block, getattr(layer, name), architecture.model_type in PAIRED)
        setattr(layer, name, seat)
    return mixtures


def _is_sparse(block: Any) -> bool:
    return any(hasattr(block, name) for name in ("experts", "input_linear"))
