"""Packs: make one, and check every byte of one.

A pack is ``pack.json`` and, per variant, the files it lists under ``variants/<id>/``. Anything
else in the directory, any link and any path that could leave it is refused.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from edgekit.errors import BadInputError
from edgekit.manifest import (
    MANIFEST,
    Kind,
    Manifest,
    PackedFile,
    Variant,
    read_manifest,
    require_kind,
)
from edgekit.progress import Progress

VARIANTS = "variants"
CHUNK = 8 << 20
RESERVED = {"con", "prn", "aux", "nul", *(f"{d}{i}" for d in ("com", "lpt") for i in range(1, 10))}
FORBIDDEN = set('<>:"|?*\\') | {chr(c) for c in range(32)}


def copy_variant(variant: Path, pack: Path, name: str, progress: Progress) -> list[PackedFile]:
    """Copy a variant directory into a pack under construction and list its files.

    Copies, not links: a pack that shares bytes with the run directory would change with it.
    """
    target = pack / VARIANTS / name
    sources = sorted(f for f in variant.rglob("*") if f.is_file() and f.name != "step.json")
    total = sum(f.stat().st_size for f in sources)
    files = []
    with progress.task("copy into the pack", total) as task:
        for source in sources:
            relative = source.relative_to(variant).as_posix()
            check_path(relative, str(variant))
            copy = target / relative
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, copy)
            copy.chmod(0o644)
            files.append(
                PackedFile(path=relative, size=copy.stat().st_size, sha256=file_sha256(copy))
            )
            task.advance(files[-1].size)
    return files


def write_manifest(pack: Path, manifest: Manifest) -> None:
    """Write ``pack.json``; the pack is whole from here on."""
    (pack / MANIFEST).write_text(manifest.to_json(), encoding="utf-8", newline="\n")


def verify_pack(pack: Path, progress: Progress) -> Manifest:
    """Check that a pack is exactly what its manifest says.

    Raises:
        BadInputError: names the first file that is missing, extra, a link, of the wrong size or
            content, or whose path is not allowed.
    """
    manifest = read_manifest(pack)
    expected = expected_files(manifest, str(pack / MANIFEST))
    found = {path.relative_to(pack).as_posix() for path in _walk(pack)}
    for name in sorted(found - expected.keys() - {MANIFEST}):
        raise BadInputError(f"{pack / name}: not part of the pack; remove it or get the pack again")
    with progress.task("verify", sum(f.size for f in expected.values())) as task:
        for name, file in expected.items():
            _check_file(pack / name, file)
            task.advance(file.size)
    return manifest


def expected_files(manifest: Manifest, source: str) -> dict[str, PackedFile]:
    """Every file that the manifest lists, by its path in the pack.

    Raises:
        BadInputError: a path is unsafe or listed twice.
    """
    expected: dict[str, PackedFile] = {}
    folded: set[str] = set()
    for variant in manifest.variants:
        for file in variant.files:
            check_path(file.path, source)
            name = f"{VARIANTS}/{variant.id}/{file.path}"
            if name.casefold() in folded:
                raise BadInputError(
                    f"{source}: {name} is listed twice (names differ at most in case); the pack is "
                    "damaged, get it again"
                )
            folded.add(name.casefold())
            expected[name] = file
        if variant.weights_file not in {f.path for f in variant.files}:
            raise BadInputError(
                f"{source}: variant {variant.id} does not list its weights file "
                f"{variant.weights_file}; the pack is damaged, get it again"
            )
    return expected


def check_path(name: str, source: str) -> None:
    """Refuse a path that could leave the pack or that some system cannot store."""
    parts = PurePosixPath(name).parts
    bad = (
        not parts
        or name != "/".join(parts)
        or name.startswith("/")
        or any(p in (".", "..") or p[-1] in ". " or set(p) & FORBIDDEN for p in parts)
        or any(p.split(".")[0].casefold() in RESERVED for p in parts)
    )
    if bad:
        raise BadInputError(
            f"{source}: the path {name!r} is not allowed in a pack; do not use this pack"
        )


def _walk(pack: Path) -> Iterator[Path]:
    """Every entry below ``pack`` that is not a directory; links are never followed."""
    for directory, folders, files in os.walk(pack):
        for name in [*folders, *files]:
            path = Path(directory) / name
            mode = path.lstat().st_mode
            if stat.S_ISLNK(mode):
                raise BadInputError(f"{path}: a link is not allowed in a pack; get the pack again")
            if not stat.S_ISDIR(mode):
                yield path


def _check_file(path: Path, file: PackedFile) -> None:
    try:
        status = path.lstat()
    except FileNotFoundError:
        raise BadInputError(f"{path}: missing from the pack; get the pack again") from None
    if not stat.S_ISREG(status.st_mode):
        raise BadInputError(f"{path}: not a regular file; get the pack again")
    if status.st_size != file.size:
        raise BadInputError(
            f"{path}: has {status.st_size} bytes, the manifest says {file.size}; get the pack again"
        )
    if file_sha256(path) != file.sha256:
        raise BadInputError(f"{path}: its content does not match the manifest; get the pack again")


def file_sha256(path: Path) -> str:
    """sha256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def variant_directory(pack: Path, manifest: Manifest, target: str) -> Path:
    """The directory of the variant that runs ``target`` (:func:`variant_for`)."""
    return pack / VARIANTS / variant_for(pack, manifest, target).id


def variant_for(pack: Path, manifest: Manifest, target: str) -> Variant:
    """The variant that runs ``target``.

    Raises:
        BadInputError: no variant of the pack was compiled for it.
    """
    for variant in manifest.variants:
        if target in {t.target for t in variant.targets}:
            return variant
    known = sorted({t.target for v in manifest.variants for t in v.targets})
    raise BadInputError(f"{pack}: no variant for {target}; this pack runs on {', '.join(known)}")


def open_pack(
    pack: Path, target: str, progress: Progress, allow_damaged: bool = False, kind: Kind = "chat"
) -> Path:
    """The variant directory for ``target``, verified first unless ``allow_damaged``.

    Raises:
        BadInputError: the pack is damaged, of another ``kind``, or not made for ``target``.
    """
    manifest = read_manifest(pack)
    require_kind(manifest, pack, kind)
    if not allow_damaged:
        verify_pack(pack, progress)
    return variant_directory(pack, manifest, target)
