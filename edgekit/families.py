"""The vocabulary in which a family of models is described; its table is in ``family_table``.

A row is data. A value that differs between checkpoints is a :class:`Key` of their ``config.json``;
a pattern over layers is one of the small functions of :mod:`edgekit.layer_patterns`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from edgekit.config_values import ConfigReader

Pattern = Callable[[ConfigReader, int], tuple[bool, ...]]
Check = Callable[[ConfigReader, int], None]  # raises BadInputError
Width = Callable[[ConfigReader], int]  # where the config does not state the size itself


@dataclass(frozen=True)
class Key:
    """A value of the config under the first of ``names`` that is there; dots go into objects.

    ``default`` is for a key that is absent, None means that it is required. ``null`` is for one
    that is null, where that says something else than nothing.
    """

    names: tuple[str, ...]
    default: Any = None
    null: Any = None


def key(*names: str, default: Any = None, null: Any = None) -> Key:
    """A :class:`Key`; several names are spellings of one value."""
    return Key(names, default, null)


@dataclass(frozen=True)
class Names:
    """Modules of a family, inside the layer where not said otherwise; "" where it has none."""

    embedding: str = "model.embed_tokens"  # from the root
    layer: str = "model.layers.{l}."
    final_norm: str = "model.norm"  # from the root
    head: str = "lm_head"  # from the root
    attention_norm: str = "input_layernorm"
    attention_post_norm: str = ""
    feed_forward_norm: str = "post_attention_layernorm"
    feed_forward_post_norm: str = ""
    attention: str = "self_attn."
    q: str = "q_proj"
    k: str = "k_proj"
    v: str = "v_proj"
    o: str = "o_proj"
    kv: str = ""  # stored as one matrix: rows of k, then v
    qkv: str = ""  # stored as one matrix: rows of q, then k, then v
    q_norm: str = "q_norm"
    k_norm: str = "k_norm"
    feed_forward: str = "mlp."
    gate: str = "gate_proj"
    up: str = "up_proj"
    down: str = "down_proj"
    gate_up: str = ""  # stored as one matrix: rows of gate, then up
    parts: int = 1  # layers of the graph in one of the checkpoint; {s} in a name counts them

    def inside(self, layer: int, name: str = "") -> str:
        """``name`` inside a layer of the graph, from the root."""
        whole, part = divmod(layer, self.parts)
        return (self.layer + name).replace("{l}", str(whole)).replace("{s}", str(part))


@dataclass(frozen=True)
class ShortConvRow:
    """Layers with a short convolution in the attention's place; modules are inside the block."""

    layers: Pattern
    block: str = "conv."
    input: str = "in_proj"
    kernel: str = "conv"
    output: str = "out_proj"
    length: Key = key("conv_L_cache", default=3)
    bias: bool | Key = key("conv_bias", default=False)


@dataclass(frozen=True)
class GatedDeltaRow:
    """Layers with a gated delta rule in the attention's place; the rest is named alike so far.

    ``fused`` stores q, k, v, z of a key head after another, and b and a likewise; otherwise q, k
    and v are one matrix.
    """

    layers: Pattern
    fused: bool
    block: str = "linear_attn."


@dataclass(frozen=True)
class SelectiveScanRow:
    """Layers with a selective state space in the attention's place; the rest is named alike."""

    layers: Pattern
    block: str = "mamba."


@dataclass(frozen=True)
class HeadsRow:
    """Experts of the attention; the router is a module and the bias a tensor in its block."""

    router: str
    bias: str
    num_experts: Key = key("num_local_experts")
    top_k: Key = key("num_experts_per_tok")


@dataclass(frozen=True)
class AttentionRow:
    """The attention of a family; see :class:`edgekit.architecture.Attention` for the words."""

    heads: Key = key("num_attention_heads")
    key_value_heads: Key = key("num_key_value_heads", default=0)  # 0: as many as heads
    head_dim: Key = key("head_dim", default=0)  # 0: hidden_size / heads
    global_head_dim: Key | None = None  # of layers without a window; 0: head_dim
    global_key_value_heads: Key | None = None  # of layers with shared values; 0: key_value_heads
    shared_values: bool | Key = False  # layers without a window use their keys as values
    v_norm: bool = False  # values are normalized per head, without a weight
    qkv_bias: bool | Key = False
    o_bias: bool | Key = False
    qk_norm: str = ""  # "head" (per head) or "width" (over all heads)
    qk_norm_if: bool | Key = True
    qk_norm_weight: bool = True
    qk_norm_layers: Pattern | None = None
    norm_after_rope: bool = False
    scale: Key | float | None = None  # replaces head_dim ** -0.5
    scale_by: Key | None = None  # this value ** -0.5 replaces it
    soft_cap: Key | None = None
    sinks: str = ""
    gate: str = ""
    clip: Key | None = None
    window: Key = key("sliding_window", default=0)
    windowed: Pattern | None = None  # layers that see the window only; None: no layer
    rotated: Pattern | None = None  # layers with rotary positions; None: all
    interleaved: bool | Key = False
    rope_factor: float = 1.0  # of a head's dimensions that rotate, unless the config says
    rotary_dim: Key | None = None  # dimensions of a head that rotate, where the config says so
    yarn_scales: bool = True  # latent attention: YaRN's factor enters the scale as well
    rope_needed: bool = (
        False  # the family scales its positions: a config without settings is no one
    )
    rope_theta: float | Key = 10_000.0  # unless the config says
    rope_by_type: bool = False  # windowed layers have rotary positions of their own
    latent: bool = False
    latent_scales: bool = False  # of queries and latents, for the rank that they come from
    experts: HeadsRow | None = None
    gate_in_q: bool = False  # a head's rows of q are followed by those of its gate
    gated_delta: GatedDeltaRow | None = None
    selective_scan: SelectiveScanRow | None = None
    short_conv: ShortConvRow | None = None
    temperature: str = ""  # "llama4" or "rope"


