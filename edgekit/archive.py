"""One file for one pack, and back.

A plain uncompressed tar (int4 weights do not compress; every system can list it), with names in
order and all metadata fixed, so that the same pack gives the same bytes.
"""

from __future__ import annotations

import shutil
import tarfile
from pathlib import Path

from edgekit.atomic import PARTIAL, atomic_directory, disk_errors
from edgekit.checkpoint import parse_json
from edgekit.errors import BadInputError
from edgekit.manifest import MANIFEST, Manifest, parse_manifest
from edgekit.pack import expected_files, verify_pack
from edgekit.progress import Progress

MAX_MANIFEST_BYTES = 16 << 20


def archive_pack(pack: Path, file: Path, progress: Progress) -> None:
    """Write a verified pack into ``file``.

    Raises:
        BadInputError: the pack is damaged, or ``file`` exists.
    """
    manifest = verify_pack(pack, progress)
    if file.exists():
        raise BadInputError(f"{file} exists already; choose another name or remove it first")
    names = [MANIFEST, *sorted(expected_files(manifest, str(pack / MANIFEST)))]
    partial = file.with_name(file.name + PARTIAL)
    try:
        with disk_errors(file):
            with (
                tarfile.open(partial, "w", format=tarfile.PAX_FORMAT) as archive,
                progress.task("archive", len(names)) as task,
            ):
                for name in names:
                    info = tarfile.TarInfo(name)
                    info.size = (pack / name).stat().st_size
                    info.mode = 0o644
                    with (pack / name).open("rb") as content:
                        archive.addfile(info, content)
                    task.advance()
            partial.replace(file)
    finally:
        partial.unlink(missing_ok=True)


def extract_archive(file: Path, out: Path, progress: Progress) -> Manifest:
    """Unpack ``file`` into the new directory ``out``, which appears only when it is verified.

    The manifest comes first and bounds everything: only files that it lists, of the size that it
    gives, are written.

    Raises:
        BadInputError: the file is not a pack archive, damaged, or holds anything unexpected.
    """
    try:
        with atomic_directory(out) as directory:
            with tarfile.open(file, "r:") as archive:
                _extract(archive, file, directory, progress)
            return verify_pack(directory, progress)
    except (tarfile.TarError, EOFError) as error:
        raise BadInputError(
            f"{file}: not a whole pack archive ({error}); download it again"
        ) from error
    except FileNotFoundError as error:
        raise BadInputError(f"{file}: no such file; check the path") from error


def _extract(archive: tarfile.TarFile, file: Path, out: Path, progress: Progress) -> None:
    first = archive.next()
    if first is None or first.name != MANIFEST or not first.isreg():
        raise BadInputError(f"{file}: does not begin with {MANIFEST}; not a pack archive")
    if first.size > MAX_MANIFEST_BYTES:
        raise BadInputError(f"{file}: its {MANIFEST} is oversized; do not use this archive")
    raw = _content(archive, first, file)
    manifest = parse_manifest(parse_json(raw, f"{file}: {MANIFEST}"), f"{file}: {MANIFEST}")
    expected = expected_files(manifest, f"{file}: {MANIFEST}")
    (out / MANIFEST).write_bytes(raw)
    seen: set[str] = set()
    with progress.task("unpack", sum(f.size for f in expected.values())) as task:
        while (member := archive.next()) is not None:
            name = member.name
            if not member.isreg() or name not in expected or name in seen:
                raise BadInputError(
                    f"{file}: holds {name!r}, which is a link, a special file, listed twice or not "
                    "in the manifest; do not use this archive"
                )
            if member.size != expected[name].size:
                raise BadInputError(
                    f"{file}: {name} has {member.size} bytes, the manifest says "
                    f"{expected[name].size}; download it again"
                )
            seen.add(name)
            target = out / name
            target.parent.mkdir(parents=True, exist_ok=True)
            source = archive.extractfile(member)
            assert source is not None
            with source, target.open("wb") as sink:
                shutil.copyfileobj(source, sink)
            task.advance(member.size)


def _content(archive: tarfile.TarFile, member: tarfile.TarInfo, file: Path) -> bytes:
    source = archive.extractfile(member)
    if source is None:
        raise BadInputError(f"{file}: {member.name} cannot be read; download it again")
    with source:
        return source.read()
