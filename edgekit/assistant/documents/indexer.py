"""The indexing process: brings the index up to date with its sources, then ends.

    python -m edgekit.assistant.documents.indexer DATABASE [EMBEDDING_PACK] [LIMITS]

1. For each source that waits: list its files, pass over those whose size and time are unchanged.
2. Of the others take the digest; a content that is known already is only linked.
3. What is left is read by `reader.py`, a process that is killed when it takes too long or too
   much; the file is then noted as bad, and tried again when it changes.
4. Forget files that are gone, then contents that nothing refers to.
5. Compute the vectors that are missing, a batch at a time, after all text can be searched.

Lines of JSON on standard output tell the progress. The process ends when its standard input is
closed, and may be killed at any moment: it goes on where it was the next time.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sqlite3
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from edgekit.assistant.documents import reader, store
from edgekit.assistant.documents.child import Child, ChildFailedError, module_command
from edgekit.assistant.documents.embedding import PassageEmbedder, load
from edgekit.assistant.documents.limits import Limits
from edgekit.assistant.documents.records import Cut
from edgekit.assistant.documents.walk import Found, Listing, list_source
from edgekit.errors import EdgekitError

DAMAGED = 70  # exit code: the index is damaged and must be made anew
FULL = 71  # exit code: the disk is full
READER = "edgekit.assistant.documents.reader"
_PIECE = 1 << 20

Report = Callable[[dict[str, Any]], None]


class Indexer:
    """One run over the sources that wait."""

    def __init__(
        self,
        connection: sqlite3.Connection,
        limits: Limits,
        report: Report,
        reader_command: Sequence[str] | None = None,
    ) -> None:
        self._db = connection
        self._limits = limits
        self._report = report
        command = reader_command or module_command(READER, limits.to_json())
        self._reader = Child(command, limits.answer_bytes)

    def run(self, embedding_pack: Path | None = None) -> None:
        """Index until nothing waits."""
        with contextlib.closing(self._reader):
            self._index_waiting()
            if embedding_pack is None:
                return
            try:
                with contextlib.closing(load(embedding_pack)) as embedder:
                    passages = PassageEmbedder(self._db, embedder, self._report)
                    while passages.batch():
                        self._index_waiting()  # what was added meanwhile: text comes first
            except EdgekitError as error:
                self._report({"embedding_problem": str(error)})

    def _index_waiting(self) -> None:
        while waiting := self._db.execute(
            "SELECT id, path FROM sources WHERE state IN ('queued', 'indexing') ORDER BY rowid"
        ).fetchone():
            self._index_source(waiting[0], Path(waiting[1]))
        store.remove_unused(self._db)

    def _index_source(self, source: str, root: Path) -> None:
        self._db.execute("UPDATE sources SET state = 'indexing' WHERE id = ?", (source,))
        if not root.exists():
            if root.parent.exists():  # it was deleted; else its drive is gone, and may come back
                self._db.execute("DELETE FROM files WHERE source_id = ?", (source,))
            self._finish(source, "missing", [f"{root}: not found"])
            return
        listing = list_source(root, self._limits)
        known = {
            path: (size, mtime, version)
            for path, size, mtime, version in self._db.execute(
                "SELECT path, size, mtime_ns, reader FROM files WHERE source_id = ?", (source,)
            )
        }
        for done, found in enumerate(listing.files):
            self._report({"done": done, "total": len(listing.files), "current": str(found.path)})
            now = (found.size, found.mtime_ns, _reader_of(found))
            if known.get(str(found.path)) != now:
                self._index_file(source, found)
        self._forget(source, set(known), listing)
        total = len(listing.files)
        self._report({"done": total, "total": total, "current": ""})
        self._finish(source, "ready", listing.problems)

    def _index_file(self, source: str, found: Found) -> None:
        try:
            digest = _digest(found.path)
        except FileNotFoundError:
            return  # deleted since it was listed
        except OSError as error:
            self._note(source, found, "", f"cannot be opened ({error.strerror})", again=True)
            return
        version = _reader_of(found)
        row = self._db.execute(
            "SELECT 1 FROM files WHERE source_id = ? AND path = ? AND digest = ? AND reader = ?",
            (source, str(found.path), digest, version),
        ).fetchone()
        if row:  # touched, not changed: readable or not, it is what it was
            self._db.execute(
                "UPDATE files SET size = ?, mtime_ns = ? WHERE source_id = ? AND path = ?",
                (found.size, found.mtime_ns, source, str(found.path)),
            )
            return
        content = store.find_content(self._db, digest, version)
        if content is not None:
            with store.transaction(self._db):
                self._put(source, found, version, digest, content, "")
            return
        self._read(source, found, version, digest)

    def _read(self, source: str, found: Found, version: str, digest: str) -> None:
        request = json.dumps({"path": str(found.path), "kind": found.kind}).encode()
        try:
            reply = json.loads(
                self._reader.ask(request, self._limits.seconds, self._limits.memory_bytes)
            )
        except ChildFailedError as error:
            self._note(source, found, digest, f"reading it {error}")
            return
        if "reason" in reply:
            self._note(source, found, digest, reply["reason"], again=reply.get("missing", False))
            return
        as_read = Found(found.path, found.kind, reply["size"], reply["mtime_ns"])
        cuts = [Cut(*passage) for passage in reply["passages"]]
        with store.transaction(self._db):
            content = store.add_content(self._db, reply["digest"], version, reply["problems"], cuts)
            self._put(source, as_read, version, reply["digest"], content, "")

    def _note(
        self, source: str, found: Found, digest: str, problem: str, again: bool = False
    ) -> None:
        """Remember why a file is not there; ``again``: try it at the next run, changed or not."""
        with store.transaction(self._db):
            version = "" if again else _reader_of(found)
            self._put(source, found, version, digest, None, problem)

    def _put(
        self,
        source: str,
        found: Found,
        version: str,
        digest: str,
        content: int | None,
        problem: str,
    ) -> None:
        self._db.execute(
            "INSERT OR REPLACE INTO files"
            "(source_id, path, size, mtime_ns, reader, content_id, digest, problem) "
            "SELECT id, ?, ?, ?, ?, ?, ?, ? FROM sources WHERE id = ?",  # unless removed meanwhile
            (
                str(found.path), found.size, found.mtime_ns, version, content, digest, problem,
                source,
            ),
        )  # fmt: skip

    def _forget(self, source: str, known: set[str], listing: Listing) -> None:
        gone = known - {str(found.path) for found in listing.files}
        kept = [str(folder) + os.sep for folder in listing.unreadable]
        with store.transaction(self._db):
            self._db.executemany(
                "DELETE FROM files WHERE source_id = ? AND path = ?",
                [(source, p) for p in gone if not any(p.startswith(k) for k in kept)],
            )

    def _finish(self, source: str, state: str, problems: list[str]) -> None:
        """Leaves "queued" alone: somebody asked for another look meanwhile."""
        self._db.execute(
            "UPDATE sources SET problems = ?, "
            "state = CASE state WHEN 'indexing' THEN ? ELSE state END WHERE id = ?",
            (json.dumps(problems), state, source),
        )


def _reader_of(found: Found) -> str:
    return f"{found.kind}.{reader.VERSION}"


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(_PIECE):
            digest.update(piece)
    return digest.hexdigest()


def main() -> None:
    """Run until nothing waits; exit codes beside 0 are `DAMAGED` and `FULL`."""
    database, pack, limits = (*sys.argv[1:], "", "")[:3]
    _give_way()
    threading.Thread(target=_end_with_parent, daemon=True).start()

    def report(event: dict[str, Any]) -> None:
        print(json.dumps(event), flush=True)

    try:
        with contextlib.closing(store.connect(Path(database))) as connection:
            _check(connection)
            Indexer(connection, Limits.from_json(limits), report).run(Path(pack) if pack else None)
    except sqlite3.DatabaseError as error:
        report({"error": str(error)})
        sys.exit(_exit_code(error))


def _check(connection: sqlite3.Connection) -> None:
    """Structure of the file, here where it keeps nobody waiting."""
    (result,) = connection.execute("PRAGMA quick_check(1)").fetchone()
    if result != "ok":
        raise sqlite3.DatabaseError(f"database disk image is malformed: {result}")


def _exit_code(error: sqlite3.DatabaseError) -> int:
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if code == sqlite3.SQLITE_FULL:
        return FULL
    damaged = code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB) or "malformed" in str(error)
    return DAMAGED if damaged else 1


def _give_way() -> None:
    """Whatever the person does comes first."""
    import psutil

    with contextlib.suppress(psutil.Error, OSError):
        process = psutil.Process()
        process.nice(psutil.BELOW_NORMAL_PRIORITY_CLASS if os.name == "nt" else 10)


def _end_with_parent() -> None:
    # not sys.stdin: a thread that waits in it would keep the interpreter from ending
    with contextlib.suppress(OSError):
        while os.read(0, _PIECE):
            pass
    os._exit(0)


if __name__ == "__main__":
    main()
