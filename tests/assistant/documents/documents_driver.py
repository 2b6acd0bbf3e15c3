"""The processes of the document index with parts that misbehave or that no model is needed for.

    python documents_driver.py reader LIMITS
    python documents_driver.py indexer DATABASE PACK LIMITS
    python documents_driver.py embedder PACK

The reader hangs, eats memory, spins or dies at files that say so. The embedder counts words and
knows a few synonyms; the name of its pack is its id, and one named "broken" cannot be loaded.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from edgekit.assistant.documents import embedding, embedding_worker, indexer, reader
from edgekit.assistant.documents.traits import PAIRS
from edgekit.assistant.documents.words import words_of
from edgekit.errors import BadInputError

SYNONYMS = {
    "automobil": "car",
    "vehicl": "car",
    "invoic": "bill",
    "汽车": "car",
    "轿车": "car",
    "车": "car",
}
DIM = 256
_PAIRED = {  # of each text: a place that question and answer share, and one of its own
    text: [number, number + 10 + 10 * side]
    for pairs in PAIRS.values()
    for number, pair in enumerate(pairs)
    for side, text in enumerate(pair)
}


class FakeEmbedder:
    """Each word has a place in the vector; synonyms share it."""

    dim = DIM
    max_tokens = 128

    def __init__(self, pack: Path) -> None:
        if pack.name == "broken":
            raise BadInputError(f"{pack}: damaged; make it again")
        self.id = pack.name

    def embed(self, texts: Sequence[str], kind: str = "passage") -> np.ndarray:
        rows = np.zeros((len(texts), DIM), np.float32)
        for row, text in zip(rows, texts, strict=True):
            if text in _PAIRED:  # as a model that knows both languages would
                row[_PAIRED[text]] = 1, 1.2
            for word in [] if text in _PAIRED else words_of(text):
                word = SYNONYMS.get(word, word)
                row[zlib.crc32(word.encode()) % DIM] += 1
        return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-6)

    def count_tokens(self, text: str) -> int:
        return len(words_of(text))

    def close(self) -> None:
        pass


def misbehave(data: bytes, limits: object) -> object:
    """What the file says."""
    what = data.strip()
    if what == b"HANG":
        time.sleep(3600)
    elif what == b"SPIN":
        while True:
            pass
    elif what == b"EAT":
        eaten = []
        while True:
            eaten.append(bytearray(1 << 20))
    elif what == b"DIE":
        os.abort()
    elif what == b"FAIL":
        raise IndexError("list index out of range")
    elif what == b"WRITE":
        Path(sys.argv[0]).with_name("written.tmp").write_text("a parser must not write files")
    elif what == b"PRINT":
        with contextlib.suppress(OSError):  # some kernels count it as a file that may not grow
            os.write(1, b"noise of a library\n")
    return reader.parse_text(data, limits)  # type: ignore[arg-type]


def main() -> None:
    mode = sys.argv.pop(1)
    embedding.load = indexer.load = embedding_worker.load = FakeEmbedder
    if mode == "reader":
        reader.main({**reader.PARSERS, "text": misbehave})
    elif mode == "indexer":
        indexer.main()
    else:
        embedding_worker.main()


if __name__ == "__main__":
    main()
