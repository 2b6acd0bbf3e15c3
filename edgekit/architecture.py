"""The architecture table: what a decoder language model is, as data.

``FAMILIES`` has one row per ``model_type``. :func:`describe` turns a ``config.json`` into an
:class:`Architecture`, which shrink, quantize and both graph writers read; nothing else in edgekit
knows how a family names its tensors. A new family of the same vocabulary is a new row.

Every family here is a pre-norm decoder: RMSNorm, grouped-query attention with rotary positions,
RMSNorm, SwiGLU feed-forward (dense, or a softmax-routed mixture of experts).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from edgekit.config_values import ConfigReader
from edgekit.errors import BadInputError
from edgekit.rope import inverse_frequencies

EMBEDDING = "model.embed_tokens.weight"
FINAL_NORM = "model.norm.weight"
HEAD = "lm_head.weight"

MAX_HEAD_DIM = 4096
MAX_EXPERTS = 1 << 18  # in all layers; each is three tensors, described one by one


@dataclass(frozen=True)
class MoeNames:
    """How a family names its experts and which config keys describe them."""

    block: str  # prefix inside a layer: "mlp" or "block_sparse_moe"
    gate: str
    up: str
    down: str
    num_experts_keys: tuple[str, ...]
    intermediate_key: str
    norm_topk_prob: bool | None  # fixed by the family, or None: read from the config


@dataclass(frozen=True)
class Family:
    """One row of the table."""

    model_type: str
    hf_class: str
    qk_norm: bool = False
    qkv_bias: bool | None = False  # None: read ``attention_bias`` from the config
    o_bias: bool = False  # only with attention_bias in the config
    moe: MoeNames | None = None
    dense_type: str = ""  # the family of a dense student with the same attention


_QWEN_EXPERTS = MoeNames(
    "mlp", "gate_proj", "up_proj", "down_proj",
    ("num_experts", "num_local_experts"), "moe_intermediate_size", None,
)  # fmt: skip
_MIXTRAL_EXPERTS = MoeNames(
    "block_sparse_moe", "w1", "w3", "w2",
    ("num_local_experts", "num_experts"), "intermediate_size", True,
)  # fmt: skip

FAMILIES: dict[str, Family] = {
    row.model_type: row
    for row in (
        Family("llama", "LlamaForCausalLM", qkv_bias=None, o_bias=True),
        Family("mistral", "MistralForCausalLM"),
        Family("qwen2", "Qwen2ForCausalLM", qkv_bias=True),
        Family("qwen3", "Qwen3ForCausalLM", qk_norm=True, qkv_bias=None, o_bias=True),
        Family("mixtral", "MixtralForCausalLM", moe=_MIXTRAL_EXPERTS, dense_type="mistral"),
        Family(
            "qwen3_moe", "Qwen3MoeForCausalLM", qk_norm=True, qkv_bias=None, o_bias=True,
            moe=_QWEN_EXPERTS, dense_type="qwen3",
        ),
    )
}  # fmt: skip


@dataclass(frozen=True)
class TensorSpec:
    """One tensor of a checkpoint: its name, shape and what it is.

    ``role`` is "embedding", "head", "linear" (dense matrix), "expert", "router", "norm" or
    "bias". Matrices are ``[out_features, in_features]``.
    """

    name: str
    shape: tuple[int, ...]
    role: str
    layer: int = -1
    expert: int = -1
    projection: str = ""  # "q", "k", "v", "o", "gate", "up" or "down"

    @property
    def parameters(self) -> int:
        """Number of elements."""
        count = 1
        for side in self.shape:
            count *= side
        return count


@dataclass(frozen=True)
class Moe:
    """The sparse feed-forward of an architecture.

    The router is softmax over all experts, then top-k; with ``norm_topk_prob`` the chosen
    probabilities are divided by their sum.
    """

    num_experts: int
    num_experts_per_tok: int
    intermediate_size: int
    norm_topk_prob: bool
    sparse_layers: tuple[bool, ...]


@dataclass(frozen=True)
class Architecture:
    """A model's shape, resolved from its ``config.json``."""

    family: Family
    vocab_size: int
    hidden_size: int
    intermediate_size: int  # of the dense feed-forward layers
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    rms_norm_eps: float
    tie_word_embeddings: bool
    attention_bias: bool
    context_length: int  # positions the graphs may use
    inv_freq: tuple[float, ...]  # rotary inverse frequencies, [head_dim / 2]
    moe: Moe | None

    @property
    def model_type(self) -> str:
        """The Hugging Face ``model_type``."""
        return self.family.model_type

    def is_sparse(self, layer: int) -> bool:
        """Whether ``layer`` has a mixture of experts."""
        return self.moe is not None and self.moe.sparse_layers[layer]

    def layer_prefix(self, layer: int) -> str:
        """Such as ``model.layers.3.``."""
        return f"model.layers.{layer}."

    def attention(self, layer: int, projection: str) -> str:
        """Module name of the "q", "k", "v" or "o" projection (without ``.weight``)."""
        return f"{self.layer_prefix(layer)}self_attn.{projection}_proj"

    def feed_forward(self, layer: int, projection: str) -> str:
        """Module name of a dense feed-forward projection: "gate", "up" or "down"."""
        return f"{self.layer_prefix(layer)}mlp.{projection}_proj"

    def router(self, layer: int) -> str:
        """Module name of the router of a sparse layer."""
        return f"{self.layer_prefix(layer)}{self._names.block}.gate"

    def expert(self, layer: int, expert: int, projection: str) -> str:
        """Module name of one projection of one expert."""
        leaf = {"gate": self._names.gate, "up": self._names.up, "down": self._names.down}
        return f"{self.layer_prefix(layer)}{self._names.block}.experts.{expert}.{leaf[projection]}"

    @property
    def _names(self) -> MoeNames:
        assert self.family.moe is not None
        return self.family.moe

    def tensors(self) -> tuple[TensorSpec, ...]:
        """Every tensor of the unquantized checkpoint, in forward order.

        The experts of a layer are ordered by projection, then by expert, so that a file written
        in this order holds each projection of all experts as one array ``[E, N, K]``.
        """
        return self._tensors

    @cached_property
    def _tensors(self) -> tuple[TensorSpec, ...]:
        specs = [TensorSpec(EMBEDDING, (self.vocab_size, self.hidden_size), "embedding")]
        for layer in range(self.num_hidden_layers):
            specs += self._attention_specs(layer)
            specs += self._moe_specs(layer) if self.is_sparse(layer) else self._dense_specs(layer)
        specs.append(TensorSpec(FINAL_NORM, (self.hidden_size,), "norm"))
        if not self.tie_word_embeddings:
            specs.append(TensorSpec(HEAD, (self.vocab_size, self.hidden_size), "head"))
        return tuple(specs)

    def _attention_specs(self, layer: int) -> list[TensorSpec]:
        prefix, hidden = self.layer_prefix(layer), self.hidden_size
        queries = self.num_attention_heads * self.head_dim
        keys = self.num_key_value_heads * self.head_dim
        rows = {"q": queries, "k": keys, "v": keys}
        specs = [TensorSpec(prefix + "input_layernorm.weight", (hidden,), "norm", layer)]
        for name, out in rows.items():
            module = self.attention(layer, name)
            specs.append(
                TensorSpec(module + ".weight", (out, hidden), "linear", layer, projection=name)
            )
            if self.attention_bias:
                specs.append(TensorSpec(module + ".bias", (out,), "bias", layer))
        module = self.attention(layer, "o")
        specs.append(
            TensorSpec(module + ".weight", (hidden, queries), "linear", layer, projection="o")
        )
        if self.attention_bias and self.family.o_bias:
            specs.append(TensorSpec(module + ".bias", (hidden,), "bias", layer))
        if self.family.qk_norm:
            for name in ("q_norm", "k_norm"):
                specs.append(
                    TensorSpec(f"{prefix}self_attn.{name}.weight", (self.head_dim,), "norm", layer)
                )
        specs.append(
            TensorSpec(prefix + "post_attention_layernorm.weight", (hidden,), "norm", layer)
        )
        return specs

    def _dense_specs(self, layer: int) -> list[TensorSpec]:
        wide, hidden = self.intermediate_size, self.hidden_size
        shapes = {"gate": (wide, hidden), "up": (wide, hidden), "down": (hidden, wide)}
        return [
            TensorSpec(
                self.feed_forward(layer, p) + ".weight", shape, "linear", layer, projection=p
            )
            for p, shape in shapes.items()
        ]

    def _moe_specs(self, layer: int) -> list[TensorSpec]:
        assert self.moe is not None
        wide, hidden = self.moe.intermediate_size, self.hidden_size
        shapes = {"gate": (wide, hidden), "up": (wide, hidden), "down": (hidden, wide)}
        router = TensorSpec(
            self.router(layer) + ".weight", (self.moe.num_experts, hidden), "router", layer
        )
        return [router] + [
            TensorSpec(self.expert(layer, e, p) + ".weight", shape, "expert", layer, e, p)
            for p, shape in shapes.items()
            for e in range(self.moe.num_experts)
        ]

    def parameters(self) -> int:
        """Parameters in total."""
        return sum(spec.parameters for spec in self.tensors())

    def active_parameters(self) -> int:
        """Parameters that one token uses (the embedding is a lookup, the tied head is used)."""
        total = 0
        for spec in self.tensors():
            if spec.role == "expert":
                assert self.moe is not None
                if spec.expert >= self.moe.num_experts_per_tok:
                    continue
            if spec.role == "embedding" and not self.tie_word_embeddings:
                continue
            total += spec.parameters
        return total

    def kv_bytes_per_token(self, bytes_per_value: int = 2) -> int:
        """Key and value cache of one token over all layers."""
        return (
            2 * self.num_hidden_layers * self.num_key_value_heads * self.head_dim * bytes_per_value
        )


