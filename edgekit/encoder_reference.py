"""An embedding model in float32 numpy, as its checkpoint says: what packs are measured against.

The weights of one layer are in memory at a time; each goes over all texts before the next is read.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from edgekit.encoder import POSITIONS, TYPES, WORDS, Encoder, EncoderLayer
from edgekit.encoder_checkpoint import EncoderCheckpoint
from edgekit.mixers import Norm
from edgekit.progress import Progress

Float = NDArray[np.float32]


def reference_vectors(
    checkpoint: EncoderCheckpoint, tokens: Sequence[Sequence[int]], progress: Progress
) -> Float:
    """Vectors [n, hidden_size], rows of length 1, of token ids with their special tokens."""
    encoder = checkpoint.architecture
    states = _embedded(checkpoint, tokens)
    with progress.task("compute the reference", len(encoder.layers)) as task:
        for layer in encoder.layers:
            weights = _Weights(checkpoint, layer)
            states = [weights.apply(x) for x in states]
            task.advance()
    cls = checkpoint.settings.pooling == "cls"
    pooled = np.stack([x[0] if cls else x.mean(axis=0) for x in states])
    return pooled / np.linalg.norm(pooled, axis=1, keepdims=True)


def _embedded(checkpoint: EncoderCheckpoint, tokens: Sequence[Sequence[int]]) -> list[Float]:
    encoder = checkpoint.architecture
    seen = {token for text in tokens for token in text}
    rows = {t: checkpoint.float32(f"{WORDS}.weight", slice(t, t + 1))[0] for t in sorted(seen)}
    positions = checkpoint.float32(POSITIONS)[encoder.position_offset :]
    first = checkpoint.float32(TYPES)[0]
    norm = _norm(checkpoint, encoder.embedding_norm)
    words = [np.stack([rows[token] for token in text]) for text in tokens]
    return [_normed(w + positions[: len(w)] + first, *norm) for w in words]


class _Weights:
    """One layer's weights, and what it does to the states [T, H] of one text."""

    def __init__(self, checkpoint: EncoderCheckpoint, layer: EncoderLayer) -> None:
        self.encoder: Encoder = checkpoint.architecture
        self.activation = layer.feed_forward.activation
        modules = {"q": layer.q, "k": layer.k, "v": layer.v, "o": layer.o,
                   "up": layer.feed_forward.up, "down": layer.feed_forward.down}  # fmt: skip
        self.linear = {
            name: (checkpoint.float32(f"{m}.weight").T, checkpoint.float32(f"{m}.bias"))
            for name, m in modules.items()
        }
        self.attention_norm = _norm(checkpoint, layer.attention_norm)
        self.feed_forward_norm = _norm(checkpoint, layer.feed_forward_norm)

    def apply(self, x: Float) -> Float:
        """The layer of x [T, H]."""
        x = _normed(x + self._attention(x), *self.attention_norm)
        y = self._product("down", activated(self._product("up", x), self.activation))
        return _normed(x + y, *self.feed_forward_norm)

    def _attention(self, x: Float) -> Float:
        heads = (len(x), self.encoder.num_heads, self.encoder.head_dim)
        q, k, v = (self._product(n, x).reshape(heads).transpose(1, 0, 2) for n in "qkv")
        scores = q @ k.transpose(0, 2, 1) / np.float32(np.sqrt(self.encoder.head_dim))
        weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
        mixed = (weights / weights.sum(axis=-1, keepdims=True)) @ v
        return self._product("o", mixed.transpose(1, 0, 2).reshape(x.shape))

    def _product(self, name: str, x: Float) -> Float:
        weight, bias = self.linear[name]
        return x @ weight + bias


def _norm(checkpoint: EncoderCheckpoint, norm: Norm) -> tuple[Float, Float, float]:
    parts = (checkpoint.float32(f"{norm.module}.{part}") for part in ("weight", "bias"))
    weight, bias = parts
    return weight, bias, norm.eps


def _normed(x: Float, weight: Float, bias: Float, eps: float) -> Float:
    centred = x - x.mean(axis=-1, keepdims=True)
    variance = np.square(centred).mean(axis=-1, keepdims=True)
    return centred / np.sqrt(variance + np.float32(eps)) * weight + bias


def activated(x: Float, kind: str) -> Float:
    """gelu, gelu_tanh or relu."""
    if kind == "relu":
        return np.maximum(x, np.float32(0))
    if kind == "gelu_tanh":
        inner = np.float32(np.sqrt(2 / np.pi)) * (x + np.float32(0.044715) * x * x * x)
        return x * (np.float32(0.5) + np.float32(0.5) * np.tanh(inner))
    return x * (np.float32(0.5) + np.float32(0.5) * _erf(x * np.float32(np.sqrt(0.5))))


def _erf(x: Float) -> Float:
    """The error function to 1.5e-7 (Abramowitz and Stegun, 7.1.26); numpy has none."""
    t: Float = np.reciprocal(np.float32(1) + np.float32(0.3275911) * np.abs(x))
    series: Float = np.zeros_like(x)
    for factor in (1.061405429, -1.453152027, 1.421413741, -0.284496736, 0.254829592):
        series = (series + np.float32(factor)) * t
    return np.sign(x) * (np.float32(1) - series * np.exp(-np.square(x)))
