"""Tokens and the files that hold them: 256 random bits, readable by their owner alone.

A token is never an argument (other users see those), never in a log and never in a URL. On
Windows the mode bits mean nothing; there a file is as private as its directory, and the default
directories lie in the user's profile.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from edgekit.atomic import PARTIAL, disk_errors, sync_directory
from edgekit.errors import BadInputError

TOKEN = re.compile(r"[A-Za-z0-9_-]{32,128}")
POSIX = os.name == "posix"


def new_token() -> str:
    """256 random bits as 43 characters that are safe in a header."""
    return secrets.token_urlsafe(32)


def private_directory(path: Path) -> Path:
    """Make ``path`` a directory that only its owner can enter; its parents as they come.

    Raises:
        BadInputError: it cannot be made, is no directory, or belongs to another user.
    """
    with disk_errors(path):
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    if POSIX:
        info = path.stat()
        if info.st_uid != os.getuid():
            raise BadInputError(f"{path} belongs to another user; choose a directory of your own")
        if stat.S_IMODE(info.st_mode) & 0o077:
            path.chmod(0o700)
    return path


def write_private(path: Path, text: str) -> None:
    """Write a file of mode 0600, whole or not at all, replacing what is there.

    The temporary sibling is created anew, so that nobody can have opened it before.

    Raises:
        BadInputError: it cannot be written.
        OutOfResourcesError: the disk is full.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}{PARTIAL}")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0)
    with disk_errors(path):
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            with os.fdopen(os.open(temporary, flags, 0o600), "w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
        sync_directory(path.parent)


def write_private_json(path: Path, value: Any) -> None:
    """Write JSON as :func:`write_private` does."""
    write_private(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_private(path: Path) -> str:
    """The text of a file that only its owner can read.

    Raises:
        BadInputError: it cannot be read, or others could have read or written it.
    """
    try:
        with path.open(encoding="utf-8") as file:
            info = os.fstat(file.fileno())
            if POSIX and info.st_uid != os.getuid():
                raise BadInputError(f"{path} belongs to another user; choose a file of your own")
            if POSIX and stat.S_IMODE(info.st_mode) & 0o077:
                raise BadInputError(
                    f"{path} can be read by other users; run `chmod 600 {path}`, or remove it to "
                    "get a new token"
                )
            return file.read()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise BadInputError(f"{path}: {reason}; choose another file") from error


def token_in(path: Path) -> str:
    """The token of a file, made when the file is not there, so that programs keep theirs.

    Raises:
        BadInputError: the file holds something else, or is not private.
    """
    if not path.exists():
        write_private(path, new_token() + "\n")
    token = read_private(path).strip()
    if not TOKEN.fullmatch(token):
        raise BadInputError(
            f"{path} holds no token (32 to 128 letters, digits, - or _); remove it to get a new one"
        )
    return token


@contextlib.contextmanager
def removed_at_exit(path: Path | None) -> Iterator[None]:
    """Remove a file when the block ends, such as the address of a server that is no more."""
    try:
        yield
    finally:
        if path is not None:
            path.unlink(missing_ok=True)
