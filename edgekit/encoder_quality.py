"""What an embedding pack is measured for: how near its vectors are to the model's, and how fast.

The texts are a fixed list of short ones in several languages (``data/embedding_texts.json``), and
the same joined to longer ones. None of them was used to quantize, which looks at weights alone.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from importlib import resources

import numpy as np
from numpy.typing import NDArray

from edgekit.manifest import EmbeddingQuality, EmbeddingSpeed
from edgekit.runtimes.embedding import PackEmbedder

TEXTS = "data/embedding_texts.json"
JOINED = 8  # texts of one longer text
PASSAGE_TOKENS, PASSAGES = 400, 8
QUERY_TOKENS, QUERIES = 12, 20


def sample_texts() -> list[str]:
    """The short texts, then the longer ones."""
    short: list[str] = json.loads((resources.files("edgekit") / TEXTS).read_text("utf-8"))
    return short + [" ".join(short[i : i + JOINED]) for i in range(0, len(short), JOINED)]


def quality(vectors: NDArray[np.float32], reference: NDArray[np.float32]) -> EmbeddingQuality:
    """Cosines of vectors [n, dim] to those of the reference, all of length 1."""
    cosines = (vectors.astype(np.float64) * reference).sum(axis=1)
    return EmbeddingQuality(
        mean_cosine=round(float(cosines.mean()), 6),
        min_cosine=round(float(cosines.min()), 6),
        texts=len(cosines),
    )


def speed(embedder: PackEmbedder, tokens: Sequence[Sequence[int]]) -> EmbeddingSpeed:
    """Passages per second in batches and queries per second one by one, after a first run of each.

    Their token ids are cut from ``tokens``, those of some texts.
    """
    length = min(PASSAGE_TOKENS, embedder.max_tokens)
    passages = _cut(tokens, length, PASSAGES)
    queries = _cut(tokens, min(QUERY_TOKENS, embedder.max_tokens), QUERIES)
    return EmbeddingSpeed(
        passages_per_second=round(PASSAGES / _seconds(embedder, [passages]), 2),
        passage_tokens=length,
        queries_per_second=round(QUERIES / _seconds(embedder, [[q] for q in queries]), 2),
        query_tokens=len(queries[0]),
    )


def _cut(tokens: Sequence[Sequence[int]], length: int, count: int) -> list[list[int]]:
    """``count`` different sequences of ``length`` token ids."""
    stream = [token for text in tokens for token in text]
    stream *= 1 + (length + count) // len(stream)
    return [stream[start : start + length] for start in range(count)]


def _seconds(embedder: PackEmbedder, calls: Sequence[Sequence[Sequence[int]]]) -> float:
    embedder.embed_tokens(calls[0])  # the first run of a shape prepares it
    start = time.perf_counter()
    for call in calls:
        embedder.embed_tokens(call)
    return time.perf_counter() - start
