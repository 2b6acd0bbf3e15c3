"""The metadata of a GGUF file: what llama.cpp must know beside the tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekit.architecture import Architecture, Attention, Rope
from edgekit.config_values import ConfigReader
from edgekit.errors import BadInputError
from edgekit.family_table import FAMILIES
from edgekit.family_values import number
from edgekit.gguf_families import GgufFamily
from edgekit.rope import rope_settings

TOLERANCE = 1e-9  # relative, of frequencies that are computed twice
FILE_TYPES = {16: "MOSTLY_F16", 8: "MOSTLY_Q8_0", 4: "MOSTLY_Q4_0"}  # by bits of the scheme


@dataclass(frozen=True)
class Rotary:
    """Rotary positions in llama.cpp's words.

    ``base`` gives the plain frequencies, which are divided by ``factor`` (linear scaling) and one
    by one by the values of ``divisors``, tensors by name.
    """

    base: float
    factor: float
    divisors: Mapping[str, NDArray[np.float32]]


def rotary(rope: Rope, base: float, row: GgufFamily, source: str) -> Rotary:
    """How llama.cpp is told the frequencies of ``rope``; ``base`` is the config's.

    Raises:
        BadInputError: the architecture takes no such scaling.
    """
    found = np.array(rope.inv_freq)
    size = rope.dimensions
    factor = float(1 / found[0])
    implied = float((found[1] * factor) ** (-size / 2)) if len(found) > 1 else base
    same = np.allclose(_plain(implied, size) / factor, found, rtol=TOLERANCE, atol=0)
    if same and not rope.long_inv_freq and rope.attention_factor == 1.0:
        return Rotary(implied, factor, {})
    plain = _plain(base, size)
    if rope.long_inv_freq and row.long_frequencies:
        if rope.long_attention_factor == rope.attention_factor:
            long = plain / np.array(rope.long_inv_freq)
            return Rotary(base, 1.0, {"ROPE_FACTORS_SHORT": (plain / found).astype(np.float32),
                                      "ROPE_FACTORS_LONG": long.astype(np.float32)})  # fmt: skip
    elif not rope.long_inv_freq and row.frequencies:
        return Rotary(base, 1.0, {"ROPE_FREQS": (plain / found).astype(np.float32)})
    raise BadInputError(
        f"{source}: llama.cpp's {row.arch} takes no rotary positions scaled like this model's; "
        "use `edgekit compile` for it"
    )


def _plain(base: float, size: int) -> NDArray[np.float64]:
    return base ** (-np.arange(0, size, 2) / size)


def model_rotary(
    a: Architecture, row: GgufFamily, config: Mapping[str, Any], source: str
) -> tuple[Rotary, Rotary | None]:
    """Rotary positions of the layers that see everything, and of windowed ones with their own.

    Raises:
        BadInputError: layers differ otherwise, or the scaling has no place in llama.cpp.
    """
    full: set[Rope] = set()
    local: set[Rope] = set()
    for layer in a.layers:
        x = layer.attention
        if isinstance(x, Attention) and x.rope:
            (local if x.window and row.own_window_rope else full).add(x.rope)
    if not full or len(full) > 1 or len(local) > 1:
        raise BadInputError(
            f"{source}: its layers have rotary positions that llama.cpp's {row.arch} does not "
            "compute; use `edgekit compile` for it"
        )
    settings = rope_settings(ConfigReader(config, source), "full_attention")
    theta = number(ConfigReader(config, source), FAMILIES[a.model_type].attention.rope_theta)
    base = settings.number("rope_theta", default=theta, low=1.0, high=1e12)
    of_window = rotary(local.pop(), base, row, source) if local else None
    if of_window and (of_window.factor != 1.0 or of_window.divisors):
        raise BadInputError(
            f"{source}: llama.cpp's {row.arch} does not scale the rotary positions of windowed "
            "layers; use `edgekit compile` for it"
        )
    return rotary(full.pop(), base, row, source), of_window


def add_metadata(
    writer: Any,
    a: Architecture,
    row: GgufFamily,
    bits: int,
    positions: tuple[Rotary, Rotary | None],
) -> None:
    """Write everything but the tokenizer into a ``gguf.GGUFWriter``."""
    import gguf

    writer.add_type(gguf.GGUFType.MODEL)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_file_type(gguf.LlamaFileType[FILE_TYPES[bits]])
    writer.add_vocab_size(a.vocab_size)
    writer.add_context_length(context_length(a, row))
    writer.add_embedding_length(a.hidden_size)
    writer.add_block_count(a.num_hidden_layers)
    writer.add_feed_forward_length(a.moe.intermediate_size if a.moe else a.intermediate_size)
    writer.add_layer_norm_rms_eps(a.final_norm.eps)
    _add_attention(writer, a, row)
    _add_rotary(writer, a, *positions)
    _add_experts(writer, a)
    if a.logit_soft_cap:
        writer.add_final_logit_softcapping(a.logit_soft_cap)
    if row.scales:
        writer.add_embedding_scale(a.embedding_scale)
        writer.add_residual_scale(a.layers[0].residual_scale)
        writer.add_logit_scale(1 / a.logit_scale)  # llama.cpp divides by it


def context_length(a: Architecture, row: GgufFamily) -> int:
    """Positions within which llama.cpp computes what the model does.

    Where it does not know the windows of a family, that is the shortest window.
    """
    windows = [x.window for x in _attentions(a) if x.window and not row.window_period]
    return min([a.context_length, *windows])


def _attentions(a: Architecture) -> list[Attention]:
    return [layer.attention for layer in a.layers if isinstance(layer.attention, Attention)]


def _add_attention(writer: Any, a: Architecture, row: GgufFamily) -> None:
    first = _attentions(a)[0]
    writer.add_head_count(first.num_heads)
    writer.add_head_count_kv(first.num_key_value_heads)
    writer.add_key_length(first.head_dim)
    writer.add_value_length(first.head_dim)
    if row.scales:
        writer.add_attention_scale(first.scale)
    if first.soft_cap:
        writer.add_attn_logit_softcapping(first.soft_cap)
    if row.window_period:
        writer.add_sliding_window(max(x.window for x in _attentions(a)))


def _add_rotary(writer: Any, a: Architecture, full: Rotary, local: Rotary | None) -> None:
    import gguf

    rope = next(x.rope for x in _attentions(a) if x.rope)
    writer.add_rope_dimension_count(rope.dimensions)
    writer.add_rope_freq_base(full.base)
    if local:
        writer.add_rope_freq_base_swa(local.base)
    if full.factor != 1.0:
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(full.factor)
    if rope.long_inv_freq:
        writer.add_rope_scaling_type(gguf.RopeScalingType.LONGROPE)
        writer.add_rope_scaling_orig_ctx_len(rope.original_length)
    if rope.attention_factor != 1.0:
        writer.add_rope_scaling_attn_factors(rope.attention_factor)


def _add_experts(writer: Any, a: Architecture) -> None:
    if a.moe is None:
        return
    writer.add_expert_count(a.moe.num_experts)
    writer.add_expert_used_count(a.moe.num_experts_per_tok)
    writer.add_expert_feed_forward_length(a.moe.intermediate_size)
    if a.moe.shared:
        writer.add_expert_shared_feed_forward_length(a.moe.shared.size)
