"""Make a pack from a compiled variant and what was measured on it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edgekit.architecture import Architecture
from edgekit.checkpoint import read_config
from edgekit.compilation import NPU_TARGET, PROOFS
from edgekit.describe import describe
from edgekit.digests import tool_versions
from edgekit.evaluate import EvaluationReport
from edgekit.manifest import (
    GateResult,
    Lineage,
    Manifest,
    NestedVariant,
    Student,
    TargetResult,
    Teacher,
    Variant,
)
from edgekit.pack import copy_variant, write_manifest
from edgekit.plan import weights_bytes
from edgekit.progress import Progress
from edgekit.proofs import NpuProof
from edgekit.recipe import Recipe
from edgekit.scheme import read_scheme
from edgekit.variant_files import size_directories

WEIGHTS = "weights.safetensors"
RUNTIME_PACKAGES = {"openvino": "openvino", "onnx": "onnxruntime"}
FIXED_MEMORY = 150_000_000  # runtime and buffers, seen on both runtimes


def make_pack(
    recipe: Recipe,
    variant: Path,
    teacher_digest: str,
    records: Mapping[str, Mapping[str, Any]],
    evaluation: EvaluationReport,
    gates: Sequence[GateResult],
    out: Path,
    progress: Progress,
) -> Manifest:
    """Write the pack into the existing, empty directory ``out``."""
    versions = tool_versions()
    packed = pack_variant(
        variant, _targets(recipe, evaluation.results, variant),
        max(t.context for t in recipe.targets), out, progress,
        {n.num_experts: _targets(recipe, n.results, variant) for n in evaluation.nested},
    )  # fmt: skip
    manifest = Manifest(
        schema_version=2 if packed.nested else 1,
        name=recipe.pack.name,
        version=recipe.pack.version,
        license=recipe.pack.license or recipe.teacher.license,
        teacher=Teacher(name=recipe.teacher.model.rstrip("/").split("/")[-1],
                        digest=teacher_digest),
        student=student_of(variant),
        lineage=_lineage(recipe, records, versions),
        variants=[packed],
        gates=list(gates) if not recipe.pack.reproducible else [
            g for g in gates if "second" not in g.name and "first_token" not in g.name
        ],
    )  # fmt: skip
    write_manifest(out, manifest)
    return manifest


def student_of(variant: Path) -> Student:
    """What the manifest says about the model in ``variant``."""
    architecture = describe(read_config(variant))
    moe = architecture.moe
    return Student(
        architecture=architecture.model_type,
        parameters=architecture.parameters(),
        active_parameters=architecture.active_parameters(),
        num_experts=moe.num_experts if moe else 0,
        num_experts_per_tok=moe.num_experts_per_tok if moe else 0,
        context_length=architecture.context_length,
        scheme=read_scheme(variant).name,
    )


def pack_variant(
    variant: Path,
    targets: list[TargetResult],
    context: int,
    out: Path,
    progress: Progress,
    nested: Mapping[int, list[TargetResult]] | None = None,
) -> Variant:
    """Copy ``variant`` into the pack under construction ``out`` and describe it.

    ``context`` is the length in tokens for which the memory is estimated; ``nested`` says what was
    measured of smaller sizes, by their number of experts.
    """
    architecture = describe(read_config(variant))
    name = "sparse" if architecture.moe else "dense"
    files = copy_variant(variant, out, name, progress)
    weights = next(f.size for f in files if f.path == WEIGHTS)
    versions = tool_versions()
    runtimes = {t.target.split("-")[0] for t in targets}
    return Variant(
        id=name,
        weights_file=WEIGHTS,
        targets=targets,
        minimum_runtime_versions={
            package: versions[package]
            for package in (RUNTIME_PACKAGES[r] for r in sorted(runtimes))
            if package in versions
        },
        memory_estimate_bytes=_memory(architecture, weights, context),
        files=files,
        nested=[
            _nested(directory, targets, context, nested or {})
            for directory in size_directories(variant)[1:]
        ],
    )


def _nested(
    directory: Path,
    targets: Sequence[TargetResult],
    context: int,
    measured: Mapping[int, list[TargetResult]],
) -> NestedVariant:
    """What the manifest says of a smaller size; only the bytes of its experts are ever read."""
    architecture = describe(read_config(directory))
    assert architecture.moe is not None
    experts = architecture.moe.num_experts
    weights = weights_bytes(architecture, read_scheme(directory))
    return NestedVariant(
        num_experts=experts,
        parameters=architecture.parameters(),
        active_parameters=architecture.active_parameters(),
        memory_estimate_bytes=_memory(architecture, weights, context),
        targets=measured.get(experts) or [TargetResult(target=t.target) for t in targets],
    )


def _memory(architecture: Architecture, weights: int, context: int) -> int:
    return weights + context * architecture.kv_bytes_per_token(4) + FIXED_MEMORY


def _targets(recipe: Recipe, results: Sequence[TargetResult], variant: Path) -> list[TargetResult]:
    """Measured targets, and those that this machine could not run, without figures."""
    measured = {r.target: r for r in results}
    packed = [measured.get(t.name, TargetResult(target=t.name)) for t in recipe.targets]
    if (variant / PROOFS).is_file():
        proofs = [NpuProof.model_validate(p) for p in json.loads((variant / PROOFS).read_text())]
        packed = [
            r.model_copy(update={"npu_proofs": proofs}) if r.target == NPU_TARGET else r
            for r in packed
        ]
    if recipe.pack.reproducible:
        packed = [r.model_copy(update={"speed": None}) for r in packed]
    return packed


def _lineage(
    recipe: Recipe, records: Mapping[str, Mapping[str, Any]], versions: dict[str, str]
) -> Lineage:
    sections = {
        "data": recipe.data, "shrink": recipe.shrink, "dense": recipe.dense,
        "distill": recipe.distill,
    }  # fmt: skip
    kept = records["shrink"]["report"]["kept"] if "shrink" in records else {}
    return Lineage(
        recipe_digest=recipe.digest(),
        calibration_digest=records["data"]["report"]["digest"],
        kept_experts={str(layer): experts for layer, experts in kept.items()},
        seeds={name: section.seed for name, section in sections.items() if section},
        tool_versions=versions,
    )
