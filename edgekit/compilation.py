"""Compile a quantized checkpoint and hold its graphs to the reference before anyone uses them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from edgekit.parity import ParityReport, check_parity, compiled_targets
from edgekit.progress import Progress
from edgekit.runtimes.compile import compile_variant
from edgekit.self_check import write_reference


class CompilationReport(BaseModel):
    """Bytes of the variant's weights file and, per runtime, of its graph; and the parity gate."""

    model_config = ConfigDict(frozen=True)

    targets: list[str]
    weights_bytes: int
    graph_bytes: dict[str, int]
    parity: ParityReport


def compile_checked(
    model: Path, targets: Sequence[str], out: Path, progress: Progress, parity: bool = True
) -> CompilationReport:
    """Write a variant of ``model`` into the empty directory ``out`` and compare it with PyTorch.

    Where PyTorch is not installed or does not fit, the report says so; where it ran, the variant
    keeps a stored reference, with which any machine can check itself.

    Raises:
        BadInputError: ``model`` is not quantized, or a target's rules refuse it.
        GateFailedError: a graph's logits are not the reference's.
    """
    compiled = compile_variant(model, targets, out, progress)
    report = ParityReport(skipped="it was switched off")
    if parity:
        report, expected = check_parity(out, compiled_targets(out), progress)
        report.require()
        if expected:
            write_reference(out, expected, targets)
    return CompilationReport(
        targets=compiled.targets,
        weights_bytes=compiled.weights_bytes,
        graph_bytes=compiled.graph_bytes,
        parity=report,
    )
