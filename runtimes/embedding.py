"""Embedders: texts in, vectors of length 1 out, on OpenVINO or ONNX Runtime.

Texts are tokenized here, put into batches of about equal length, and pooled inside the graph, so
both runtimes are given the same token ids and give the same vectors.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from edgekit.errors import BadInputError

Kind = Literal["query", "passage"]


class Embedder(Protocol):
    """A loaded embedding model. Thread safe; calls take turns.

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
        """

    def count_tokens(self, text: str) -> int:
        """Tokens of ``text`` as a passage, special tokens and prefix included, before any cut."""

    def close(self) -> None:
        """Free the model."""


def load_embedder(pack: Path, target: str = "") -> Embedder:
    """Load an embedding pack for ``target``, or for the best that this machine has.

    Raises:
        BadInputError: not an embedding pack, damaged, or not made for ``target``.
        MissingRuntimeError: the runtime or the device is not there.
    """
    raise BadInputError(f"{pack}: embedding packs cannot be loaded yet; use full text alone")
