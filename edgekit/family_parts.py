"""Parts of rows that several families share."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from edgekit.families import AttentionRow, Key, MoeRow, Names, Separate, Stacked, key
from edgekit.layer_patterns import windowed_but_every

BIASED = key("attention_bias", default=False)
LLAMA = AttentionRow(qkv_bias=BIASED, o_bias=BIASED)
QWEN3 = replace(LLAMA, qk_norm="head")
LATENT = AttentionRow(latent=True, interleaved=key("rope_interleave", default=True))
SANDWICH = Names(
    attention_post_norm="post_attention_layernorm",
    feed_forward_norm="pre_feedforward_layernorm",
    feed_forward_post_norm="post_feedforward_layernorm",
)
POST_NORMS = Names(
    attention_norm="", attention_post_norm="post_attention_layernorm",
    feed_forward_norm="", feed_forward_post_norm="post_feedforward_layernorm",
)  # fmt: skip
MIXTRAL_EXPERTS = Separate("experts.{e}.w1", "experts.{e}.w3", "experts.{e}.w2")
GRANITE_SCALES: dict[str, Any] = {
    "embedding_scale": key("embedding_multiplier", default=1.0),
    "residual_scale": key("residual_multiplier", default=1.0),
    "logit_divisor": key("logits_scaling", default=1.0),
}
GRANITE = replace(LLAMA, scale=key("attention_multiplier", default=1.0))
GRANITE_MOE = MoeRow(
    block="block_sparse_moe.", router="router.layer", scoring="softmax_top_k",
    experts=Stacked("input_linear.weight", "output_linear.weight"),
    num_experts=key("num_local_experts"), width=key("intermediate_size"), normalize=False,
)  # fmt: skip
DEEPSEEK_MOE = MoeRow(
    scoring="sigmoid", num_experts=key("n_routed_experts"),
    normalize=key("norm_topk_prob", default=True), normalize_epsilon=1e-20,
    scaling=key("routed_scaling_factor", default=1.0),
    correction="gate.e_score_correction_bias",
    groups=key("n_group", default=1), top_groups=key("topk_group", default=1),
    shared="mlp.shared_experts.",
    shared_width=(key("n_shared_experts", default=1), key("moe_intermediate_size")),
)  # fmt: skip
COHERE_NORMS: dict[str, Any] = {
    "norm_kind": "layer",
    "norm_eps": key("layer_norm_eps", default=1e-5),
}
GEMMA_SCALES: dict[str, Any] = {
    "eager": True,
    "unit_offset": True,
    "tied": True,
    "embedding_scale": "sqrt",
}
MTP = (r"model\.layers\.{n}\..*",)  # layers after the last predict further tokens


def window_of(default: int) -> Key:
    """The size of windows: ``default`` where a config does not say, none where it says null."""
    return key("sliding_window", default=default, null=0)


# Gemma 2 and VaultGemma; the layers alternate, the first has the window
GEMMA2 = replace(
    LLAMA, scale_by=key("query_pre_attn_scalar", default=256),
    soft_cap=key("attn_logit_softcapping", default=50.0, null=0.0),
    window=window_of(4096), windowed=windowed_but_every("", 2),
)  # fmt: skip
