"""A tiny random model of every family in the table, built from its Hugging Face config class.

Sizes divide by 32 so that int4 groups fit; windows are shorter than the tests' prompts and every
option of a family's router is on.
"""

from __future__ import annotations

from pathlib import Path

COMMON: dict[str, object] = {
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 512,
    "initializer_range": 0.15,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 2,
}
EXPERTS = {
    "num_experts": 4, "num_local_experts": 4, "n_routed_experts": 4, "num_experts_per_tok": 2,
    "moe_intermediate_size": 64,
}  # fmt: skip
GROUPS = {
    "n_routed_experts": 8, "num_local_experts": 8, "num_experts": 8, "n_group": 4,
    "topk_group": 2,
}  # fmt: skip
LATENT = {
    "q_lora_rank": 32, "kv_lora_rank": 32, "qk_nope_head_dim": 32, "qk_rope_head_dim": 16,
    "v_head_dim": 32, "num_key_value_heads": 4, "head_dim": 16,
}  # fmt: skip
WINDOW = {"sliding_window": 24}
EVERY_SECOND = {"layer_types": ["sliding_attention", "full_attention"]}
GEMMA = {"query_pre_attn_scalar": 24, "tie_word_embeddings": True, **WINDOW, **EVERY_SECOND}
CONVOLVED = {
    "num_hidden_layers": 3, "layer_types": ["conv", "full_attention", "conv"], "conv_L_cache": 3,
}  # fmt: skip
LINEAR = {
    "num_hidden_layers": 3,
    "layer_types": ["linear_attention", "full_attention", "linear_attention"],
    "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 32,
    "linear_value_head_dim": 16, "head_dim": 64,
}  # fmt: skip
GRANITE = {
    "attention_multiplier": 0.2, "residual_multiplier": 0.5, "embedding_multiplier": 3.0,
    "logits_scaling": 2.0,
}  # fmt: skip

DENSE: dict[str, dict[str, object]] = {
    "llama": {"tie_word_embeddings": True},
    "mistral": {"sliding_window": None, "tie_word_embeddings": False},
    "ministral": {**WINDOW},
    "ministral3": {
        "rope_parameters": {
            "rope_type": "yarn", "rope_theta": 1e4, "factor": 16.0, "beta_fast": 32.0,
            "beta_slow": 1.0, "original_max_position_embeddings": 32, "mscale": 1.0,
            "mscale_all_dim": 1.0, "llama_4_scaling_beta": 0.1,
        },
    },
    "qwen2": {"tie_word_embeddings": True, "num_attention_heads": 2, "num_key_value_heads": 1},
    "qwen3": {"tie_word_embeddings": True},
    "gemma": {"tie_word_embeddings": True},
    "gemma2": {**GEMMA, "attn_logit_softcapping": 2.0, "final_logit_softcapping": 5.0},
    "gemma3_text": GEMMA,
    "vaultgemma": {**GEMMA, "attn_logit_softcapping": 2.0, "final_logit_softcapping": 5.0},
    "glm": {},
    "glm4": {},
    "olmo": {"clip_qkv": 0.5},
    "olmo2": {},
    "olmo3": {**WINDOW, **EVERY_SECOND},
    "phi": {},
    "phi3": {**WINDOW},
    "granite": GRANITE,
    "smollm3": {"no_rope_layers": [1, 0], "tie_word_embeddings": True},
    "hunyuan_v1_dense": {},
    "ernie4_5": {"tie_word_embeddings": True, "use_bias": True},
    "cohere": {"logit_scale": 0.25},
    "cohere2": {"head_dim": 16, **WINDOW, **EVERY_SECOND},
    "exaone4": {**WINDOW, **EVERY_SECOND},
    "seed_oss": {},
    "helium": {"num_attention_heads": 2, "num_key_value_heads": 1},
    "arcee": {},
    "nemotron": {},
    "jais2": {},
    "cwm": {**WINDOW, **EVERY_SECOND},
    "starcoder2": {"head_dim": 16, **WINDOW},
    "stablelm": {"head_dim": 16},
    "youtu": LATENT,
    "qwen3_5_text": LINEAR,
    "lfm2": {**CONVOLVED, "block_multiple_of": 32},
}  # fmt: skip

