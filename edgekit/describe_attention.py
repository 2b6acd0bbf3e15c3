"""The attention of every layer, from a family's row and a config."""

from __future__ import annotations

from collections.abc import Mapping

from edgekit.architecture import (
    Attention,
    HeadExperts,
    LatentAttention,
    Mixer,
    Norm,
    Rope,
    Temperature,
)
from edgekit.config_values import ConfigReader
from edgekit.describe_states import with_states
from edgekit.families import AttentionRow, Family
from edgekit.family_values import flag, norm_epsilon, number, whole, width
from edgekit.rope import make_rope, rope_kind, rope_settings, yarn_factor, yarn_scale

MAX_HEAD_DIM = 4096
MAX_HEAD_EXPERTS = 1024


def attention_layers(row: Family, read: ConfigReader, hidden: int, layers: int) -> list[Mixer]:
    """One per layer.

    Raises:
        BadInputError: a value is absent, absurd, or contradicts another.
    """
    if row.attention.latent:
        return [_latent(row, read, layer) for layer in range(layers)]
    shape = _shape(row.attention, read, hidden)
    wide = _global_shape(row.attention, read, shape)
    spec = row.attention
    window = whole(read, spec.window)
    windowed = spec.windowed(read, layers) if spec.windowed and window else (False,) * layers
    rotated = spec.rotated(read, layers) if spec.rotated else (True,) * layers
    normed = spec.qk_norm_layers(read, layers) if spec.qk_norm_layers else (True,) * layers
    full = _rope(row, read, wide[2], "full_attention")
    local = _rope(row, read, shape[2], "sliding_attention") if spec.rope_by_type else full
    attentions: list[Mixer] = [
        _attention(row, read, shape if windowed[layer] else wide, layer,
                   window if windowed[layer] else 0,
                   (local if windowed[layer] else full) if rotated[layer] else None, normed[layer])
        for layer in range(layers)
    ]  # fmt: skip
    return with_states(row, read, hidden, attentions)


