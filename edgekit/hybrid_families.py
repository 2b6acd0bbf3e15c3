"""The families whose layers are more than one attention and one feed-forward of a fixed shape."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from edgekit.config_values import ConfigReader
from edgekit.errors import BadInputError
from edgekit.families import (
    AttentionRow,
    Family,
    HeadsRow,
    MoeRow,
    Names,
    Separate,
    ShortConvRow,
    key,
)
from edgekit.family_parts import GRANITE, GRANITE_MOE, GRANITE_SCALES
from edgekit.layer_patterns import convolved_where_listed, listed, sparse_from


def _lfm2_width(read: ConfigReader) -> int:
    """LFM2 states the width before it is cut to two thirds and rounded up."""
    name = "block_ff_dim" if read.config.get("block_ff_dim") is not None else "intermediate_size"
    size = read.count(name)
    if not read.flag("block_auto_adjust_ff_dim", default=True):
        return size
    size = int(2 * size / 3)
    if read.config.get("block_ffn_dim_multiplier", 1.0) is not None:
        factor = read.number("block_ffn_dim_multiplier", default=1.0, low=0.0, high=1e3)
        step = read.count("block_multiple_of", default=256)
        size = -(-int(factor * size) // step) * step
    return size


LFM2: dict[str, Any] = {
    "names": Names(
        final_norm="model.embedding_norm", attention_norm="operator_norm",
        feed_forward_norm="ffn_norm", o="out_proj", q_norm="q_layernorm", k_norm="k_layernorm",
        feed_forward="feed_forward.", gate="w1", up="w3", down="w2"),
    "attention": AttentionRow(
        qk_norm="head", rope_theta=1e6, short_conv=ShortConvRow(convolved_where_listed)),
    "norm_eps": key("norm_eps", default=1e-5),
    "tied": key("tie_embedding", default=True),
    "context": key("max_position_embeddings", default=128_000),
}  # fmt: skip


def _granite_types(read: ConfigReader, layers: int) -> list[object]:
    """Kinds of layers; transformers takes a config that names none for one of Mamba throughout."""
    name = "layers_block_type" if "layers_block_type" in read.config else "layer_types"
    types = listed(read, name, layers, str) or ["mamba"] * layers
    if set(types) != {"attention"}:
        raise BadInputError(
            f"{read.source}: {name} has {', '.join(sorted(set(map(str, types))))} layers, and the "
            "recurrent state of Mamba is not written into a graph yet; choose a Granite model "
            "with attention in all layers, such as granite-4.0-micro"
        )
    return types


def _granite_rotated(read: ConfigReader, layers: int) -> tuple[bool, ...]:
    """All layers or none, as ``position_embedding_type`` says."""
    _granite_types(read, layers)
    return (read.text("position_embedding_type", default="nope") == "rope",) * layers


def _granite_sparse(read: ConfigReader, layers: int) -> tuple[bool, ...]:
    """All layers, or none where the model has no experts beside the shared one."""
    return (read.whole("num_local_experts", default=8) > 0,) * layers


HYBRIDS = (
    Family("lfm2", "Lfm2ForCausalLM", width=_lfm2_width, **LFM2),
    Family("lfm2_moe", "Lfm2MoeForCausalLM",
           moe=MoeRow(block="feed_forward.",
                      experts=Separate("experts.{e}.w1", "experts.{e}.w3", "experts.{e}.w2"),
                      scoring="sigmoid", normalize=key("norm_topk_prob", default=True),
                      normalize_epsilon=1e-6, scaling=key("routed_scaling_factor", default=1.0),
                      correction="expert_bias",
                      correction_if=key("use_expert_bias", default=True),
                      sparse=sparse_from("num_dense_layers", 2)),
           **LFM2),
    Family("jetmoe", "JetMoeForCausalLM",
           names=Names(attention="self_attention.", q="experts.input_linear",
                       o="experts.output_linear", kv="kv_proj"),
           attention=AttentionRow(
               key_value_heads=key("num_key_value_heads"), head_dim=key("kv_channels", "head_dim"),
               experts=HeadsRow("experts.router.layer", "experts.bias")),
           moe=replace(GRANITE_MOE, block="mlp.", output_bias="bias", shrinks=False),
           activation=key("activation_function", default="silu"), norm_eps=1e-6,
           final_norm_eps=key("rms_norm_eps", default=1e-6), tied=True,
           note="the queries and outputs of all attention experts are computed, not only of the "
           "chosen"),
    Family("granitemoehybrid", "GraniteMoeHybridForCausalLM",
           names=Names(feed_forward="shared_mlp.", gate_up="input_linear", down="output_linear"),
           attention=replace(GRANITE, rotated=_granite_rotated),
           moe=replace(GRANITE_MOE, shared="shared_mlp.", shared_gate_up="input_linear",
                       shared_names=("gate_proj", "up_proj", "output_linear"),
                       shared_width=(key("shared_intermediate_size", default=1024),),
                       sparse=_granite_sparse),
           width=key("shared_intermediate_size", default=1024), dense_type="granite",
           note="with attention in all layers; those with Mamba layers are refused",
           **GRANITE_SCALES),
)  # fmt: skip