SPARSE: dict[str, dict[str, object]] = {
    "mixtral": {"sliding_window": None, "tie_word_embeddings": True, **EXPERTS},
    "qwen2_moe": {**EXPERTS, "shared_expert_intermediate_size": 96},
    "qwen3_moe": {**EXPERTS, "tie_word_embeddings": False, "norm_topk_prob": True},
    "olmoe": {**EXPERTS, "head_dim": 16, "clip_qkv": 1.0},
    "flex_olmo": EXPERTS,
    "deepseek_v2": {
        **EXPERTS, **LATENT, **GROUPS, "n_shared_experts": 2, "first_k_dense_replace": 1,
        "topk_method": "group_limited_greedy", "routed_scaling_factor": 1.5,
    },
    "deepseek_v3": {
        **EXPERTS, **LATENT, **GROUPS, "n_shared_experts": 1, "first_k_dense_replace": 1,
        "rope_parameters": {
            "rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "mscale": 1.0,
            "mscale_all_dim": 0.7, "original_max_position_embeddings": 128,
        },
    },
    "glm4_moe": {
        **EXPERTS, **GROUPS, "n_shared_experts": 1, "first_k_dense_replace": 1,
        "use_qk_norm": True, "attention_bias": True, "routed_scaling_factor": 1.3,
    },
    "glm4_moe_lite": {**EXPERTS, **LATENT, **GROUPS, "n_shared_experts": 1},
    "glm_moe_dsa": {
        **EXPERTS, **LATENT, **GROUPS, "n_shared_experts": 1, "index_topk": 256,
        "index_n_heads": 2, "index_head_dim": 32, "mlp_layer_types": ["dense", "sparse"],
    },
    "dots1": {**EXPERTS, **GROUPS, "n_shared_experts": 1, "first_k_dense_replace": 1},
    "solar_open": {**EXPERTS, **GROUPS, "n_shared_experts": 1},
    "exaone_moe": {
        **EXPERTS, **GROUPS, **WINDOW, **EVERY_SECOND, "num_shared_experts": 1,
        "mlp_layer_types": ["dense", "sparse"],
    },
    "phimoe": {**EXPERTS, "router_jitter_noise": 0.2, "attention_bias": True,
               "lm_head_bias": True},
    "hunyuan_v1_moe": {**EXPERTS, "moe_topk": 2},
    "minimax_m2": {
        **EXPERTS,
        "rope_parameters": {"rope_type": "default", "rope_theta": 5e6,
                            "partial_rotary_factor": 0.5},
    },
    "afmoe": {
        **EXPERTS, **WINDOW, **EVERY_SECOND, "num_dense_layers": 1, "num_shared_experts": 1,
        "mup_enabled": True, "route_scale": 1.2,
    },
    "dbrx": {
        "d_model": 64, "n_heads": 4, "n_layers": 2, "max_seq_len": 512, "head_dim": 16,
        "attn_config": {"kv_n_heads": 2, "clip_qkv": 0.8, "rope_theta": 10000.0},
        "ffn_config": {"ffn_hidden_size": 64, "hidden_size": 64, "moe_num_experts": 4,
                       "moe_top_k": 2},
    },
    "ernie4_5_moe": {
        "moe_num_experts": 4, "moe_k": 2, "moe_intermediate_size": 64,
        "moe_num_shared_experts": 1, "moe_layer_start_index": 1, "moe_layer_end_index": 1,
    },
    "granitemoe": {**EXPERTS, **GRANITE},
    "granitemoeshared": {**EXPERTS, **GRANITE, "shared_intermediate_size": 96},
    "granitemoehybrid": {
        **EXPERTS, **GRANITE, "shared_intermediate_size": 96, "position_embedding_type": "rope",
        "layer_types": ["attention", "attention"],
    },
    "jetmoe": {**EXPERTS, "kv_channels": 32, "num_local_experts": 6, "rms_norm_eps": 1e-5},
    "gemma4_text": {
        **EXPERTS, **WINDOW, **EVERY_SECOND, "top_k_experts": 2, "enable_moe_block": True,
        "global_head_dim": 64, "num_global_key_value_heads": 1, "attention_k_eq_v": True,
        "hidden_size_per_layer_input": 0, "final_logit_softcapping": 5.0,
    },
    "longcat_flash": {
        **EXPERTS, **LATENT, "num_layers": 2, "ffn_hidden_size": 128, "moe_topk": 3,
        "expert_ffn_hidden_size": 64, "zero_expert_num": 3, "routed_scaling_factor": 1.5,
    },
    "qwen3_next": {**EXPERTS, **LINEAR, "shared_expert_intermediate_size": 96},
    "qwen3_5_moe_text": {**EXPERTS, **LINEAR, "shared_expert_intermediate_size": 96},
    "gpt_oss": {**EXPERTS, **WINDOW, **EVERY_SECOND},
    "llama4_text": {
        **EXPERTS, "num_experts_per_tok": 1, "intermediate_size_mlp": 96, "floor_scale": 16,
        "no_rope_layers": [1, 0], "interleave_moe_layer_step": 2, "attention_chunk_size": 256,
    },
    "lfm2_moe": {
        **EXPERTS, **CONVOLVED, "num_dense_layers": 1, "norm_topk_prob": True,
        "routed_scaling_factor": 1.3,
    },
    "aria_text": {"moe_num_experts": 4, "moe_topk": 2, "moe_num_shared_experts": 1},
}  # fmt: skip

FAMILY_OPTIONS = {**DENSE, **SPARSE}


def build_weights(directory: Path, family: str, seed: int = 0, **options: object) -> None:
    """Save a random model of ``family``; ``options`` override its config."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(seed)
    config = AutoConfig.for_model(family, **{**COMMON, **FAMILY_OPTIONS[family], **options})
    model = AutoModelForCausalLM.from_config(config).eval()
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if "correction_bias" in name or name.endswith("expert_bias"):
            tensor.data += 0.1 * torch.rand_like(tensor)  # a negative score would tie with a
            # masked group's, which the families set to 0
        elif "norm" in name or name.endswith(("bias", "sinks", "scale", "scalar")):
            # ones and zeros would hide a swapped tensor
            tensor.data += 0.1 * torch.randn_like(tensor)
    model.save_pretrained(directory)
