"""``genai_config.json``: how ONNX Runtime GenAI drives the graph."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from edgekit.architecture import Architecture, ShortConv


def genai_config(architecture: Architecture, end_tokens: Iterable[int]) -> dict[str, Any]:
    """The configuration for the graph of :mod:`edgekit.runtimes.onnx_graph`.

    GenAI demands an end token inside the vocabulary; a model that has none gets token 0.
    """
    ends = sorted(t for t in end_tokens if t < architecture.vocab_size) or [0]
    decoder: dict[str, Any] = {
        "session_options": {"log_id": "edgekit", "provider_options": []},
        "filename": "model.onnx",
        "head_size": architecture.head_dim,
        "hidden_size": architecture.hidden_size,
        "num_attention_heads": architecture.num_attention_heads,
        "num_hidden_layers": architecture.num_hidden_layers,
        "num_key_value_heads": architecture.num_key_value_heads,
        "inputs": {
            "input_ids": "input_ids",
            "attention_mask": "attention_mask",
            "past_key_names": "past_key_values.%d.key",
            "past_value_names": "past_key_values.%d.value",
        },
        "outputs": {
            "logits": "logits",
            "present_key_names": "present.%d.key",
            "present_value_names": "present.%d.value",
        },
    }
    states = _conv_states(architecture, decoder)
    return {
        "model": {
            # GenAI's names for any decoder with keys and values, and for one with conv states too
            "type": "lfm2" if states else "llama",
            "bos_token_id": ends[0],
            "eos_token_id": ends if len(ends) > 1 else ends[0],
            "pad_token_id": ends[0],
            "vocab_size": architecture.vocab_size,
            "context_length": architecture.context_length,
            "decoder": decoder,
        },
        "search": {
            "max_length": architecture.context_length,
            "min_length": 0,
            "do_sample": False,
            "past_present_share_buffer": True,
        },
    }


def _conv_states(architecture: Architecture, decoder: dict[str, Any]) -> bool:
    """Name the states of short convolutions in ``decoder``; False where there are none."""
    mixers = [layer.attention for layer in architecture.layers]
    convolutions = [mixer for mixer in mixers if isinstance(mixer, ShortConv)]
    if not convolutions:
        return False
    decoder["conv_cache_size"] = convolutions[0].length - 1
    decoder["layer_types"] = [
        "conv" if isinstance(mixer, ShortConv) else "full_attention" for mixer in mixers
    ]
    decoder["inputs"]["past_conv_names"] = "past_conv.%d"
    decoder["outputs"]["present_conv_names"] = "present_conv.%d"
    return True
