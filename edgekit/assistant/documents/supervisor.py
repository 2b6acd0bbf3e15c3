"""Runs the indexing process while there is work, and says what it is doing.

One thread starts the process, reads its progress and looks at how it ended. A process that was
killed is started again and goes on where it was; after `TRIES` ends without a step forward the
source at hand is marked as failed, so that nothing is tried for ever and others have their turn.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import threading
from collections.abc import Callable, Sequence
from typing import Any

from edgekit.assistant.documents.indexer import DAMAGED, FULL
from edgekit.assistant.documents.records import Progress

TRIES = 3


class Supervisor:
    """Starts and watches the indexing process.

    Attributes:
        embedding_problem: why vectors are not computed, or "".
    """

    def __init__(
        self,
        command: Sequence[str],
        has_work: Callable[[], bool],
        give_up: Callable[[str], bool],
        make_anew: Callable[[], None],
    ) -> None:
        """``has_work``: a source waits. ``give_up``: mark the source at hand as failed, with a
        reason; False if none is. ``make_anew``: replace a damaged index."""
        self._command = list(command)
        self._has_work = has_work
        self._give_up = give_up
        self._make_anew = make_anew
        self.embedding_problem = ""
        self._progress = Progress()
        self._process: subprocess.Popen[str] | None = None
        self._wanted = threading.Event()
        self._idle = threading.Event()
        self._idle.set()
        self._closed = False
        self._failures = 0  # ends of the process, one after the other, without a step forward
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._watch, name="documents", daemon=True)
        self._thread.start()

    def wake(self) -> None:
        """There is something to do."""
        self._idle.clear()
        self._wanted.set()

    def progress(self) -> Progress:
        """What is being done now."""
        return self._progress

    def wait(self, seconds: float) -> bool:
        """Wait until nothing is left to do; False if that takes longer."""
        return self._idle.wait(seconds)

    def close(self) -> None:
        """Stop, at any moment: the index goes on where it was the next time."""
        with self._lock:
            self._closed = True
            if self._process is not None:
                self._process.kill()
        self._wanted.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._closed:
            self._wanted.wait()
            self._wanted.clear()
            self._failures = 0
            again = True
            while again and not self._closed:
                code, moved = self._run_once()
                again = self._after_failure(code, moved) if code else self._has_work()
            self._progress = Progress()
            if not self._wanted.is_set():
                self._idle.set()

    def _after_failure(self, code: int, moved: bool) -> bool:
        """Whether to run the process once more."""
        if self._closed:
            return False
        if code == FULL:
            while self._give_up("the disk is full; free some space and refresh"):
                pass
            return False
        self._failures = 1 if moved and code != DAMAGED else self._failures + 1
        if self._failures < TRIES:
            if code == DAMAGED:
                self._make_anew()
            return True
        self._failures = 0
        how = f"signal {-code}" if code < 0 else f"exit code {code}"
        reason = f"the indexing process ended {TRIES} times ({how}); refresh to try again"
        if not self._give_up(reason):  # all text is indexed: it ended while vectors were computed
            self.embedding_problem = reason
        return self._has_work()

    def _run_once(self) -> tuple[int, bool]:
        """Exit code, and whether it came forward."""
        with self._lock:
            if self._closed:
                return 0, False
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.PIPE,  # closed when this process ends, however it ends
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                encoding="utf-8",
                creationflags=getattr(subprocess, "CREATE_NO_WINDOW", 0),
            )
        process = self._process
        moved = False
        self.embedding_problem = ""
        with process:
            assert process.stdout is not None
            for line in process.stdout:
                event: dict[str, Any] = {}
                with contextlib.suppress(ValueError):
                    event = json.loads(line)
                moved |= event.get("done", 0) > 0
                self._note(event)
        return process.returncode, moved

    def _note(self, event: dict[str, Any]) -> None:
        if "embedding_problem" in event:
            self.embedding_problem = str(event["embedding_problem"])
        if "done" in event:
            self._progress = Progress(
                event.get("phase", "reading"),
                int(event["done"]),
                int(event["total"]),
                str(event.get("current", "")),
            )
