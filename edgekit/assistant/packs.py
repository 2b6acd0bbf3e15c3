"""The packs that this person can choose from, and why one of them cannot be used.

They are found in folders of packs (the person's, the machine's) and at paths that the person
added, which are kept in ``packs.json``. A pack is checked byte by byte when it is added; listing
reads the manifests alone. An archive is unpacked into the person's folder.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from edgekit.archive import extract_archive
from edgekit.assistant.refusals import not_found
from edgekit.errors import BadInputError, EdgekitError
from edgekit.local.private import private_directory, write_private_json
from edgekit.manifest import MANIFEST, Manifest, read_manifest
from edgekit.pack import verify_pack
from edgekit.progress import Silent

FILE = "packs.json"
MOST = 200  # packs in a list
LONGEST = 4096  # characters of a path


@dataclass(frozen=True)
class KnownPack:
    """A pack in the list; ``problem`` says why it cannot be used, or is ""."""

    path: Path
    name: str
    version: str = ""
    license: str = ""
    parameters: int = 0
    context_length: int = 0
    bytes: int = 0
    memory_bytes: int = 0
    targets: tuple[str, ...] = ()
    problem: str = ""
    kind: Literal["chat", "embedding"] = "chat"


class Packs:
    """Known packs.

    Args:
        folder: the data folder, which holds the list of added paths.
        own: the person's folder of packs.
        roots: more folders of packs, read only.
    """

    def __init__(self, folder: Path, own: Path, roots: Sequence[Path] = ()) -> None:
        self.own = own
        self._roots = (own, *roots)
        self._file = folder / FILE
        self._added = self._read()

    def all(self) -> list[KnownPack]:
        """Every known pack, in the order of the folders, then as added."""
        paths = dict.fromkeys(self._paths())
        return [describe_pack(path) for path in list(paths)[:MOST]]

    def any(self) -> bool:
        """Whether there is one, usable or not."""
        return any(pack.kind == "chat" for pack in self.all())

    def best(self) -> Path | None:
        """The pack to begin with: the largest usable one, as the most able."""
        usable = [p for p in self.all() if not p.problem]
        return max(usable, key=lambda p: p.parameters).path if usable else None

    def add(self, text: str) -> KnownPack:
        """Verify a pack's directory, or unpack its archive, and remember it. Takes seconds.

        Raises:
            BadInputError: there is no such pack, or it is damaged.
            OutOfResourcesError: no room to unpack.
        """
        path = user_path(text)
        if path.is_file():
            path = self._unpacked(path)
        elif not path.is_dir():
            raise BadInputError(f"{path}: no such folder or archive; check the path")
        else:
            verify_pack(path, Silent())
        pack = describe_pack(path)
        if pack.kind == "embedding":
            raise BadInputError(f"{path}: {pack.problem}")
        if path not in self._added:
            self._write([*self._added, path])
        return pack

    def forget(self, text: str) -> None:
        """Drop an added path from the list; its files stay.

        Raises:
            RefusalError: it was not added by the person.
        """
        path = Path(text)
        if path not in self._added:
            raise not_found("pack")
        self._write([p for p in self._added if p != path])

    def _paths(self) -> Iterator[Path]:
        for root in self._roots:
            yield from _packs_below(root)
        yield from self._added

    def _unpacked(self, archive: Path) -> Path:
        private_directory(self.own)
        out = self.own / (archive.stem or "pack")
        number = 2
        while out.exists():
            out = self.own / f"{archive.stem}-{number}"
            number += 1
        extract_archive(archive, out, Silent())
        return out

    def _write(self, paths: list[Path]) -> None:
        write_private_json(self._file, [str(p) for p in paths])
        self._added = paths

    def _read(self) -> list[Path]:
        try:
            values = json.loads(self._file.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            return []  # a list of paths is quickly made again
        values = values if isinstance(values, list) else []
        return [Path(v) for v in values if isinstance(v, str)][:MOST]


def describe_pack(path: Path) -> KnownPack:
    """What the manifest says; never raises, a pack that cannot be read has a ``problem``."""
    try:
        manifest = read_manifest(path)
    except (EdgekitError, OSError) as error:
        return KnownPack(path, path.name, problem=str(error))
    files = [f for v in manifest.variants for f in v.files]
    words_only = "this is a pack of an embedding model, which cannot chat; choose it in Documents"
    return KnownPack(
        path=path,
        kind=manifest.kind,
        problem=words_only if manifest.kind == "embedding" else "",
        name=manifest.name,
        version=manifest.version,
        license=manifest.license,
        parameters=manifest.student.parameters,
        context_length=manifest.student.context_length,
        bytes=sum(f.size for f in files),
        memory_bytes=max(v.memory_estimate_bytes for v in manifest.variants),
        targets=targets_of(manifest),
    )


def targets_of(manifest: Manifest) -> tuple[str, ...]:
    """The targets that some variant was compiled for."""
    return tuple(dict.fromkeys(t.target for v in manifest.variants for t in v.targets))


def user_path(text: str) -> Path:
    """A path that a person typed, absolute.

    Raises:
        BadInputError: it is empty, too long or holds what no path can.
    """
    if not text.strip() or len(text) > LONGEST or "\0" in text:
        raise BadInputError("this is not a path; type or choose a folder or a file")
    return Path(os.path.abspath(Path(text.strip()).expanduser()))  # noqa: PTH100, links stay links


def system_roots() -> tuple[Path, ...]:
    """Where the machine's maker puts packs."""
    if sys.platform == "win32":
        return (Path(os.environ.get("PROGRAMDATA", r"C:\ProgramData")) / "EdgeKit" / "packs",)
    return (Path("/usr/share/edgekit/packs"),)


def _packs_below(root: Path) -> Iterator[Path]:
    """``ROOT/<pack>`` and ``ROOT/<id>/<version>``."""
    try:
        for child in sorted(root.iterdir()):
            if (child / MANIFEST).is_file():
                yield child
            elif child.is_dir() and not child.name.startswith("."):
                yield from (c for c in sorted(child.iterdir()) if (c / MANIFEST).is_file())
    except OSError:
        return  # a folder that is not there or cannot be read has no packs
