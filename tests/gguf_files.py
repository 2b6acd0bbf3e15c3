"""Tiny GGUF files written as llama.cpp's converter writes them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Kind
from safetensors.numpy import load_file

NAMES = {
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}  # fmt: skip
TOP = {
    "model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output",
}  # fmt: skip


def interleave(values: np.ndarray, heads: int) -> np.ndarray:
    """``permute`` of llama.cpp's convert_hf_to_gguf.py."""
    rows, columns = values.shape
    return values.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, -1)


def write_gguf(
    checkpoint: Path,
    target: Path,
    kind: Kind = Kind.F32,
    extra: dict[str, np.ndarray] | None = None,
    without: str = "",
    **metadata: Any,
) -> Path:
    """The llama ``checkpoint`` as a GGUF file; ``metadata`` overrides keys, None drops one."""
    config = json.loads((checkpoint / "config.json").read_text())
    weights = load_file(checkpoint / "model.safetensors")
    writer = gguf.GGUFWriter(target, "llama")
    for key, value in _metadata(checkpoint, config, metadata).items():
        if isinstance(value, str):
            writer.add_string(key, value)
        elif isinstance(value, float):
            writer.add_float32(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        elif value is not None:
            writer.add_array(key, value)
    heads = {"q_proj": config["num_attention_heads"], "k_proj": config["num_key_value_heads"]}
    for name, values in sorted(weights.items()):
        for leaf, count in heads.items():
            if leaf in name:
                values = interleave(values, count)
        if (translated := gguf_name(name)) != without:
            _add(writer, translated, values, kind)
    for name, values in (extra or {}).items():
        _add(writer, name, values, Kind.F32)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target


def gguf_name(name: str) -> str:
    """The GGUF name of a Hugging Face tensor."""
    module = name.removesuffix(".weight")
    if module in TOP:
        return f"{TOP[module]}.weight"
    _, _, layer, leaf = module.split(".", 3)
    return f"blk.{layer}.{NAMES[leaf]}.weight"


def _add(writer: gguf.GGUFWriter, name: str, values: np.ndarray, kind: Kind) -> None:
    kind = kind if values.ndim > 1 else Kind.F32
    writer.add_tensor(name, gguf.quantize(values, kind), raw_dtype=kind)


def _metadata(checkpoint: Path, config: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    tokenizer = json.loads((checkpoint / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    tokens = sorted(vocabulary, key=vocabulary.__getitem__)
    tokens += [f"[PAD{i}]" for i in range(len(tokens), config["vocab_size"])]  # as the converter
    special = {t["content"] for t in tokenizer["added_tokens"]}
    values: dict[str, Any] = {
        "llama.block_count": config["num_hidden_layers"],
        "llama.context_length": config["max_position_embeddings"],
        "llama.embedding_length": config["hidden_size"],
        "llama.feed_forward_length": config["intermediate_size"],
        "llama.attention.head_count": config["num_attention_heads"],
        "llama.attention.head_count_kv": config["num_key_value_heads"],
        "llama.attention.key_length": config["head_dim"],
        "llama.attention.layer_norm_rms_epsilon": config["rms_norm_eps"],
        "llama.rope.dimension_count": config["head_dim"],
        "llama.rope.freq_base": float(config["rope_parameters"]["rope_theta"]),
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3 if t in special else 1 for t in tokens],
        "tokenizer.ggml.merges": [" ".join(m) for m in tokenizer["model"]["merges"]],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.chat_template": (checkpoint / "chat_template.jinja").read_text(),
    }
    return {**values, **{k.replace("__", "."): v for k, v in changes.items()}}
