"""One assistant per data folder, and how a second start reaches the first.

The first start holds a lock on ``lock``, which the operating system releases however the process
ends, and writes ``instance.json`` (0600) with its address and a token. A second start finds the
lock taken and asks the first over loopback to raise its window. An ``instance.json`` without a
lock is what a killed process left; it is replaced.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

from edgekit.atomic import disk_errors
from edgekit.errors import BadInputError
from edgekit.local.private import private_directory, read_private, write_private_json

LOCK, FILE = "lock", "instance.json"
PATIENCE = 15.0  # seconds for a first start that is still beginning
PAUSE = 0.1


@dataclass(frozen=True)
class Instance:
    """Where a running assistant is reached."""

    url: str
    token: str
    pid: int


@contextlib.contextmanager
def only_instance(folder: Path) -> Iterator[bool]:
    """Hold the folder's lock; yields False when another process holds it.

    Raises:
        BadInputError: the folder cannot be used.
        OutOfResourcesError: the disk is full.
    """
    private_directory(folder)
    with disk_errors(folder / LOCK):
        opened = (folder / LOCK).open("a+b")
    with opened as file:
        held = _lock(file)
        try:
            yield held
        finally:
            if held:
                (folder / FILE).unlink(missing_ok=True)


def announce(folder: Path, instance: Instance) -> None:
    """Say where this process is reached; only while the lock is held."""
    write_private_json(folder / FILE, asdict(instance))


def running(folder: Path) -> Instance:
    """The process that holds the lock; waits a little for one that is just starting.

    Raises:
        BadInputError: it does not say where it is.
    """
    deadline = time.monotonic() + PATIENCE
    while True:
        with contextlib.suppress(BadInputError, ValueError, TypeError):
            return Instance(**json.loads(read_private(folder / FILE)))
        if time.monotonic() > deadline:
            raise BadInputError(
                f"{folder}: another assistant uses this folder and does not say where; end it, or "
                "give --data-dir another folder"
            )
        time.sleep(PAUSE)


def raise_window(instance: Instance, wish: dict[str, Any]) -> dict[str, Any]:
    """Ask the running assistant to show itself; ``wish`` may name a pack and a target.

    Returns its answer: ``{"url": fresh one-time address, "window": kind}``.

    Raises:
        BadInputError: it does not answer.
    """
    import httpx

    headers = {"Authorization": f"Bearer {instance.token}"}
    url = f"{instance.url}/api/instance/raise"
    try:
        # no proxy of the environment stands between two processes of one machine
        with httpx.Client(trust_env=False, timeout=PATIENCE) as http:
            answer = http.post(url, json=wish, headers=headers)
            answer.raise_for_status()
            return dict(answer.json())
    except (httpx.HTTPError, ValueError) as error:
        raise BadInputError(
            f"the assistant that runs already (process {instance.pid}) does not answer "
            f"({type(error).__name__}); end it and start again"
        ) from error


def _lock(file: IO[bytes]) -> bool:
    """Take the lock without waiting."""
    try:
        if os.name == "nt":
            import msvcrt

            file.seek(0)
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]
        else:
            import fcntl

            fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
