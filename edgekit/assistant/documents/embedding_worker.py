"""The process that embeds questions, so that a native runtime never runs in the assistant itself.

    python -m edgekit.assistant.documents.embedding_worker PACK

The empty request is answered with ``{"id", "dim"}``; a question, as UTF-8, with its vector as
little-endian float32. An answer that begins with ``{"problem"`` says why there is none.
"""

from __future__ import annotations

import functools
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from edgekit.assistant.documents.child import serve_frames
from edgekit.assistant.documents.embedding import load
from edgekit.assistant.documents.limits import MB
from edgekit.errors import EdgekitError

if TYPE_CHECKING:
    from edgekit.runtimes.embedding import Embedder


def main() -> None:
    """Serve until standard input is closed."""
    pack = Path(sys.argv[1])

    @functools.cache
    def embedder() -> Embedder:
        return load(pack)

    def answer(request: bytes) -> bytes:
        try:
            if not request:
                return json.dumps({"id": embedder().id, "dim": embedder().dim}).encode()
            vector = embedder().embed([request.decode("utf-8")], "query")[0]
            return bytes(vector.astype("<f4").tobytes())
        except EdgekitError as error:
            return json.dumps({"problem": str(error)}).encode()

    serve_frames(answer, MB)


if __name__ == "__main__":
    main()
