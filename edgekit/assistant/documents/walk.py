"""The files of a source that can be read, and why others are left out.

Links are not followed: what they name inside the folder is found anyway, and what lies outside was
not chosen. Hidden and empty files are passed over in silence; folders that programs make and files
without a reader are passed over too, and counted.
"""

from __future__ import annotations

import collections
import os
import stat
from dataclasses import dataclass, field
from pathlib import Path

from edgekit.assistant.documents.limits import MB, SKIPPED_FOLDERS, Limits, kind_of

_NAMES_SHOWN = 5


@dataclass(frozen=True)
class Found:
    """A file to read. ``size`` in bytes, ``mtime_ns`` in nanoseconds."""

    path: Path
    kind: str
    size: int
    mtime_ns: int


@dataclass
class Listing:
    """What a source holds now.

    Attributes:
        unreadable: folders that could not be listed; what is known of them stays as it is.
    """

    files: list[Found] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    unreadable: list[Path] = field(default_factory=list)


def list_source(root: Path, limits: Limits) -> Listing:
    """Every file of a folder in a fixed order, or the one file that was chosen."""
    listing = Listing()
    if root.is_file():
        _consider_file(root, listing, limits, kind_of(root.name) or "text")
        return listing
    unknown: collections.Counter[str] = collections.Counter()
    made: collections.Counter[str] = collections.Counter()
    boundary = root.resolve()
    folders = [(root, 0)]
    while folders:
        folder, depth = folders.pop()
        try:
            with os.scandir(folder) as entries:
                ordered = sorted(entries, key=lambda e: e.name)
        except OSError as error:
            listing.unreadable.append(folder)
            listing.problems.append(f"{folder}: cannot be listed ({error.strerror})")
            continue
        deeper = []
        for entry in ordered:
            path = Path(entry.path)
            if entry.name.startswith((".", "~$")):
                continue
            if entry.is_symlink():
                if not path.resolve().is_relative_to(boundary):
                    listing.problems.append(f"{path}: a link that leaves the folder, not followed")
            elif entry.is_dir(follow_symlinks=False):
                if entry.name.lower() in SKIPPED_FOLDERS:
                    made[entry.name] += 1
                elif depth >= limits.folder_depth:
                    listing.problems.append(f"{path}: deeper than {limits.folder_depth} folders")
                # a junction of Windows is no symbolic link and leads elsewhere all the same
                elif os.name != "nt" or path.resolve().is_relative_to(boundary):
                    deeper.append((path, depth + 1))
            elif kind := kind_of(entry.name):
                _consider_file(path, listing, limits, kind)
            else:
                unknown[path.suffix.lower() or "no ending"] += 1
        folders += reversed(deeper)
        if len(listing.files) > limits.folder_files:
            del listing.files[limits.folder_files :]
            listing.problems.append(
                f"{root}: only the first {limits.folder_files:,} files were indexed; choose a "
                "smaller folder"
            )
            break
    if made:
        listing.problems.append(_counted("folders that programs make were passed over", made))
    if unknown:
        listing.problems.append(_counted("files of other kinds were left out", unknown))
    return listing


def _consider_file(path: Path, listing: Listing, limits: Limits, kind: str) -> None:
    try:
        status = path.stat(follow_symlinks=False)
    except OSError as error:
        listing.problems.append(f"{path}: cannot be opened ({error.strerror})")
        return
    if not stat.S_ISREG(status.st_mode):
        listing.problems.append(f"{path}: not a regular file")
    elif status.st_size > limits.file_bytes:
        listing.problems.append(f"{path}: larger than {limits.file_bytes // MB} MB")
    elif status.st_size:
        listing.files.append(Found(path, kind, status.st_size, status.st_mtime_ns))


def _counted(what: str, names: collections.Counter[str]) -> str:
    shown = ", ".join(f"{name} ({n})" for name, n in names.most_common(_NAMES_SHOWN))
    more = " and others" if len(names) > _NAMES_SHOWN else ""
    return f"{sum(names.values())} {what}: {shown}{more}"
