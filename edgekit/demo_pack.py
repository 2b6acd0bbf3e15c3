"""A small pack for a first start: SmolLM2-135M-Instruct, quantized and compiled on this machine.

Unlike ``edgekit demo`` nothing is pruned or distilled, so neither PyTorch nor minutes are needed:
the model is fetched once (93 MB), its weights are rounded to int8, and graphs are written for the
runtimes that are installed. Its speed is measured; its quality is not, and the manifest says none.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

from edgekit.atomic import atomic_directory
from edgekit.demo import MODEL
from edgekit.digests import json_digest, tool_versions
from edgekit.make_pack import pack_variant, student_of
from edgekit.manifest import Lineage, Manifest, TargetResult, Teacher
from edgekit.memory import require_disk, require_memory
from edgekit.pack import file_sha256, write_manifest
from edgekit.progress import Progress
from edgekit.quantize.write import quantize
from edgekit.runtimes.compile import compile_variant
from edgekit.runtimes.devices import list_devices
from edgekit.runtimes.speed import measure_speed
from edgekit.scheme import Scheme
from edgekit.sources import demo_model

SCHEME = "int8"
TARGETS = ("openvino-cpu", "openvino-gpu", "onnx-cpu")
CONTEXT = 2048  # tokens, for the memory estimate
NEEDED_MEMORY = 2_000_000_000
NEEDED_DISK = 1_500_000_000


def make_demo_pack(
    out: Path, progress: Progress, notify: Callable[[str], None] = lambda _: None
) -> Manifest:
    """Write the pack ``out``, which must not exist.

    Raises:
        BadInputError: ``out`` exists, or the model cannot be fetched.
        OutOfResourcesError: too little memory or disk.
    """
    require_memory(NEEDED_MEMORY, "the demo pack", False)
    require_disk(out, NEEDED_DISK, "the demo pack")
    notify(f"fetch {MODEL}")
    model, source = demo_model(progress)
    with atomic_directory(out) as pack, tempfile.TemporaryDirectory(dir=out.parent) as scratch:
        packed, variant = Path(scratch) / "packed", Path(scratch) / "variant"
        packed.mkdir()
        variant.mkdir()
        notify(f"round the weights to {SCHEME}")
        quantize(model, Scheme.parse(SCHEME), packed, progress)
        notify("write the graphs")
        # `onnx` writes graphs and onnxruntime-genai runs them: they are installed apart
        onnx = find_spec("onnx") is not None and available("onnx-cpu")
        targets = [t for t in TARGETS if onnx or not t.startswith("onnx")]
        compile_variant(packed, targets, variant, progress)
        results = [_measured(variant, target, progress) for target in targets]
        manifest = Manifest(
            name="smollm2-135m",
            version="1.0.0",
            license="Apache-2.0",
            teacher=Teacher(name=MODEL, digest=file_sha256(model / "model.safetensors")),
            student=student_of(variant),
            lineage=Lineage(
                recipe_digest=json_digest({"source": source, "scheme": SCHEME, "targets": targets}),
                tool_versions=tool_versions(),
            ),
            variants=[pack_variant(variant, results, CONTEXT, pack, progress)],
        )
        write_manifest(pack, manifest)
    return manifest


def available(target: str) -> bool:
    """Whether this machine can run ``target``."""
    return any(d.available for d in list_devices() if d.target == target)


def _measured(variant: Path, target: str, progress: Progress) -> TargetResult:
    """The speed of a target that is here; the graph of one that is not is still in the pack."""
    if not available(target):
        return TargetResult(target=target)
    with progress.task(f"measure the speed of {target}", 1) as task:
        speed = measure_speed(variant, target)
        task.advance()
    return TargetResult(target=target, speed=speed)