def _shape(spec: AttentionRow, read: ConfigReader, hidden: int) -> tuple[int, int, int]:
    """Heads, key and value heads, dimensions of a head."""
    if spec.experts:  # each has a query head for every key head
        kv_heads = width(read, spec.key_value_heads)
        heads = kv_heads * width(read, spec.experts.top_k)
    else:
        heads = width(read, spec.heads)
        kv_heads = whole(read, spec.key_value_heads) or heads
    head_dim = whole(read, spec.head_dim) or max(hidden // heads, 1)
    return _checked_shape(spec, read, heads, kv_heads, head_dim)


def _checked_shape(
    spec: AttentionRow, read: ConfigReader, heads: int, kv_heads: int, head_dim: int
) -> tuple[int, int, int]:
    if heads % kv_heads:
        raise read.bad(spec.key_value_heads.names[0], f"{kv_heads} does not divide {heads} heads")
    if head_dim > MAX_HEAD_DIM:
        raise read.bad("head_dim", f"is {head_dim}, expected at most {MAX_HEAD_DIM}")
    if head_dim % 2:
        raise read.bad("head_dim", f"{head_dim} is odd; rotary positions need pairs")
    return heads, kv_heads, head_dim


def _global_shape(
    spec: AttentionRow, read: ConfigReader, shape: tuple[int, int, int]
) -> tuple[int, int, int]:
    """The shape of layers without a window, where it differs."""
    heads, kv_heads, head_dim = shape
    if spec.global_key_value_heads and flag(read, spec.shared_values):
        kv_heads = whole(read, spec.global_key_value_heads) or kv_heads
    if spec.global_head_dim:
        head_dim = whole(read, spec.global_head_dim) or head_dim
    return _checked_shape(spec, read, heads, kv_heads, head_dim)


def _rope(row: Family, read: ConfigReader, head_dim: int, layer_type: str) -> Rope:
    spec = row.attention
    settings = rope_settings(read, layer_type if spec.rope_by_type else "")
    theta = number(read, spec.rope_theta)
    given = read.config.get("rope_parameters") or read.config.get("rope_scaling")
    if spec.rope_needed and not given:
        raise read.bad("rope_parameters", f"is missing; {row.model_type} does not do without")
    nested = isinstance(given, Mapping) and isinstance(given.get(layer_type), Mapping)
    if layer_type == "sliding_attention" and not nested:
        # the old spelling: windowed layers have a base of their own and are not scaled
        theta = read.number("rope_local_base_freq", default=10_000.0, low=1.0, high=1e12)
        kept = {k: v for k, v in settings.config.items() if k == "partial_rotary_factor"}
        settings = ConfigReader(kept, settings.source)
    rotary = whole(read, spec.rotary_dim) if spec.rotary_dim else 0
    factor = rotary / head_dim if rotary else spec.rope_factor
    return make_rope(settings, head_dim, theta, factor, flag(read, spec.interleaved))


def _attention(
    row: Family,
    read: ConfigReader,
    shape: tuple[int, int, int],
    layer: int,
    window: int,
    rope: Rope | None,
    normed: bool,
) -> Attention:
    heads, kv_heads, head_dim = shape
    shared = flag(read, row.attention.shared_values) and not window
    spec, names = row.attention, row.names
    prefix = names.inside(layer, names.attention)
    q_norm = k_norm = None
    if spec.qk_norm and flag(read, spec.qk_norm_if) and normed:
        q_norm = _head_norm(row, read, prefix + names.q_norm, heads, head_dim)
        k_norm = _head_norm(row, read, prefix + names.k_norm, kv_heads, head_dim)
    return Attention(
        q=prefix + names.q, k=prefix + names.k, v=prefix + (names.k if shared else names.v),
        o=prefix + names.o,
        num_heads=heads, num_key_value_heads=kv_heads, head_dim=head_dim,
        scale=_scale(spec, read, head_dim),
        qkv_bias=flag(read, spec.qkv_bias), o_bias=flag(read, spec.o_bias),
        q_norm=q_norm, k_norm=k_norm, norms_heads=spec.qk_norm == "head",
        norm_after_rope=spec.norm_after_rope,
        rope=rope, window=window,
        soft_cap=number(read, spec.soft_cap) if spec.soft_cap else 0.0,
        sinks=prefix + spec.sinks if spec.sinks else "",
        gate=prefix + spec.gate if spec.gate else "",
        clip=number(read, spec.clip) if spec.clip else 0.0,
        temperature=_temperature(spec, read, rope),
        experts=_head_experts(spec, read, prefix),
        v_norm=_value_norm(row, read, prefix, head_dim),
    )  # fmt: skip


def _head_experts(spec: AttentionRow, read: ConfigReader, prefix: str) -> HeadExperts | None:
    if spec.experts is None:
        return None
    experts = width(read, spec.experts.num_experts, maximum=MAX_HEAD_EXPERTS)
    top_k = width(read, spec.experts.top_k)
    if top_k > experts:
        name = spec.experts.top_k.names[0]
        raise read.bad(name, f"{top_k} is more than the {experts} experts")
    return HeadExperts(prefix + spec.experts.router, experts, top_k)


def _head_norm(row: Family, read: ConfigReader, module: str, heads: int, head_dim: int) -> Norm:
    size = head_dim if row.attention.qk_norm == "head" else heads * head_dim
    eps = norm_epsilon(read, row.norm_eps)
    return Norm(module, size, eps, "rms", row.attention.qk_norm_weight, False, row.unit_offset)


def _value_norm(row: Family, read: ConfigReader, prefix: str, head_dim: int) -> Norm | None:
    if not row.attention.v_norm:
        return None
    return Norm(prefix + "v_norm", head_dim, norm_epsilon(read, row.norm_eps), weight=False)


def _scale(spec: AttentionRow, read: ConfigReader, head_dim: int) -> float:
    if spec.scale is not None:
        return number(read, spec.scale)
    base = number(read, spec.scale_by) if spec.scale_by else head_dim
    if base <= 0:
        raise read.bad("query_pre_attn_scalar", f"is {base}, expected a positive number")
    return float(base**-0.5)


def _temperature(spec: AttentionRow, read: ConfigReader, rope: Rope | None) -> Temperature | None:
    if spec.temperature == "llama4" and rope is None:
        if not read.flag("attn_temperature_tuning", default=True):
            return None
        floor = read.number("floor_scale", default=8192.0, low=0.0, high=1e9)
        return Temperature(read.number("attn_scale", default=0.1, low=-1e9, high=1e9), floor, 1.0)
    if spec.temperature == "rope":
        settings = rope_settings(read)
        beta = settings.number("llama_4_scaling_beta", default=0.0, low=-1e9, high=1e9)
        original = settings.count("original_max_position_embeddings", default=8192)
        return Temperature(beta, float(original), 0.0) if beta else None
    return None


def _latent(row: Family, read: ConfigReader, layer: int) -> LatentAttention:
    prefix = row.names.inside(layer, row.names.attention)
    rank = read.config.get("q_lora_rank")
    query_rank = read.count("q_lora_rank") if rank is not None else 0
    latent = read.count("kv_lora_rank")
    nope, rotary = read.count("qk_nope_head_dim"), read.count("qk_rope_head_dim")
    if max(latent, nope, rotary) > MAX_HEAD_DIM or rotary % 2:
        raise read.bad("qk_rope_head_dim", f"is {rotary}, expected an even number of a head")
    settings = rope_settings(read)
    interleaved = flag(read, row.attention.interleaved)
    # the rotated part is the whole "head" here, whatever head_dim the config states
    rope = make_rope(
        ConfigReader({**settings.config, "partial_rotary_factor": 1.0}, settings.source),
        rotary, number(read, row.attention.rope_theta), 1.0, interleaved,
    )  # fmt: skip
    scale = (nope + rotary) ** -0.5
    every = settings.number("mscale_all_dim", default=0.0, low=-1e-9, high=1e6)
    if every and row.attention.yarn_scales and rope_kind(settings) != "default":
        scale *= yarn_scale(yarn_factor(settings), every) ** 2
    latent_scale = 1.0
    if row.attention.latent_scales:
        hidden = width(read, row.hidden_size)
        latent_scale = (hidden / latent) ** 0.5
        scale *= (hidden / query_rank) ** 0.5 if query_rank else 1.0
    eps = 1e-6  # of every family, whatever rms_norm_eps says
    return LatentAttention(
        q="" if query_rank else prefix + "q_proj",
        q_a=prefix + "q_a_proj" if query_rank else "",
        q_a_norm=Norm(prefix + "q_a_layernorm", query_rank, eps) if query_rank else None,
        q_b=prefix + "q_b_proj" if query_rank else "",
        kv_a=prefix + "kv_a_proj_with_mqa",
        kv_a_norm=Norm(prefix + "kv_a_layernorm", latent, eps),
        kv_b=prefix + "kv_b_proj",
        o=prefix + "o_proj",
        num_heads=read.count("num_attention_heads"),
        q_lora_rank=query_rank, kv_lora_rank=latent, nope_dim=nope, rope_dim=rotary,
        value_dim=read.count("v_head_dim"), scale=float(scale), rope=rope,
        bias=read.flag("attention_bias", default=False), latent_scale=latent_scale,
    )  # fmt: skip