def describe(config: Mapping[str, Any], source: str = "config.json") -> Architecture:
    """Resolve a ``config.json``; ``source`` names it in errors.

    Raises:
        BadInputError: the family is unknown, remote code is asked for, or a value is absent,
            of the wrong type, out of range, or contradicts another.
    """
    read = ConfigReader(config, source)
    family = _family(config, source)
    heads = read.count("num_attention_heads")
    hidden = read.count("hidden_size")
    layers = read.count("num_hidden_layers", maximum=1_000)
    head_dim = read.count("head_dim", default=max(hidden // heads, 1))
    kv_heads = read.count("num_key_value_heads", default=heads)
    if heads % kv_heads:
        raise read.bad("num_key_value_heads", f"{kv_heads} does not divide {heads} heads")
    if head_dim > MAX_HEAD_DIM:
        raise read.bad("head_dim", f"is {head_dim}, expected at most {MAX_HEAD_DIM}")
    if head_dim % 2:
        raise read.bad("head_dim", f"{head_dim} is odd; rotary positions need pairs")
    if read.text("hidden_act", default="silu") not in ("silu", "swish"):
        raise read.bad("hidden_act", f"{config['hidden_act']!r} is not supported; only silu is")
    moe = _moe(family, read, layers)
    dense = moe is None or not all(moe.sparse_layers)
    bias = family.qkv_bias
    return Architecture(
        family=family,
        vocab_size=read.count("vocab_size"),
        hidden_size=hidden,
        intermediate_size=read.count("intermediate_size", default=None if dense else 1),
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=head_dim,
        rms_norm_eps=read.number("rms_norm_eps", default=1e-6, low=0.0, high=1.0),
        tie_word_embeddings=read.flag("tie_word_embeddings", default=False),
        attention_bias=read.flag("attention_bias", default=False) if bias is None else bias,
        context_length=_context_length(read),
        inv_freq=inverse_frequencies(read, head_dim),
        moe=moe,
    )


def _family(config: Mapping[str, Any], source: str) -> Family:
    name = config.get("model_type")
    if isinstance(name, str) and name in FAMILIES:
        return FAMILIES[name]
    if config.get("auto_map"):
        raise BadInputError(
            f"{source}: model_type {name!r} needs code from the checkpoint (auto_map), which "
            f"edgekit never runs; supported families are {', '.join(FAMILIES)}"
        )
    raise BadInputError(
        f"{source}: model_type {name!r} is not supported; supported families are "
        f"{', '.join(FAMILIES)}"
    )


def _moe(family: Family, read: ConfigReader, layers: int) -> Moe | None:
    names = family.moe
    if names is None:
        return None
    key = next((k for k in names.num_experts_keys if k in read.config), names.num_experts_keys[0])
    experts = read.count(key, maximum=65_536)
    if layers * experts > MAX_EXPERTS:
        raise read.bad(
            key, f"is {experts}: over {layers} layers that is more than {MAX_EXPERTS} experts"
        )
    top_k = read.count("num_experts_per_tok", maximum=65_536)
    if top_k > experts:
        raise read.bad("num_experts_per_tok", f"{top_k} is more than the {experts} experts")
    step = read.count("decoder_sparse_step", default=1)
    dense = read.config.get("mlp_only_layers") or []
    if not isinstance(dense, list) or any(type(i) is not int for i in dense):
        raise read.bad("mlp_only_layers", "is not a list of layer numbers")
    norm = names.norm_topk_prob
    return Moe(
        num_experts=experts,
        num_experts_per_tok=top_k,
        intermediate_size=read.count(names.intermediate_key),
        norm_topk_prob=read.flag("norm_topk_prob", default=False) if norm is None else norm,
        sparse_layers=tuple(i not in dense and (i + 1) % step == 0 for i in range(layers)),
    )


def _context_length(read: ConfigReader) -> int:
    """Positions the graphs may use.

    Inside its sliding window a model equals full attention, so the window bounds the context
    instead of entering the graphs.
    """
    positions = read.count("max_position_embeddings", default=2048)
    window = read.config.get("sliding_window")
    windowed = read.config["model_type"] in ("mistral", "mixtral")
    uses_window = read.flag("use_sliding_window", default=windowed)
    if window is None or not uses_window:
        return positions
    return min(positions, read.count("sliding_window"))
