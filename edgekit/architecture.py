"""What a decoder language model is, resolved: layers, norms, attention, experts, tensors.

:func:`edgekit.describe.describe` makes an :class:`Architecture` from a ``config.json`` and the
table of families (:mod:`edgekit.family_table`). Shrink, quantize and both graph writers read it;
nothing else in edgekit knows how a family names or stores its tensors.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

from edgekit.mixers import (
    Attention,
    GatedDelta,
    HeadExperts,
    LatentAttention,
    Mixer,
    Norm,
    Rope,
    SelectiveScan,
    ShortConv,
    Temperature,
)
from edgekit.stored_parts import Part

__all__ = [
    "Architecture", "Attention", "Beside", "FeedForward", "GatedDelta", "HeadExperts",
    "LatentAttention", "Layer", "Mixer", "Mixture", "Norm", "Rope", "SelectiveScan", "ShortConv",
    "Temperature", "TensorSpec", "TensorTable",
]  # fmt: skip


@dataclass(frozen=True)
class FeedForward:
    """``down(act(gate x) * up x)``, or ``down(act(up x))`` without ``gate``."""

    gate: str
    up: str
    down: str
    size: int
    activation: str
    bias: bool = False


@dataclass(frozen=True)
class Mixture:
    """The sparse feed-forward of a layer.

    ``scoring`` says how router logits become gates: "softmax" over all experts, then top-k;
    "softmax_top_k" of the chosen logits; "sigmoid"; "sparsemixer" (arXiv 2409.12136, at inference);
    "sigmoid_input" multiplies the experts' input instead of their output. ``correction`` names a
    bias that counts for the choice only. Of ``num_groups`` groups the best ``top_groups`` stay,
    rated by their best expert or by the sum of their best two. With ``normalize`` the chosen gates
    are divided by their sum plus ``normalize_epsilon``, or by at least that (``normalize_clamp``).
    The router rates ``num_identities`` further experts that give their input back.
    With ``router_norm`` the router reads the layer's x, so normalized, times the vector
    ``router_scale`` and hidden_size ** -0.5; ``expert_scale`` names a factor per chosen expert.
    """

    router: str
    expert_names: tuple[tuple[str, str], ...]  # projection -> template with {e}
    num_experts: int
    num_experts_per_tok: int
    intermediate_size: int
    activation: str
    scoring: str = "softmax"
    normalize: bool = False
    normalize_epsilon: float = 0.0
    normalize_clamp: bool = False
    scaling: float = 1.0
    router_bias: bool = False
    correction: str = ""
    num_groups: int = 1
    top_groups: int = 1
    group_score: str = "top2"
    num_identities: int = 0
    jitter: float = 0.0
    router_norm: Norm | None = None
    router_scale: str = ""
    expert_scale: str = ""
    expert_bias: bool = False
    shared: FeedForward | None = None
    shared_gate: str = ""
    output_bias: str = ""

    @property
    def joined(self) -> bool:
        """Whether an expert's gate and up are one matrix "gate_up" with alternating rows."""
        return self.expert_names[0][0] == "gate_up"

    def expert(self, expert: int, projection: str) -> str:
        """Module name of one projection of one expert."""
        return dict(self.expert_names)[projection].replace("{e}", str(expert))


@dataclass(frozen=True)
class Beside:
    """Norms of a layer whose dense feed-forward and mixture read the same x and are added."""

    dense_post_norm: Norm
    mixture_norm: Norm
    mixture_post_norm: Norm


@dataclass(frozen=True)
class Layer:
    """One decoder layer: ``x += attention(norm x)``, ``x += feed_forward(norm x)``.

    What keeps a state instead of a cache may stand in the attention's place.

    A missing norm is the identity; post norms apply to what is added. ``parallel`` adds both to the
    same x; its feed-forward then reads the attention's norm if it has none of its own. With
    ``beside`` a layer has a dense feed-forward and a mixture; with ``shortcut`` too, whose mixture
    is added to the result of the next layer. ``scalar`` names a factor of the
    layer's result.
    """

    index: int
    attention: Mixer
    dense: FeedForward | None
    mixture: Mixture | None
    attention_norm: Norm | None
    attention_post_norm: Norm | None
    feed_forward_norm: Norm | None
    feed_forward_post_norm: Norm | None
    parallel: bool = False
    residual_scale: float = 1.0
    beside: Beside | None = None
    shortcut: bool = False
    scalar: str = ""

    def norms(self) -> Iterator[Norm]:
        """The norms that a layer has around its two parts."""
        for norm in (
            self.attention_norm, self.attention_post_norm,
            self.feed_forward_norm, self.feed_forward_post_norm,
        ):  # fmt: skip
            if norm is not None:
                yield norm


@dataclass(frozen=True)
class TensorSpec:
    """One tensor of the weights file: its name, shape and what it is.

    ``role`` is "embedding", "head", "linear" (dense matrix), "expert", "router", "norm", "bias",
    "latent" (a matrix that stays in floating point) or "vector". Matrices are
    ``[out_features, in_features]``. ``source`` says where a checkpoint keeps it.
    """

    name: str
    shape: tuple[int, ...]
    role: str
    source: Part
    layer: int = -1
    expert: int = -1
    projection: str = ""  # "q", "k", "v", "o", "gate", "up", "gate_up" or "down"

    @property
    def parameters(self) -> int:
        """Number of elements."""
        count = 1
        for side in self.shape:
            count *= side
        return count


