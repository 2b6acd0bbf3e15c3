"""Which families llama.cpp computes as edgekit does, one row each, and what a row rules out.

A GGUF file holds numbers and a name; the computation is written in llama.cpp, once per
architecture. A row says what that computation fixes, so that a model which asks for something else
is refused instead of running wrong. The facts are those of llama.cpp's ``src/models``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from edgekit.architecture import Architecture, Attention, Layer, Mixture, Norm
from edgekit.errors import BadInputError


@dataclass(frozen=True)
class GgufFamily:
    """One architecture of llama.cpp.

    ``arch`` is a member of ``gguf.MODEL_ARCH``. ``neighbours``: rotary pairs are dimensions
    (2i, 2i+1), so rows of queries and keys are stored in that order. ``frequencies``: a tensor may
    rescale the rotary frequencies; ``long_frequencies``: two tensors may, by context length.
    """

    arch: str
    neighbours: bool = False
    frequencies: bool = False
    long_frequencies: bool = False
    output_biases: bool = False  # of attention's output and of the feed-forward
    qk_norm: str = ""  # "head" or "width", as in the family table
    square: bool = False  # heads times their size must be the hidden size
    equal_heads: bool = False  # as many key and value heads as query heads
    fused_qkv: bool = False
    fused_gate_up: bool = False
    own_head: bool = False  # the file must have a head of its own, even a repeated one
    normalize: bool | None = None  # of the chosen gates; None: no experts
    shared: str = ""  # the shared expert: "plain" or "gated"
    scales: bool = False  # of attention, residual, embedding and logits are metadata
    embeds_by_root: bool = False  # embeddings are multiplied by sqrt(hidden size)
    caps: bool = False  # attention scores and logits are capped, always
    may_cap_logits: bool = False
    activation: str = "silu"
    window_period: int = 0  # every such layer sees everything, the others a window
    own_window_rope: bool = False
    unrotated_period: int = 0  # every such layer has no rotary positions
    wide_scale_layers: int = 0  # a model of so many layers divides by hidden / heads instead


_LLAMA = GgufFamily("LLAMA", neighbours=True, frequencies=True, long_frequencies=True,
                    output_biases=True)  # fmt: skip
_GRANITE = replace(_LLAMA, arch="GRANITE", scales=True)
_GEMMA = GgufFamily("GEMMA", embeds_by_root=True, activation="gelu_tanh")

GGUF_FAMILIES: dict[str, GgufFamily] = {
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "mixtral": replace(_LLAMA, normalize=True),
    "qwen2": GgufFamily("QWEN2", square=True),
    "qwen3": GgufFamily("QWEN3", qk_norm="head"),
    "qwen2_moe": GgufFamily("QWEN2MOE", square=True, own_head=True, normalize=False,
                            shared="gated"),
    "qwen3_moe": GgufFamily("QWEN3MOE", qk_norm="head", normalize=True),
    "olmo2": GgufFamily("OLMO2", qk_norm="width", square=True, own_head=True),
    "olmoe": GgufFamily("OLMOE", qk_norm="width", square=True, equal_heads=True, own_head=True,
                        normalize=False),
    "granite": _GRANITE,
    "granitemoe": replace(_GRANITE, arch="GRANITE_MOE", output_biases=False, normalize=True),
    "granitemoeshared": replace(_GRANITE, arch="GRANITE_MOE", output_biases=False, normalize=True,
                                shared="plain"),
    "gemma": _GEMMA,
    "gemma2": replace(_GEMMA, arch="GEMMA2", caps=True, may_cap_logits=True, window_period=2,
                      wide_scale_layers=46),
    "gemma3_text": replace(_GEMMA, arch="GEMMA3", qk_norm="head", may_cap_logits=True,
                           window_period=6, own_window_rope=True, wide_scale_layers=62),
    "phi3": GgufFamily("PHI3", square=True, long_frequencies=True, fused_qkv=True,
                       fused_gate_up=True),
    "smollm3": GgufFamily("SMOLLM3", neighbours=True, unrotated_period=4),
    "glm4": GgufFamily("GLM4", neighbours=True, fused_gate_up=True),
}  # fmt: skip


def gguf_family(architecture: Architecture, source: str) -> GgufFamily:
    """The row of a model; ``source`` names it in errors.

    Raises:
        BadInputError: there is no row, or llama.cpp would compute something else.
    """
    row = GGUF_FAMILIES.get(architecture.model_type)
    if row is None:
        raise BadInputError(
            f"{source}: family {architecture.model_type!r} is not exported to GGUF; these are: "
            f"{', '.join(GGUF_FAMILIES)}"
        )
    for problem in _problems(architecture, row):
        raise BadInputError(
            f"{source}: llama.cpp's {row.arch} cannot run this {architecture.model_type}: "
            f"{problem}; use `edgekit compile` for it"
        )
    return row


def _problems(a: Architecture, row: GgufFamily) -> Iterator[str]:
    """What the model asks for and llama.cpp does not compute."""
    attentions = [layer.attention for layer in a.layers]
    plain = [attention for attention in attentions if isinstance(attention, Attention)]
    if len(plain) != len(attentions):
        yield "its attention is latent"
        return
    shapes = {(x.num_heads, x.num_key_value_heads, x.head_dim, x.scale) for x in plain}
    if len(shapes) > 1:
        yield "its layers have attention of different shapes"
    for layer, attention in zip(a.layers, plain, strict=True):
        yield from _attention_problems(a, row, attention)
        yield from _feed_forward_problems(row, layer)
        yield from _pattern_problems(row, layer, attention)
        if layer.parallel:
            yield "its attention and feed-forward are parallel"
    yield from _scale_problems(a, row, plain[0])
    norms = {_norm_kind(n) for layer in a.layers for n in layer.norms()} | {
        _norm_kind(a.final_norm)
    }
    if norms != {("rms", True, False, a.final_norm.eps)}:
        yield "its norms are not RMS norms with weights and one epsilon"
    if a.head_bias:
        yield "its head has a bias"


def _norm_kind(norm: Norm) -> tuple[str, bool, bool, float]:
    return norm.kind, norm.weight, norm.bias, norm.eps


def _attention_problems(a: Architecture, row: GgufFamily, x: Attention) -> Iterator[str]:
    if row.square and x.num_heads * x.head_dim != a.hidden_size:
        yield f"{x.num_heads} heads of {x.head_dim} are not its hidden size {a.hidden_size}"
    if row.equal_heads and x.num_heads != x.num_key_value_heads:
        yield f"it has {x.num_heads} query and {x.num_key_value_heads} key heads, not as many"
    if x.o_bias and not row.output_biases:
        yield "its attention's output has a bias"
    norm = ("head" if x.norms_heads else "width") if x.q_norm else ""
    if norm != row.qk_norm:
        yield f"queries and keys have {norm or 'no'} norm where {row.qk_norm or 'none'} is computed"
    if x.norm_after_rope or x.clip or x.gate or x.sinks or x.temperature:
        yield "its attention clips, gates, sinks or rescales"
    if bool(x.soft_cap) != row.caps:
        yield f"its attention scores are {'capped' if x.soft_cap else 'not capped'}"


def _pattern_problems(row: GgufFamily, layer: Layer, x: Attention) -> Iterator[str]:
    period = row.window_period
    if period and bool(x.window) == ((layer.index + 1) % period == 0):
        yield f"its windowed layers are not all but every {period}th"
    period = row.unrotated_period
    if (x.rope is None) != bool(period and (layer.index + 1) % period == 0):
        which = f"every {period}th" if period else "none"
        yield f"its layers without rotary positions are not {which}"


def _feed_forward_problems(row: GgufFamily, layer: Layer) -> Iterator[str]:
    dense, mixture = layer.dense, layer.mixture
    if (mixture is None) != (row.normalize is None):
        yield "dense and sparse layers are mixed, or there are none of the kind it computes"
    parts = [dense] if dense else [mixture, mixture.shared] if mixture else []
    if any(part.activation != row.activation for part in parts if part):
        yield f"its activation is not {row.activation}"
    if dense and not dense.gate:
        yield "its feed-forward has no gate"
    if dense and dense.bias and not row.output_biases:
        yield "its feed-forward has biases"
    if mixture:
        yield from _mixture_problems(row, mixture)


def _mixture_problems(row: GgufFamily, m: Mixture) -> Iterator[str]:
    normalized = m.normalize or m.scoring == "softmax_top_k"
    if m.scoring not in ("softmax", "softmax_top_k") or normalized != row.normalize:
        yield f"its router's gates are {m.scoring}, {'' if normalized else 'not '}normalized"
    if m.correction or m.router_bias or m.num_groups > 1 or m.scaling != 1.0:
        yield "its router has a bias, groups or a scale"
    if m.expert_bias or m.joined or (m.shared and m.shared.bias):
        yield "its experts have biases"
    shared = ("gated" if m.shared_gate else "plain") if m.shared else ""
    if shared != row.shared:
        yield f"its shared expert is {shared or 'absent'}, not {row.shared or 'absent'}"


def _scale_problems(a: Architecture, row: GgufFamily, x: Attention) -> Iterator[str]:
    wide = row.wide_scale_layers == len(a.layers)
    size = a.hidden_size // a.num_attention_heads if wide else x.head_dim
    if not row.scales and abs(x.scale * size**0.5 - 1) > 1e-6:
        yield f"its attention scores are not divided by the root of {size}"
    embedding = a.hidden_size**0.5 if row.embeds_by_root else 1.0
    residuals = {layer.residual_scale for layer in a.layers}
    if not row.scales and (a.embedding_scale, a.logit_scale, residuals) != (embedding, 1.0, {1.0}):
        yield "it scales embeddings, residuals or logits"
    if a.logit_soft_cap and not row.may_cap_logits:
        yield "its logits are capped"
    if row.caps and not a.logit_soft_cap:
        yield "its logits are not capped"
