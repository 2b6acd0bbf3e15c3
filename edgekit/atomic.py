"""Output that is whole or absent: a temporary sibling, fsync, rename."""

from __future__ import annotations

import contextlib
import errno
import glob
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from edgekit.errors import BadInputError, OutOfResourcesError

PARTIAL = ".partial"
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
UNWRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST)


@contextlib.contextmanager
def atomic_directory(target: Path, *, replace: bool = False) -> Iterator[Path]:
    """Yield a temporary directory beside ``target`` that becomes ``target`` on success.

    On any exception the temporary directory is removed. What a killed process left behind is
    removed by the next attempt; two processes at one target do not touch each other's.

    Raises:
        BadInputError: ``target`` exists and ``replace`` is false, or cannot be written.
        OutOfResourcesError: the disk is full.
    """
    if not replace:
        require_absent(target)
    target = target.absolute()  # "." has no name
    temporary = target.with_name(f".{target.name}.{os.getpid()}{PARTIAL}")
    with disk_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(target)
        temporary.mkdir()
        try:
            yield temporary
            _sync_tree(temporary)
            if target.exists():
                if not replace:
                    raise _exists(target)  # another process was faster
                shutil.rmtree(target)
            temporary.rename(target)
            sync_directory(target.parent)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise


@contextlib.contextmanager
def atomic_file(target: Path) -> Iterator[Path]:
    """Yield the path of a temporary file beside ``target`` that becomes ``target`` on success.

    Raises:
        BadInputError: ``target`` exists, or cannot be written.
        OutOfResourcesError: the disk is full.
    """
    if target.exists():
        raise _exists(target, "file")
    target = target.absolute()
    temporary = target.with_name(f".{target.name}.{os.getpid()}{PARTIAL}")
    with disk_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(target)
        try:
            yield temporary
            with temporary.open("r+b") as file:
                os.fsync(file.fileno())
            if target.exists():
                raise _exists(target, "file")  # another process was faster
            temporary.replace(target)
            sync_directory(target.parent)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def require_absent(target: Path) -> None:
    """Refuse a directory that is there already, before the work that would be put there.

    Raises:
        BadInputError: it exists.
    """
    if target.exists():
        raise _exists(target)


def _exists(target: Path, kind: str = "directory") -> BadInputError:
    return BadInputError(f"{target} exists already; choose another {kind} or remove it first")


def _remove_leftovers(target: Path) -> None:
    """Temporary directories and files of processes that are no more, and of this one."""
    import psutil

    for left in target.parent.glob(f".{glob.escape(target.name)}.*{PARTIAL}"):
        owner = left.name.removesuffix(PARTIAL).rpartition(".")[2]
        if owner == str(os.getpid()) or not (owner.isdecimal() and psutil.pid_exists(int(owner))):
            if left.is_dir():
                shutil.rmtree(left, ignore_errors=True)
            else:
                left.unlink(missing_ok=True)


@contextlib.contextmanager
def disk_errors(target: Path) -> Iterator[None]:
    """Turn the operating system's refusals to write below ``target`` into one sentence."""
    try:
        yield
    except OSError as error:
        if error.errno in FULL:
            raise no_space(str(target)) from error
        if error.errno in UNWRITABLE:
            raise BadInputError(
                f"{target}: cannot be written ({os.strerror(error.errno)}); choose another --out"
            ) from error
        raise


def no_space(what: str) -> OutOfResourcesError:
    """The error for a full disk."""
    return OutOfResourcesError(
        f"{what}: no space left to write it; free some disk or choose another --out"
    )


def write_text(path: Path, text: str) -> None:
    """Write a small file whole or not at all."""
    temporary = path.with_name(f".{path.name}{PARTIAL}")
    with disk_errors(path):
        with temporary.open("w", encoding="utf-8", newline="\n") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        sync_directory(path.parent)


def write_json(path: Path, value: Any) -> None:
    """Write JSON, two-space indent, whole or not at all."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def link_or_copy(source: Path, target: Path) -> None:
    """Give ``target`` the bytes of ``source`` without using disk twice where links are possible."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def sync_directory(path: Path) -> None:
    """Make renames and new names in ``path`` durable (where directories can be opened)."""
    try:
        handle = os.open(path, os.O_RDONLY)
    except OSError:  # Windows
        return
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _sync_tree(root: Path) -> None:
    for path in root.rglob("*"):
        if path.is_file() and not path.is_symlink():
            # Windows flushes only handles that may write
            with path.open("r+b" if os.name == "nt" else "rb") as file:
                os.fsync(file.fileno())
    sync_directory(root)