class TensorTable(Protocol):
    """A model that is known by its tensors: a decoder's :class:`Architecture` or an encoder."""

    @property
    def hidden_size(self) -> int:
        """Width of the residual stream."""

    @property
    def by_name(self) -> dict[str, TensorSpec]:
        """The tensors by name."""

    def tensors(self) -> tuple[TensorSpec, ...]:
        """Every tensor of the unquantized weights, in the order of the file."""


@dataclass(frozen=True)
class Architecture:
    """A model's shape, resolved from its ``config.json``.

    ``intermediate_size`` is that of the dense layers. ``embedding_scale`` multiplies embeddings,
    ``logit_scale`` logits, which ``logit_soft_cap`` then bounds (0: none).
    """

    model_type: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    tie_word_embeddings: bool
    context_length: int  # positions the graphs may use
    layers: tuple[Layer, ...]
    embedding: str
    final_norm: Norm
    head: str
    head_bias: bool
    embedding_scale: float
    logit_scale: float
    logit_soft_cap: float
    expert_count_keys: tuple[str, ...]
    runtimes: tuple[str, ...]  # that have a graph for the family
    ignored: tuple[str, ...]  # regular expressions of tensors that the language model does not use
    specs: tuple[TensorSpec, ...]

    @property
    def num_hidden_layers(self) -> int:
        """Number of layers."""
        return len(self.layers)

    @cached_property
    def attentions(self) -> tuple[Attention | LatentAttention, ...]:
        """The attention of every layer that has one; every family's models have at least one."""
        mixers = (layer.attention for layer in self.layers)
        return tuple(m for m in mixers if isinstance(m, Attention | LatentAttention))

    @property
    def num_attention_heads(self) -> int:
        """Query heads of the first attention."""
        return self.attentions[0].num_heads

    @property
    def num_key_value_heads(self) -> int:
        """Key and value heads of the first attention as cached; 1 for latent attention."""
        first = self.attentions[0]
        return first.num_key_value_heads if isinstance(first, Attention) else 1

    @property
    def head_dim(self) -> int:
        """Cached dimensions of a key head of the first attention."""
        first = self.attentions[0]
        if isinstance(first, Attention):
            return first.head_dim
        return first.kv_lora_rank + first.rope_dim

    @cached_property
    def moe(self) -> Mixture | None:
        """The mixture of the first sparse layer; all sparse layers have the same shape."""
        return next((layer.mixture for layer in self.layers if layer.mixture), None)

    def is_sparse(self, layer: int) -> bool:
        """Whether ``layer`` has a mixture of experts."""
        return self.layers[layer].mixture is not None

    def router(self, layer: int) -> str:
        """Module name of the router of a sparse layer."""
        return self._mixture(layer).router

    def expert(self, layer: int, expert: int, projection: str) -> str:
        """Module name of one projection of one expert."""
        return self._mixture(layer).expert(expert, projection)

    def _mixture(self, layer: int) -> Mixture:
        mixture = self.layers[layer].mixture
        assert mixture is not None
        return mixture

    def tensors(self) -> tuple[TensorSpec, ...]:
        """Every tensor of the unquantized weights, in forward order.

        The experts of a layer are ordered by projection, then by expert, so that a file written
        in this order holds each projection of all experts as one array ``[E, N, K]``.
        """
        return self.specs

    @cached_property
    def by_name(self) -> dict[str, TensorSpec]:
        """The tensors by name."""
        return {spec.name: spec for spec in self.specs}

    def without(self, names: Iterable[str]) -> list[str]:
        """Those of ``names`` in a checkpoint that the model does without.

        They repeat what config and embedding say (some writers store these), or belong to a part
        that the family's row leaves out.
        """
        last = str(self.num_hidden_layers)
        patterns = [re.compile(p.replace("{n}", last)) for p in self.ignored]
        tied_head = self.head + ".weight" if self.tie_word_embeddings else None
        return [
            name
            for name in names
            if name == tied_head
            or name.endswith(".rotary_emb.inv_freq")
            or any(p.fullmatch(name) for p in patterns)
        ]

    def parameters(self) -> int:
        """Parameters in total."""
        return sum(spec.parameters for spec in self.specs)

    def active_parameters(self) -> int:
        """Parameters that one token uses (the embedding is a lookup, the tied head is used)."""
        top_k = self.moe.num_experts_per_tok if self.moe else 0
        return sum(
            spec.parameters
            for spec in self.specs
            if spec.expert < top_k and (spec.role != "embedding" or self.tie_word_embeddings)
        )

    def state_bytes(self, bytes_per_value: int = 4) -> int:
        """States of one sequence over all layers, whatever its length."""
        mixers = (layer.attention for layer in self.layers)
        states = (m for m in mixers if not isinstance(m, Attention | LatentAttention))
        return bytes_per_value * sum(state.state_values for state in states)

    def kv_bytes_per_token(self, bytes_per_value: int = 2) -> int:
        """Key and value cache of one token over all layers."""
        return bytes_per_value * sum(attention.cache_values for attention in self.attentions)