@dataclass(frozen=True)
class Stacked:
    """Experts stored as ``gate_up`` [E, 2 I, H] and ``down`` [E, H, I].

    ``turned`` stores both with the last two axes swapped. Rows of gate and up are two halves, or
    alternate (``interleaved``): then they stay one matrix, which is how runtimes multiply them.
    Biases, where there are any, are named like the tensors with ``_bias``.
    """

    gate_up: str
    down: str
    turned: bool = False
    interleaved: bool = False


@dataclass(frozen=True)
class Flat:
    """Experts stored as rows: gate and up [E * I, H], down [E * I, H] turned."""

    gate: str
    up: str
    down: str


@dataclass(frozen=True)
class Separate:
    """Every expert's matrices are tensors of their own."""

    gate: str = "experts.{e}.gate_proj"
    up: str = "experts.{e}.up_proj"
    down: str = "experts.{e}.down_proj"


@dataclass(frozen=True)
class MoeRow:
    """The mixture of a family; see :class:`edgekit.architecture.Mixture` for the words."""

    block: str = "mlp."
    router: str = "gate"
    experts: Separate | Stacked | Flat = Separate()
    num_experts: Key = key("num_experts", "num_local_experts", "n_routed_experts")
    top_k: Key = key("num_experts_per_tok")
    width: Key = key("moe_intermediate_size")
    activation: str = ""  # "": that of the config
    scoring: str = "softmax"
    normalize: bool | Key = True
    normalize_epsilon: float | Key = 0.0
    normalize_clamp: bool = False
    scaling: Key | None = None
    router_bias: bool = False
    correction: str = ""  # tensor in the block
    correction_row: bool = False  # stored as [1, E]
    correction_if: bool | Key = True
    groups: Key | None = None
    top_groups: Key | None = None
    group_score: str = "top2"  # or "max"
    grouped_if: tuple[Key, str] | None = None  # groups count only when the key has this value
    jitter: Key | None = None
    router_scale: str = ""  # tensor in the block; the router then has a norm of its own
    expert_scale: str = ""  # tensor in the block
    expert_bias: bool = False
    output_bias: str = ""  # tensor in the block
    shared: str = ""  # prefix of the shared expert in the layer
    shared_names: tuple[str, str, str] = ("gate_proj", "up_proj", "down_proj")
    shared_gate_up: str = ""  # stored as one matrix
    shared_width: tuple[Key, ...] = ()  # multiplied
    shared_gate: str = ""  # module in the block
    sparse: Pattern | None = None  # None: every layer
    beside: tuple[str, ...] = ()  # norms in the layer, if it has a dense part as well
    shortcut: bool = False  # added after the layer that follows
    identities: Key | None = None  # how many experts give their input back
    shrinks: bool = True  # whether experts can be left out


@dataclass(frozen=True)
class Family:
    """One row of the table."""

    model_type: str
    hf_class: str
    names: Names = Names()
    attention: AttentionRow = AttentionRow()
    moe: MoeRow | None = None
    hidden_size: Key = key("hidden_size")
    layers: Key = key("num_hidden_layers")
    width: Key | Width = key("intermediate_size")
    context: Key = key("max_position_embeddings", default=2048)
    context_limit: Key | None = None  # a shorter context within which the graphs are exact
    activation: Key = key("hidden_act", "hidden_activation", default="silu")
    mlp_bias: bool | Key = False
    norm_kind: str = "rms"
    norm_eps: Key | float = key("rms_norm_eps", default=1e-6)
    final_norm_eps: Key | float | None = None  # where it differs
    norm_weight: bool = True
    norm_bias: bool = False
    unit_offset: bool = False
    parallel: bool | Key = False
    tied: bool | Key = False  # unless the config says
    head_bias: bool | Key = False
    embedding_scale: Key | float | str = 1.0  # "sqrt": of hidden_size
    embedding_scale_if: bool | Key = True
    residual_scale: Key | float = 1.0
    logit_scale: Key | float = 1.0
    logit_divisor: Key | float = 1.0
    logit_soft_cap: Key | float = 0.0
    ignored: tuple[str, ...] = ()  # regular expressions of tensors that are not used
    expects: tuple[tuple[str, Any], ...] = ()  # what an option must be, if the config has it
    runtimes: tuple[str, ...] = ("openvino", "onnx")  # that have a graph for it
    layer_scalar: str = ""  # tensor in the layer
    check: Check | None = None  # what a config may not ask for
    eager: bool = False  # transformers 5.5 is only right with its plain attention
    packs: bool = True  # transformers 5.5 keeps sequences in one row apart, see distill/rows.py
    note: str = ""
