"""Embedders: texts in, vectors of length 1 out, on OpenVINO or ONNX Runtime.

Texts are tokenized here, put into batches of about equal length, and pooled inside the graph, so
both runtimes are given the same token ids and give the same vectors.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from edgekit.encoder_text import PassageTokenizer
from edgekit.errors import EdgekitError
from edgekit.manifest import Embedding, Manifest, read_manifest, require_kind
from edgekit.progress import Silent
from edgekit.runtimes.devices import locate
from edgekit.runtimes.embedding_sessions import EmbeddingSession, open_session
from edgekit.text import TOKENIZER

Kind = Literal["query", "passage"]
BATCH_TOKENS = 4096  # of one batch, padding included: bounds the memory of a run
BATCH_TEXTS = 64


class Embedder(Protocol):
    """A loaded embedding model. Thread safe; calls take turns, batch by batch.

    Attributes:
        id: names the model, its version and its weights; vectors of different ids do not compare.
        dim: length of a vector.
        max_tokens: tokens of a text that count, special tokens and prefix included.
    """

    id: str
    dim: int
    max_tokens: int

    def embed(self, texts: Sequence[str], kind: Kind = "passage") -> NDArray[np.float32]:
        """Vectors [n, dim], rows of length 1, in the order of ``texts``; [0, dim] for none.

        ``kind`` chooses the model's prefix. What exceeds ``max_tokens`` is cut off.

        Raises:
            MissingRuntimeError: the device fails.
        """

    def count_tokens(self, text: str) -> int:
        """Tokens of ``text`` as a passage, special tokens and prefix included, before any cut."""

    def close(self) -> None:
        """Free the model."""


class PackEmbedder:
    """An :class:`Embedder` over a loaded graph."""

    def __init__(
        self, session: EmbeddingSession, tokenizer: PassageTokenizer, settings: Embedding, id: str
    ) -> None:
        self.id = id
        self.dim = settings.dim
        self.max_tokens = settings.max_tokens
        self._prefixes = {"query": settings.query_prefix, "passage": settings.passage_prefix}
        self._tokenizer = tokenizer
        self._session: EmbeddingSession | None = session
        self._lock = threading.Lock()

    def embed(self, texts: Sequence[str], kind: Kind = "passage") -> NDArray[np.float32]:
        """Vectors [n, dim], rows of length 1."""
        prefix = self._prefixes[kind]
        return self.embed_tokens(self._tokenizer.encode([prefix + text for text in texts]))

    def embed_tokens(self, tokens: Sequence[Sequence[int]]) -> NDArray[np.float32]:
        """Vectors [n, dim] of token ids with their special tokens."""
        vectors = np.empty((len(tokens), self.dim), np.float32)
        for batch in batches([len(text) for text in tokens]):
            ids, mask = padded([tokens[i] for i in batch])
            with self._lock:
                if self._session is None:
                    raise EdgekitError("the embedder is closed; load the pack again")
                vectors[batch] = self._session.run(ids, mask)
        return vectors

    def count_tokens(self, text: str) -> int:
        """Tokens of ``text`` as a passage, before any cut."""
        return self._tokenizer.count(self._prefixes["passage"] + text)

    def close(self) -> None:
        """Free the model."""
        with self._lock:
            self._session = None


def batches(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Indices of texts that go together, the longest first: if memory is short, it shows at once.

    A batch has at most ``BATCH_TEXTS`` texts and, unless one text alone is longer, at most
    ``BATCH_TOKENS`` tokens with the padding to its longest.
    """
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    while order:
        longest = max(lengths[order[0]], 1)
        count = min(max(1, BATCH_TOKENS // longest), BATCH_TEXTS)
        yield order[:count]
        order = order[count:]


def padded(tokens: Sequence[Sequence[int]]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Token ids and mask [B, T], padded on the right with id 0, which the mask hides."""
    shape = (len(tokens), max(map(len, tokens)))
    ids, mask = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    for row, text in enumerate(tokens):
        ids[row, : len(text)] = text
        mask[row, : len(text)] = 1
    return ids, mask


def load_embedder(pack: Path, target: str = "") -> Embedder:
    """Load an embedding pack for ``target``, or for the best that this machine has.

    Every byte is checked against the manifest first.

    Raises:
        BadInputError: not an embedding pack, damaged, or not made for ``target``.
        MissingRuntimeError: the runtime or the device is not there.
    """
    manifest = read_manifest(pack)
    require_kind(manifest, pack, "embedding")
    assert manifest.embedding is not None
    variant, target = locate(pack, target, Silent(), kind="embedding")
    tokenizer = PassageTokenizer(variant, manifest.embedding.max_tokens)
    session = open_session(variant, target)
    return PackEmbedder(session, tokenizer, manifest.embedding, embedder_id(manifest))


def embedder_id(manifest: Manifest) -> str:
    """``name-version-digest``; the digest covers weights, tokenizer, pooling and prefixes."""
    assert manifest.embedding is not None
    files = [
        file.sha256
        for variant in manifest.variants
        for file in variant.files
        if file.path in (variant.weights_file, TOKENIZER)
    ]
    parts = json.dumps([files, manifest.embedding.model_dump(exclude={"languages"})])
    return f"{manifest.name}-{manifest.version}-{sha256(parts.encode()).hexdigest()[:12]}"
