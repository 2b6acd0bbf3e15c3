"""Families that edgekit knows and cannot compile, each with the reason that ``plan`` gives."""

from __future__ import annotations

MAMBA_1 = (
    "its Mamba layers fade every channel by itself (the first Mamba), which no graph writes yet"
)

ENCODER = "it is an encoder, of which `edgekit pack embedding` makes an embedding pack"

VISION = "it wraps a language model for images; only a checkpoint of the language model is compiled"

REFUSED: dict[str, str] = {
    "gemma3": VISION,
    "gemma3n": VISION,
    "gemma4": VISION,
    "llama4": VISION,
    "qwen3_5": VISION,
    "qwen3_5_moe": VISION,
    "bert": ENCODER,
    "roberta": ENCODER,
    "xlm-roberta": ENCODER,
    "bamba": "transformers 5.5 rotates whole heads where these models were trained to rotate half, "
    "so a graph has nothing to be checked against",
    "blt": "it reads patches of bytes instead of tokens",
    "diffllama": "its attention subtracts two softmaxes, which no fused operation computes",
    "doge": "its attention mask is computed from the values, and its experts are rows of an "
    "embedding picked by product keys",
    "falcon_h1": "its layers run an attention and a Mamba side by side, which no graph writes yet",
    "falcon_mamba": MAMBA_1,
    "gemma3n_text": "its layers mix several residual streams (AltUp) and read embeddings of "
    "their own, which no graph writes yet",
    "jamba": MAMBA_1,
    "mamba": MAMBA_1,
    "mamba2": "it has no attention, and engines are tried only with a cache of keys and values",
    "minimax": "its layers keep the recurrent state of a linear attention (Lightning Attention), "
    "which no graph writes yet",
    "nemotron_h": "its layers are a Mamba, an attention or a mixture alone, and its experts have "
    "no gate, which no graph writes yet",
    "olmo_hybrid": "its gated delta rule has three convolutions and its layers differ in their "
    "norms, which no graph writes yet",
    "recurrent_gemma": "its layers keep the state of a gated linear recurrence (RG-LRU), which no "
    "graph writes yet",
    "rwkv": "its layers keep the recurrent state of a time mix, which no graph writes yet",
    "xlstm": "its layers keep the recurrent state of an LSTM with matrix memory, which no graph "
    "writes yet",
    "zamba": MAMBA_1,
    "zamba2": "its layers share attentions that also read the embeddings, which no graph "
    "writes yet",
}
