"""The person's documents as the interface sees them, opened behind it and never in its way."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit.assistant.bodies import plain
from edgekit.assistant.packs import user_path
from edgekit.assistant.policy import Policy
from edgekit.assistant.refusals import RefusalError
from edgekit.errors import EdgekitError
from edgekit.local.private import private_directory

if TYPE_CHECKING:
    from edgekit.assistant.documents.library import Library
    from edgekit.assistant.documents.records import Passage, PassageInContext

BUSY, IDLE = 0.5, 5.0  # seconds between two looks while documents are indexed, and otherwise
INDEX = "index.sqlite"
UPLOADS = "uploads"


class DocumentDesk:
    """Owner of the document library.

    Args:
        folder: where the index and uploaded files lie.
        embedding: the path of the embedding pack now, or "".
        changed: called when :meth:`overview` has something new.
    """

    def __init__(
        self,
        folder: Path,
        policy: Policy,
        embedding: Callable[[], str],
        changed: Callable[[], None],
    ) -> None:
        self.folder, self._policy = folder, policy
        self._embedding, self._changed = embedding, changed
        self._library: Library | None = None
        self._problem = ""
        self._wake = asyncio.Event()
        self._opening = threading.Lock()
        self._overview = self._empty()

    @property
    def uploads(self) -> Path:
        """Where files lie that came without a path."""
        return private_directory(self.folder / UPLOADS)

    async def open(self) -> None:
        """Open the library and tell its progress until cancelled."""
        await asyncio.to_thread(self._open)
        while True:
            self._wake.clear()
            overview = await asyncio.to_thread(self._look)
            if overview != self._overview:
                self._overview = overview
                self._changed()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), BUSY if is_busy(overview) else IDLE)

    async def reopen(self) -> None:
        """Open anew, with the embedding pack that is wished for now."""
        await asyncio.to_thread(self._close)
        await asyncio.to_thread(self._open)
        await self.look()

    async def close(self) -> None:
        """Stop indexing and close the index."""
        await asyncio.to_thread(self._close)

    async def look(self) -> dict[str, Any]:
        """What stands in the library now."""
        self._overview = await asyncio.to_thread(self._look)
        self._changed()
        self._wake.set()
        return self._overview

    def overview(self) -> dict[str, Any]:
        """The sources, the progress and the embedding, as they were at the last look."""
        return self._overview

    def state(self) -> dict[str, Any]:
        """What stands in the assistant's state."""
        state = "failed" if self._problem else "ready" if self._library else "opening"
        return {
            "state": state,
            "embedding": self._overview["embedding"]["state"],
            "error": self._problem,
        }

    def add(self, text: str) -> Any:
        """Choose a file or folder; it is indexed in the background."""
        path = user_path(text)
        if reason := self._policy.refuses_folder(path):
            raise RefusalError(403, "forbidden_by_policy", reason)
        return self.library.add(path)

    def search(self, query: str, limit: int = 6) -> list[Passage]:
        """Passages for ``query``; none while there is no library."""
        return self._library.search(query, limit) if self._library else []

    def passage(self, passage_id: str) -> PassageInContext:
        """A passage with the text around it."""
        return self.library.passage(passage_id)

    @property
    def library(self) -> Library:
        """The open library.

        Raises:
            RefusalError: it is not open.
        """
        if self._library is None:
            message = self._problem or "your documents are being opened; try again in a moment"
            raise RefusalError(503, "no_documents", message)
        return self._library

    def _open(self) -> None:
        from edgekit.assistant.documents.library import Library

        with self._opening:
            try:
                private_directory(self.folder)
                pack = self._embedding()
                self._library = Library(self.folder / INDEX, Path(pack) if pack else None)
                self._problem = ""
            except (EdgekitError, OSError, sqlite3.Error) as error:
                self._problem = f"your documents cannot be opened ({error}); the chat works without"

    def _close(self) -> None:
        with self._opening:  # what is being opened is closed as well
            library, self._library = self._library, None
            if library is not None:
                with contextlib.suppress(sqlite3.Error):
                    library.close()

    def _look(self) -> dict[str, Any]:
        library = self._library
        if library is None:
            return self._empty()
        try:
            progress, embedding = library.progress(), library.embedding()
            return {
                "sources": plain(library.sources()),
                "progress": {
                    "done": progress.done,
                    "total": progress.total,
                    "current": progress.current,
                    "state": "idle" if progress.phase == "idle" else "indexing",
                    "phase": progress.phase,
                },
                "embedding": {**plain(embedding), "path": self._embedding()},
            }
        except (EdgekitError, sqlite3.Error):
            return self._overview  # closed meanwhile, or busy: the next look tells

    def _empty(self) -> dict[str, Any]:
        progress = {"done": 0, "total": 0, "current": "", "state": "idle", "phase": "idle"}
        embedding = {"state": "none", "path": self._embedding()}
        return {"sources": [], "progress": progress, "embedding": embedding}


def is_busy(overview: dict[str, Any]) -> bool:
    """Whether there is progress to tell."""
    waiting = any(s["state"] in ("queued", "indexing") for s in overview["sources"])
    rebuilding = overview["embedding"]["state"] == "rebuilding"
    return waiting or rebuilding or overview["progress"]["state"] != "idle"
