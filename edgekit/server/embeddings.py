"""``POST /v1/embeddings``: texts to vectors, by the pack given with ``--embeddings``.

The embedder works in one thread, so that answers go on meanwhile; only ``QUEUE`` requests may wait
for it.
"""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from starlette.requests import Request
from starlette.responses import Response

from edgekit.runtimes.embedding import Embedder
from edgekit.server.errors import ApiError, bad_request
from edgekit.server.requests import EmbeddingsRequest
from edgekit.server.service import Service, service_of
from edgekit.server.wire import json_response, parse, unless_gone

QUEUE = 16
Kind = Literal["query", "passage"]


class EmbeddingThread:
    """The thread of one embedder."""

    def __init__(self, embedder: Embedder) -> None:
        self.embedder = embedder
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="embedder")
        self._waiting = 0

    async def embed(
        self, texts: Sequence[str], kind: Kind, cut: bool = False
    ) -> tuple[NDArray[np.float32], list[int]]:
        """Vectors [n, dim] of length 1, and the tokens of each text.

        Raises:
            ApiError: too many wait (429), or a text is too long and may not be ``cut`` (400).
        """
        if self._waiting >= QUEUE:
            raise ApiError(
                429, "queue_full", "too many texts wait; try again in a moment", retry_after=2
            )
        self._waiting += 1
        try:
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(self._thread, self._work, texts, kind, cut)
        finally:
            self._waiting -= 1

    def _work(
        self, texts: Sequence[str], kind: Kind, cut: bool
    ) -> tuple[NDArray[np.float32], list[int]]:
        counts = [self.embedder.count_tokens(text) for text in texts]
        longest = self.embedder.max_tokens
        for number, count in enumerate(counts):
            if count > longest and not cut:
                raise bad_request(
                    f"input.{number} has {count} tokens but the model takes {longest}; split it",
                    "input",
                )
        return self.embedder.embed(texts, kind), [min(c, longest) for c in counts]

    def close(self) -> None:
        """Free the model."""
        self._thread.shutdown(wait=True, cancel_futures=True)
        self.embedder.close()


async def embeddings(request: Request) -> Response:
    """Vectors of one text or several."""
    service = service_of(request)
    body, warnings = await parse(request, EmbeddingsRequest)
    thread = embedder_of(service, body.model)
    texts = [body.input] if isinstance(body.input, str) else list(body.input)
    if not all(isinstance(text, str) for text in texts):
        raise bad_request("input must be texts: tokens belong to another model", "input")
    words = [str(text) for text in texts]
    check_texts(words)
    vectors, counts = await unless_gone(request, thread.embed(words, body.input_type or "passage"))
    vectors = shortened(vectors, body.dimensions)
    encode = _base64 if body.encoding_format == "base64" else _floats
    data = [
        {"object": "embedding", "index": n, "embedding": encode(v)} for n, v in enumerate(vectors)
    ]
    answer: dict[str, Any] = {
        "object": "list",
        "data": data,
        "model": service.embedding_model,
        "usage": {"prompt_tokens": sum(counts), "total_tokens": sum(counts)},
    }
    if warnings:
        answer["edgekit"] = {"warnings": warnings}
    return json_response(answer)


def embedder_of(service: Service, name: str | None) -> EmbeddingThread:
    """The embedder that a request names; no name means it.

    Raises:
        ApiError: there is none (400, or 503 while it loads), or another is named (404).
    """
    if service.embedder is None:
        if service.embedding_error:
            raise bad_request(service.embedding_error, "model", "no_embeddings")
        raise ApiError(503, "loading", "the embedding model is loading", retry_after=2)
    known = (service.embedding_model, "default")
    if name is not None and name.removesuffix(":latest") not in known:
        raise ApiError(
            404, "model_not_found",
            f"the model {name!r} is not here; embeddings are made by {known[0]!r}", "model",
        )  # fmt: skip
    return service.embedder


def check_texts(texts: Sequence[str]) -> None:
    """Refuse empty texts, which have no meaning to turn into a vector.

    Raises:
        ApiError: a text is empty (400).
    """
    if not texts or not all(text.strip() for text in texts):
        raise bad_request("input holds an empty text; leave it out", "input")


def shortened(vectors: NDArray[np.float32], dimensions: int | None) -> NDArray[np.float32]:
    """The first ``dimensions`` of each vector, brought to length 1 again.

    Raises:
        ApiError: the vectors are shorter (400).
    """
    if dimensions is None or dimensions == vectors.shape[1]:
        return vectors
    if dimensions > vectors.shape[1]:
        raise bad_request(
            f"dimensions is {dimensions} but the model's vectors have {vectors.shape[1]}",
            "dimensions",
        )
    cut = vectors[:, :dimensions]
    length = np.linalg.norm(cut, axis=1, keepdims=True)
    return np.asarray(cut / np.maximum(length, 1e-12), np.float32)


def _floats(vector: NDArray[np.float32]) -> list[float]:
    return [float(v) for v in vector]


def _base64(vector: NDArray[np.float32]) -> str:
    return base64.b64encode(np.ascontiguousarray(vector, "<f4").tobytes()).decode()
