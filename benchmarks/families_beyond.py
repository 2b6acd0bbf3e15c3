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

BEYOND: dict[str, dict[str, object]] = {
    "jamba": {**EXPERTS, **MAMBA, "mamba_dt_rank": 8, "attn_layer_period": 2,
              "attn_layer_offset": 1, "head_dim": 16},
    "nemotron_h": {**EXPERTS, "layers_block_type": ["mamba", "attention", "moe"],
                   "n_routed_experts": 4, "moe_shared_expert_intermediate_size": 64,
                   "ssm_state_size": 16, "mamba_num_heads": 4, "mamba_head_dim": 32,
                   "n_groups": 2, "chunk_size": 16, "use_mamba_kernels": False},
    "minimax": {**EXPERTS, "layer_types": ["linear_attention", "full_attention"],
                "block_size": 32},
    "doge": {"head_dim": 16, "keep_window_size": 512},
}  # fmt: skip
DENSE_BEYOND = ("doge",)

# What a published config says and a tiny one does not, where a peer reads it.
AS_PUBLISHED: dict[str, dict[str, Any]] = {
    # phi has neither groups nor wide heads, and optimum-intel traces it with neither; ONNX Runtime
    # rotates 16 dimensions or more
    "phi": {"num_key_value_heads": 4, "hidden_size": 128},
    "phi3": {"original_max_position_embeddings": 512},  # else the builder takes it for LongRoPE
}
