"""Doctor: check the installation and say what to do about each problem."""

from __future__ import annotations

import shutil
import sys
from importlib import metadata
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from edgekit.errors import MissingRuntimeError
from edgekit.manifest import MANIFEST, require_kind
from edgekit.memory import available_memory
from edgekit.pack import VARIANTS, verify_pack
from edgekit.pack_sizes import fitting_sizes
from edgekit.parity import compiled_targets
from edgekit.progress import Progress
from edgekit.runtimes.devices import list_devices
from edgekit.self_check import FILE_NAME, SelfCheck, check_variant
from edgekit.sources import cache_directory
from edgekit.variant_files import size_directories

BASE = ("openvino", "openvino-genai", "tokenizers", "numpy", "pydantic")
EXTRAS = {
    "onnx": ("onnxruntime-genai-directml" if sys.platform == "win32" else "onnxruntime-genai",),
    "build": ("torch", "transformers", "onnx", "gguf", "matplotlib", "huggingface_hub"),
}
MIN_MEMORY = 4_000_000_000
MIN_DISK = 5_000_000_000


class Check(BaseModel):
    """One line of the diagnosis; ``remedy`` is empty when all is well."""

    model_config = ConfigDict(frozen=True)

    name: str
    ok: bool
    detail: str
    remedy: str = ""


def diagnose() -> list[Check]:
    """All checks; none of them raises."""
    checks = [_python()]
    checks += [_package(name, "") for name in BASE]
    checks += [_package(name, extra) for extra, names in EXTRAS.items() for name in names]
    checks += [_memory(), _disk()]
    for device in list_devices():
        checks.append(Check(name=device.target, ok=device.available, detail=device.detail,
                            remedy="" if device.available else "optional"))  # fmt: skip
    return checks


def check_pack(pack: Path, progress: Progress) -> list[SelfCheck]:
    """Run every graph of a pack, or of a variant, that this machine can, against its reference.

    Of a pack with nested sizes these are the graphs of the sizes that fit into memory.

    Raises:
        BadInputError: neither, damaged, or built without a reference.
        MissingRuntimeError: this machine has none of its targets.
    """
    here = [d.target for d in list_devices() if d.available and d.target != "openvino-npu"]
    if (pack / MANIFEST).is_file():
        manifest = verify_pack(pack, progress)
        require_kind(manifest, pack, "chat")
        free = available_memory()
        variants = {
            size.inside(pack / VARIANTS / v.id): [t.target for t in v.targets]
            for v in manifest.variants
            for size in fitting_sizes(manifest, v, free)
        }
    else:
        variants = dict.fromkeys(size_directories(pack), compiled_targets(pack))
    # a size that was too large to compare where it was built has no reference
    checkable = [v for v in variants if (v / FILE_NAME).is_file()] or list(variants)
    results: list[SelfCheck] = []
    for variant in checkable:
        results += check_variant(variant, [t for t in variants[variant] if t in here])
    if not results:
        raise MissingRuntimeError(
            f"{pack}: none of its targets is on this machine; see `edgekit devices`"
        )
    return results


def _python() -> Check:
    version = ".".join(map(str, sys.version_info[:3]))
    return Check(name="Python", ok=True, detail=version)


def _package(name: str, extra: str) -> Check:
    try:
        return Check(name=name, ok=True, detail=metadata.version(name))
    except metadata.PackageNotFoundError:
        target = f'"edgekit[{extra}]"' if extra else "edgekit"
        remedy = f"{'optional: ' if extra else ''}pip install {target}"
        return Check(name=name, ok=False, detail="not installed", remedy=remedy)


def _memory() -> Check:
    available = available_memory()
    return Check(
        name="memory", ok=available >= MIN_MEMORY, detail=f"{available / 1e9:.1f} GB available",
        remedy="" if available >= MIN_MEMORY else "close other programs before a build",
    )  # fmt: skip


def _disk() -> Check:
    cache = cache_directory()
    existing = next(p for p in (cache, *cache.parents) if p.exists())
    free = shutil.disk_usage(existing).free
    return Check(
        name="disk of the cache",
        ok=free >= MIN_DISK,
        detail=f"{free / 1e9:.1f} GB free in {cache}",
        remedy="" if free >= MIN_DISK else "free some disk",
    )
