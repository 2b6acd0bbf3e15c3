"""Families that edgekit knows and cannot compile, each with the reason that ``plan`` gives."""

from __future__ import annotations

MAMBA = "its layers keep the state of a selective scan (Mamba) in a form that no graph writes yet"
DELTA = "its layers keep the recurrent state of a gated delta rule, which no graph writes yet"

REFUSED: dict[str, str] = {
    "bamba": MAMBA,
    "blt": "it reads patches of bytes instead of tokens",
    "diffllama": "its attention subtracts two softmaxes, which no fused operation computes",
    "doge": "its attention mask is computed from the values, and its experts are rows of an "
    "embedding picked by product keys",
    "falcon_h1": MAMBA,
    "falcon_mamba": MAMBA,
    "gemma3n_text": "its layers mix several residual streams (AltUp) and read embeddings of "
    "their own, which no graph writes yet",
    "jamba": MAMBA,
    "mamba": MAMBA,
    "mamba2": MAMBA,
    "minimax": "its layers keep the recurrent state of a linear attention (Lightning Attention), "
    "which no graph writes yet",
    "nemotron_h": MAMBA,
    "olmo_hybrid": DELTA,
    "recurrent_gemma": "its layers keep the state of a gated linear recurrence (RG-LRU), which no "
    "graph writes yet",
    "rwkv": "its layers keep the recurrent state of a time mix, which no graph writes yet",
    "xlstm": "its layers keep the recurrent state of an LSTM with matrix memory, which no graph "
    "writes yet",
    "zamba": MAMBA,
    "zamba2": MAMBA,
}
