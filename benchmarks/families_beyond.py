"""Tiny configs of families that are not in edgekit's table: what its peers may run and it may not.

Mostly hybrids of attention with convolutions or state-space layers. The options override those
that every tiny model shares (``tests/tiny_families.py``).
"""

from __future__ import annotations

from typing import Any

EXPERTS: dict[str, object] = {
    "num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2,
    "moe_intermediate_size": 64, "shared_expert_intermediate_size": 64,
}  # fmt: skip
MAMBA: dict[str, object] = {
    "mamba_d_state": 16, "mamba_d_conv": 4, "mamba_expand": 2, "use_mamba_kernels": False,
}  # fmt: skip
DELTA: dict[str, object] = {
    "linear_key_head_dim": 32, "linear_value_head_dim": 32, "linear_num_key_heads": 2,
    "linear_num_value_heads": 4, "layer_types": ["linear_attention", "full_attention"],
}  # fmt: skip

BEYOND: dict[str, dict[str, object]] = {
    "qwen3_next": {**EXPERTS, **DELTA},
    "qwen3_5_moe_text": {**EXPERTS, **DELTA},
    "lfm2_moe": {**EXPERTS, "layer_types": ["conv", "full_attention"], "num_dense_layers": 1,
                 "head_dim": 16},
    "jamba": {**EXPERTS, **MAMBA, "mamba_dt_rank": 8, "attn_layer_period": 2,
              "attn_layer_offset": 1, "head_dim": 16},
    "granitemoehybrid": {**EXPERTS, **MAMBA, "layer_types": ["mamba", "attention"],
                         "mamba_n_heads": 4, "mamba_d_head": 32, "mamba_chunk_size": 16,
                         "shared_intermediate_size": 96, "head_dim": 16,
                         "position_embedding_type": "rope"},
    "nemotron_h": {**EXPERTS, "layers_block_type": ["mamba", "attention", "moe"],
                   "n_routed_experts": 4, "moe_shared_expert_intermediate_size": 64,
                   "ssm_state_size": 16, "mamba_num_heads": 4, "mamba_head_dim": 32,
                   "n_groups": 2, "chunk_size": 16, "use_mamba_kernels": False},
    "minimax": {**EXPERTS, "layer_types": ["linear_attention", "full_attention"],
                "block_size": 32},
    "longcat_flash": {"num_layers": 2, "ffn_hidden_size": 128, "q_lora_rank": 32,
                      "kv_lora_rank": 32, "qk_nope_head_dim": 32, "qk_rope_head_dim": 16,
                      "v_head_dim": 32, "head_dim": 16, "num_key_value_heads": 4,
                      "moe_topk": 2, "n_routed_experts": 4, "zero_expert_num": 2,
                      "expert_ffn_hidden_size": 64},
    "jetmoe": {**EXPERTS, "kv_channels": 32, "num_key_value_heads": 2, "head_dim": 32,
               "num_attention_heads": 4},
    "gemma4_text": {"sliding_window": 24, "global_head_dim": 64,
                    "layer_types": ["sliding_attention", "full_attention"],
                    "hidden_size_per_layer_input": 32, "vocab_size_per_layer_input": 512},
    "doge": {"head_dim": 16, "keep_window_size": 512},
}  # fmt: skip
DENSE_BEYOND = ("gemma4_text", "doge")

# What a published config says and a tiny one does not, where a peer reads it.
AS_PUBLISHED: dict[str, dict[str, Any]] = {
    # phi has neither groups nor wide heads, and optimum-intel traces it with neither; ONNX Runtime
    # rotates 16 dimensions or more
    "phi": {"num_key_value_heads": 4, "hidden_size": 128},
    "phi3": {"original_max_position_embeddings": 512},  # else the builder takes it for LongRoPE
}
