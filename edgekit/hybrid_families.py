"""The families whose layers are more than one attention and one feed-forward of a fixed shape."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from edgekit.config_values import ConfigReader
from edgekit.errors import BadInputError
from edgekit.families import (
    AttentionRow,
    Family,
    GatedDeltaRow,
    HeadsRow,
    MoeRow,
    Names,
    SelectiveScanRow,
    ShortConvRow,
    Stacked,
    key,
)
from edgekit.family_parts import (
    GRANITE,
    GRANITE_MOE,
    GRANITE_SCALES,
    LLAMA,
    MIXTRAL_EXPERTS,
    SANDWICH,
    window_of,
)
from edgekit.layer_patterns import (
    convolved_where_listed,
    kinds,
    linear_where_listed,
    sparse_by_step,
    sparse_from,
    windowed_but_every,
)


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


def _granite_scans(read: ConfigReader, layers: int) -> tuple[bool, ...]:
    """``layer_types`` "mamba"; transformers takes a config that names none for Mamba throughout."""
    name = "layers_block_type" if "layers_block_type" in read.config else "layer_types"
    types = kinds(read, name, layers, ("mamba", "attention")) or ("mamba",) * layers
    return tuple(kind == "mamba" for kind in types)


def _granite_rotated(read: ConfigReader, layers: int) -> tuple[bool, ...]:
    """All layers or none, as ``position_embedding_type`` says."""
    return (read.text("position_embedding_type", default="nope") == "rope",) * layers


def _granite_sparse(read: ConfigReader, layers: int) -> tuple[bool, ...]:
    """All layers, or none where the model has no experts beside the shared one."""
    return (read.whole("num_local_experts", default=8) > 0,) * layers


def _check_gemma4(read: ConfigReader, layers: int) -> None:
    """Refuse what the small models of the family have."""
    asked = {
        "hidden_size_per_layer_input": read.whole("hidden_size_per_layer_input", default=256) > 0,
        "num_kv_shared_layers": read.whole("num_kv_shared_layers", default=0) > 0,
        "use_bidirectional_attention": read.config.get("use_bidirectional_attention") == "all",
    }
    for name in (name for name, used in asked.items() if used):
        raise BadInputError(
            f"{read.source}: {name} is {read.config.get(name, 256)!r}, and no graph writes what it "
            "stands for yet; choose a Gemma 4 model without it, such as the 26B-A4B or the 31B"
        )
    if not isinstance(read.config.get("rope_parameters"), Mapping):
        # what transformers assumes then is not what other families do
        raise read.bad("rope_parameters", "is missing")


def _gemma4_windowed(read: ConfigReader, layers: int) -> tuple[bool, ...]:
    """All but every sixth, or as kinds; the last layer never."""
    return (*windowed_but_every("", 6)(read, layers)[:-1], False)


def _gemma4_sparse(read: ConfigReader, layers: int) -> tuple[bool, ...]:
    return (read.flag("enable_moe_block", default=False),) * layers


def _check_qwen3_next(read: ConfigReader, layers: int) -> None:
    if read.flag("attention_bias", default=False):
        raise read.bad("attention_bias", "is true, and these projections have no bias here")


QWEN3_NEXT: dict[str, Any] = {
    "attention": AttentionRow(
        qk_norm="head", rope_factor=0.25, gate="gate_proj", gate_in_q=True,
        gated_delta=GatedDeltaRow(linear_where_listed, fused=True)),
    "moe": MoeRow(
        normalize=key("norm_topk_prob", default=True), sparse=sparse_by_step,
        shared="mlp.shared_expert.", shared_gate="shared_expert_gate",
        shared_width=(key("shared_expert_intermediate_size", default=512),)),
    "unit_offset": True,
    "context": key("max_position_embeddings", default=32_768),
    "ignored": (r"mtp\..*", r"model\.visual\..*"),
    "check": _check_qwen3_next,
    "runtimes": ("openvino",),
}  # fmt: skip
QWEN3_5: dict[str, Any] = {
    **QWEN3_NEXT,
    "names": Names(
        embedding="model.language_model.embed_tokens", layer="model.language_model.layers.{l}.",
        final_norm="model.language_model.norm"),
    "attention": replace(
        QWEN3_NEXT["attention"], gated_delta=GatedDeltaRow(linear_where_listed, fused=False)),
}  # fmt: skip


def _first_of_two(read: ConfigReader, layers: int) -> tuple[bool, ...]:
    return tuple(i % 2 == 0 for i in range(layers))


HYBRIDS = (
    Family("lfm2", "Lfm2ForCausalLM", width=_lfm2_width, **LFM2),
    Family("lfm2_moe", "Lfm2MoeForCausalLM",
           moe=MoeRow(block="feed_forward.",
                      experts=MIXTRAL_EXPERTS,
                      scoring="sigmoid", normalize=key("norm_topk_prob", default=True),
                      normalize_epsilon=1e-6, scaling=key("routed_scaling_factor", default=1.0),
                      correction="expert_bias",
                      correction_if=key("use_expert_bias", default=True),
                      sparse=sparse_from("num_dense_layers", 2)),
           **LFM2),
    Family("gemma4_text", "Gemma4ForCausalLM", names=SANDWICH,
           attention=replace(
               LLAMA, qk_norm="head", v_norm=True, scale=1.0, rope_theta=1e6,
               window=window_of(512), windowed=_gemma4_windowed, rope_by_type=True,
               global_head_dim=key("global_head_dim", default=512),
               global_key_value_heads=key("num_global_key_value_heads", default=0),
               shared_values=key("attention_k_eq_v", default=False)),
           moe=MoeRow(block="", router="router.proj", top_k=key("top_k_experts"),
                      experts=Stacked("experts.gate_up_proj", "experts.down_proj"),
                      router_scale="router.scale", expert_scale="router.per_expert_scale",
                      beside=("post_feedforward_layernorm_1", "pre_feedforward_layernorm_2",
                              "post_feedforward_layernorm_2"),
                      sparse=_gemma4_sparse),
           activation=key("hidden_activation", default="gelu_pytorch_tanh"),
           logit_soft_cap=key("final_logit_softcapping", default=0.0), embedding_scale="sqrt",
           tied=True, layer_scalar="layer_scalar", check=_check_gemma4, runtimes=("openvino",),
           note="without inputs per layer and without layers that share keys and values"),
    Family("qwen3_next", "Qwen3NextForCausalLM", **QWEN3_NEXT),
    Family("qwen3_5_text", "Qwen3_5ForCausalLM", **{**QWEN3_5, "moe": None}),
    Family("qwen3_5_moe_text", "Qwen3_5MoeForCausalLM",
           **{**QWEN3_5, "moe": replace(
               QWEN3_5["moe"], normalize=True, sparse=None,
               experts=Stacked("experts.gate_up_proj", "experts.down_proj"))}),
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
    Family("longcat_flash", "LongcatFlashForCausalLM",
           names=Names(attention_norm="input_layernorm.{s}", attention="self_attn.{s}.",
                       feed_forward_norm="post_attention_layernorm.{s}",
                       feed_forward="mlps.{s}.", parts=2),
           attention=AttentionRow(latent=True, latent_scales=True, interleaved=True,
                                  rope_theta=1e7),
           moe=MoeRow(router="router.classifier", num_experts=key("n_routed_experts"),
                      identities=key("zero_expert_num", default=256), top_k=key("moe_topk"),
                      width=key("expert_ffn_hidden_size"), normalize=False,
                      scaling=key("routed_scaling_factor", default=6.0),
                      correction="router.e_score_correction_bias", shortcut=True,
                      sparse=_first_of_two),
           layers=key("num_layers"), width=key("ffn_hidden_size"),
           norm_eps=key("rms_norm_eps", default=1e-5),
           ignored=(r"model\.mtp\..*",
                    r"model\.layers\.\d+\.mlp\.experts\.({identities})\.(gate|up)_proj\.weight"),
           note="where a token's experts include identities, others are computed with gate 0"),
    Family("granitemoehybrid", "GraniteMoeHybridForCausalLM",
           names=Names(feed_forward="shared_mlp.", gate_up="input_linear", down="output_linear"),
           attention=replace(GRANITE, rotated=_granite_rotated,
                             selective_scan=SelectiveScanRow(_granite_scans)),
           moe=replace(GRANITE_MOE, shared="shared_mlp.", shared_gate_up="input_linear",
                       shared_names=("gate_proj", "up_proj", "output_linear"),
                       shared_width=(key("shared_intermediate_size", default=1024),),
                       sparse=_granite_sparse),
           width=key("shared_intermediate_size", default=1024),
           packs=False, note="ONNX only with attention in all layers",
           **GRANITE_SCALES),
)  # fmt: skip
