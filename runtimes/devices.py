"""What this machine has, and which target would be used for a pack and why."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from edgekit.checkpoint import read_config
from edgekit.describe import describe
from edgekit.errors import MissingRuntimeError
from edgekit.manifest import MANIFEST, Kind, read_manifest
from edgekit.memory import available_memory
from edgekit.pack import open_pack, variant_for
from edgekit.pack_sizes import choose_size, require_size
from edgekit.progress import Progress
from edgekit.rules import TARGETS
from edgekit.variant_files import folder_size, size_directories

PREFERENCE = ("openvino-gpu", "onnx-dml", "openvino-cpu", "onnx-cpu", "openvino-npu")
NOT_INSTALLED = "not installed"


class Device(BaseModel):
    """A target and whether this machine can run it; ``detail`` names the device or the lack."""

    model_config = ConfigDict(frozen=True)

    target: str
    available: bool
    detail: str


class Reason(BaseModel):
    """Why a target is chosen or not.

    ``code`` is "chosen", "later" (another one comes first), "not_compiled" (the pack has no
    variant for it), "device_missing" or "runtime_missing"; ``text`` says it in words.
    """

    model_config = ConfigDict(frozen=True)

    target: str
    code: str
    text: str


def list_devices() -> list[Device]:
    """Every known target with the state of its device here."""
    openvino, onnx = _openvino_devices(), _onnx_providers()
    result = []
    for target in TARGETS.values():
        if target.runtime == "openvino":
            name = next((n for d, n in openvino.items() if d.split(".")[0] == target.device), "")
            missing = "OpenVINO finds no such device: check the driver"
        else:
            provider = {"CPU": "CPUExecutionProvider", "DML": "DmlExecutionProvider"}
            name = provider[target.device] if provider[target.device] in onnx else ""
            missing = (
                "ONNX Runtime has no such provider here" if onnx
                else f'{NOT_INSTALLED}: pip install "edgekit[onnx]"'
            )  # fmt: skip
        result.append(Device(target=target.name, available=bool(name), detail=name or missing))
    return result


def choose(targets: Sequence[str]) -> tuple[str, list[str]]:
    """The target to use among those of a pack, and a line of reason for each one considered.

    The empty string means that none of them can run here.
    """
    chosen, reasons = consider(targets, list_devices())
    return chosen, [f"{r.target}: {r.text}" for r in reasons]


def consider(targets: Sequence[str], devices: Sequence[Device]) -> tuple[str, list[Reason]]:
    """The target to use on a machine with ``devices``, or "", and why, in order of preference."""
    here = {d.target: d for d in devices}
    chosen, reasons = "", []
    for target in PREFERENCE:
        device = here[target]
        if target not in targets:
            code, text = "not_compiled", "the pack was not compiled for it"
        elif not device.available:
            code = (
                "runtime_missing" if device.detail.startswith(NOT_INSTALLED) else "device_missing"
            )
            text = device.detail
        elif chosen:
            code, text = "later", f"would do, {chosen} comes first"
        else:
            chosen = target
            code, text = "chosen", f"chosen ({device.detail})"
        reasons.append(Reason(target=target, code=code, text=text))
    return chosen, reasons


def locate(
    pack: Path,
    target: str,
    progress: Progress,
    allow_damaged: bool = False,
    kind: Kind = "chat",
    experts: int = 0,
    notify: Callable[[str], None] = lambda _: None,
) -> tuple[Path, str]:
    """The variant directory of a pack, or a bare variant, and the target that runs it.

    Of a variant with nested sizes it is the folder of the one with ``experts`` experts; without, of
    the largest that fits into the memory that is free, and ``notify`` is told which and why. A bare
    variant is itself unless ``experts`` are asked for.

    Raises:
        BadInputError: neither, damaged, of another ``kind``, not made for ``target``, or without a
            size of ``experts`` experts.
        MissingRuntimeError: no target was asked for and none of the pack's is here.
    """
    if (pack / "config.json").is_file() and not (pack / MANIFEST).is_file():
        return _bare(pack, experts), target or "openvino-cpu"
    manifest = read_manifest(pack)
    if not target:
        target, reasons = choose([t.target for v in manifest.variants for t in v.targets])
        if not target:
            raise MissingRuntimeError(
                f"{pack}: none of its targets is on this machine ({'; '.join(reasons)}); see "
                "`edgekit devices`"
            )
    directory = open_pack(pack, target, progress, allow_damaged, kind)
    variant = variant_for(pack, manifest, target)
    size = choose_size(manifest, variant, available_memory(), experts, str(pack))
    if size.reason:
        notify(size.reason)
    return size.inside(directory), target


def _bare(variant: Path, experts: int) -> Path:
    """A variant outside a pack, or the folder of its size with ``experts`` experts."""
    if not experts:
        return variant
    moe = describe(read_config(variant), str(variant / "config.json")).moe
    folders = size_directories(variant)
    sizes = [moe.num_experts if moe else 0, *map(folder_size, folders[1:])]
    require_size(experts, sizes, str(variant))
    return folders[sizes.index(experts)]


def _openvino_devices() -> dict[str, str]:
    if importlib.util.find_spec("openvino") is None:
        return {}
    import openvino

    core = openvino.Core()
    return {d: str(core.get_property(d, "FULL_DEVICE_NAME")) for d in core.available_devices}


def _onnx_providers() -> list[str]:
    if importlib.util.find_spec("onnxruntime_genai") is None:
        return []
    import onnxruntime

    return list(onnxruntime.get_available_providers())
