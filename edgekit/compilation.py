"""Compile a quantized checkpoint and hold its graphs to the reference before anyone uses them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from edgekit.atomic import write_json
from edgekit.errors import BadInputError, GateFailedError
from edgekit.parity import Expected, ParityReport, check_every_size, compiled_targets
from edgekit.progress import Progress
from edgekit.proofs import NpuProof
from edgekit.runtimes.compile import compile_variant
from edgekit.self_check import write_reference

NPU_TARGET = "openvino-npu"
PROOFS = "npu-proofs.json"


@dataclass(frozen=True)
class Checks:
    """What a variant must stand before it is kept.

    Attributes:
        parity: compare with PyTorch, where it is installed and fits.
        prove: ask Intel's offline NPU compiler about the NPU's graph.
        lab: where that compiler is on Linux (tests/windows/lab.sh); Windows needs none.
    """

    parity: bool = True
    prove: bool = False
    lab: Path | None = None


class CompilationReport(BaseModel):
    """Bytes of the variant's weights file and, per runtime, of its graphs; and what was checked.

    ``nested`` are the numbers of experts of a nested variant, the largest first.
    """

    model_config = ConfigDict(frozen=True)

    targets: list[str]
    weights_bytes: int
    graph_bytes: dict[str, int]
    parity: ParityReport
    npu_proofs: list[NpuProof] = []
    nested: list[int] = []


def compile_checked(
    model: Path, targets: Sequence[str], out: Path, progress: Progress, checks: Checks = Checks()
) -> CompilationReport:
    """Write a variant of ``model`` into the empty directory ``out`` and check it.

    Where PyTorch is not installed or does not fit, the report says so; where it ran, the variant
    keeps a stored reference, with which any machine can check itself. Each size of a nested model
    is compared with the model of its experts and keeps a reference of its own.

    Raises:
        BadInputError: ``model`` is not quantized, a target's rules refuse it, or a proof is asked
            of a variant that has no NPU graph.
        GateFailedError: a graph's logits are not the reference's, or the NPU's compiler refuses.
    """
    if checks.prove and NPU_TARGET not in targets:
        raise BadInputError(f"--prove is about {NPU_TARGET}; name it with --target")
    compiled = compile_variant(model, targets, out, progress)
    report = ParityReport(skipped="it was switched off")
    if checks.parity:

        def keep(directory: Path, one: ParityReport, expected: list[Expected]) -> None:
            one.require()
            if expected:
                write_reference(directory, expected, targets)

        report = check_every_size(out, compiled_targets(out), progress, done=keep)
    proofs = _prove(out, checks.lab, progress) if checks.prove else []
    return CompilationReport(
        targets=compiled.targets,
        weights_bytes=compiled.weights_bytes,
        graph_bytes=compiled.graph_bytes,
        parity=report,
        npu_proofs=proofs,
        nested=compiled.nested,
    )


def _prove(variant: Path, lab: Path | None, progress: Progress) -> list[NpuProof]:
    """Both proofs of the NPU's graph; the compiler's are kept in the variant for the manifest."""
    from edgekit.runtimes.npu_proof import PLATFORMS, prove, prove_static

    with progress.task("prove the NPU's graph", 1 + len(PLATFORMS)) as task:
        static = prove_static(variant)
        task.advance()
        if not static.passed:
            raise GateFailedError(
                f"{NPU_TARGET}: the static pipeline differs from the CPU by {static.error:.2g} of "
                "the largest logit; compile without --prove and report it"
            )
        proofs = prove(variant, lab=lab, done=lambda _: task.advance())
    for proof in proofs:
        if not proof.passed:
            raise GateFailedError(
                f"{NPU_TARGET} {proof.platform}: {proof.error}; choose another scheme or compile "
                "without --prove"
            )
    write_json(variant / PROOFS, [p.model_dump(mode="json") for p in proofs])
    return proofs
