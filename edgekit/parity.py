"""Parity: every graph of a variant against transformers in float32 on the same weights.

The reference is the variant's own weights, widened to float32 and run by transformers, which knows
nothing of the graphs. *Exact* runs keep the runtimes' arithmetic in float32: then only the order of
sums differs, and the gate is tight. *As shipped* is what the runtime does by default (int8
activations, bfloat16, a compressed cache); its cost is reported, and depends on the machine.
"""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict

from edgekit.architecture import Architecture
from edgekit.checkpoint import read_config
from edgekit.describe import describe
from edgekit.errors import BadInputError, GateFailedError
from edgekit.memory import available_memory
from edgekit.parity_cases import LONGEST, Case, Difference, Float, compare, make_cases, run_case
from edgekit.progress import Progress
from edgekit.rules import TARGETS
from edgekit.runtimes.graph_sessions import GraphSession, OnnxSession, OpenVINOSession
from edgekit.scheme import Scheme, is_quantized, read_scheme
from edgekit.variant_files import files_of, size_directories

MAX_KL = 1e-5  # nats per token, of an exact run
MIN_AGREEMENT = 0.995  # of an exact run of packed weights; floats must agree everywhere
# QMoE's kernel for 8-bit experts quantizes activations whatever it is told
INT8_EXPERTS_MAX_KL, INT8_EXPERTS_MIN_AGREEMENT = 1e-2, 0.9
FLIPS = 0.01  # of a sparse model's positions: a router's near tie may fall either way
LARGER = 2.5  # memory of a float32 reference while it loads, over its weights
EXACT_GRAPH = "parity.onnx"


class Parity(BaseModel):
    """One target against the reference over all cases; KL in nats per token.

    ``num_experts`` are those of each layer, 0 for a dense model.
    """

    model_config = ConfigDict(frozen=True)

    target: str
    num_experts: int = 0
    cases: list[str]
    positions: int
    max_relative_error: float
    mean_kl: float
    top1_agreement: float
    shipped_mean_kl: float
    shipped_top1_agreement: float
    failure: str = ""


class ParityReport(BaseModel):
    """``skipped`` says why nothing, or of a nested variant which sizes, could not be compared."""

    model_config = ConfigDict(frozen=True)

    reference: str = ""
    results: list[Parity] = []
    skipped: str = ""

    def require(self) -> None:
        """Raise ``GateFailedError`` for the first target that does not match."""
        for result in self.results:
            if result.failure:
                size = f" with {result.num_experts} experts" if result.num_experts else ""
                raise GateFailedError(f"{result.target}{size}: {result.failure}")


def obstacle(architecture: Architecture) -> str:
    """Why the reference cannot run here, or ""."""
    for package in ("torch", "transformers"):
        if importlib.util.find_spec(package) is None:
            return f'{package} is not installed (pip install "edgekit[build]")'
    needed = int(architecture.parameters() * 4 * LARGER)
    available = available_memory()
    if needed > available:
        return (
            f"a float32 reference takes {needed / 1e9:.1f} GB, {available / 1e9:.1f} GB of memory "
            "are available"
        )
    return ""


def compiled_targets(variant: Path) -> list[str]:
    """A target on the CPU for each runtime that ``variant`` has a graph for.

    Raises:
        BadInputError: it has none.
    """
    files = files_of(variant)
    graphs = {"openvino-cpu": files.openvino_graph, "onnx-cpu": files.onnx_graph}
    found = [target for target, graph in graphs.items() if graph.is_file()]
    if not found:
        raise BadInputError(f"{variant}: no graphs here; run `edgekit compile` first")
    return found


Expected = tuple[Case, list[Float]]  # of the reference: logits of every row of a case
Compared = Callable[[Path, ParityReport, list[Expected]], None]


def check_every_size(
    variant: Path,
    targets: Sequence[str],
    progress: Progress,
    longest: int = LONGEST,
    done: Compared = lambda *_: None,
) -> ParityReport:
    """:func:`check_parity` of a variant and of every nested size in it, each against its own model.

    ``done`` is given the directory, the report and the reference's logits of each as they are made.
    """
    results, skipped = [], []
    directories = size_directories(variant)
    for directory in directories:
        report, expected = check_parity(directory, targets, progress, longest=longest)
        done(directory, report, expected)
        results += report.results
        if report.skipped:
            size = f"{directory.name}: " if len(directories) > 1 else ""
            skipped.append(size + report.skipped)
    named = "transformers in float32 on the same weights" if results else ""
    return ParityReport(reference=named, results=results, skipped="; ".join(skipped))


def check_parity(
    variant: Path,
    targets: Sequence[str],
    progress: Progress,
    reference: Path | None = None,
    longest: int = LONGEST,
) -> tuple[ParityReport, list[Expected]]:
    """Compare each target of ``variant``; also returns the reference's logits per case.

    ``reference`` is a checkpoint to compare with in place of the variant's own weights. What an
    unquantized one says is reported only, since rounding the weights counts as a difference then.
    """
    config = read_config(variant)
    architecture = describe(config, str(variant / "config.json"))
    scheme = read_scheme(variant)
    if reason := obstacle(architecture):
        return ParityReport(skipped=reason), []
    cases = make_cases(architecture, longest, _padding(config, architecture))
    expected = _reference(variant, reference, cases, progress)
    gated = reference is None or is_quantized(reference)
    results = []
    runtimes = dict.fromkeys(targets)
    with progress.task("compare with PyTorch", len(runtimes)) as task:
        for target in runtimes:
            results.append(_compare(variant, target, architecture, scheme, expected, gated))
            task.advance()
    named = f"transformers in float32 on {reference or 'the same weights'}"
    return ParityReport(reference=named, results=results), expected


def _padding(config: Mapping[str, Any], architecture: Architecture) -> int | None:
    token = config.get("pad_token_id")
    return token if type(token) is int and 0 <= token < architecture.vocab_size else None


def _reference(
    variant: Path, reference: Path | None, cases: Sequence[Case], progress: Progress
) -> list[Expected]:
    from edgekit.distill.teacher import teacher_logits
    from edgekit.quantize.reference import dequantized_checkpoint

    with tempfile.TemporaryDirectory() as scratch:
        plain = reference
        if reference is None or is_quantized(reference):
            plain = Path(scratch)
            dequantized_checkpoint(reference or variant, plain, progress)
        assert plain is not None
        model = teacher_logits(plain)
        return [(case, [model(np.array(row, np.int32)) for row in case.rows]) for case in cases]


def _compare(
    variant: Path, target: str, architecture: Architecture, scheme: Scheme,
    expected: Sequence[Expected], gated: bool,
) -> Parity:  # fmt: skip
    with _exact_session(variant, target) as session:
        exact = _difference(session, expected)
    shipped = _difference(open_session(variant, target), expected)
    sparse = architecture.moe is not None
    kl = np.sort(exact.kl)
    # what is not finite sorts last: it is no router's tie and must count
    allowed = int(FLIPS * len(kl)) if sparse and np.isfinite(kl).all() else 0
    counted = kl[: len(kl) - allowed]
    agreement = float(exact.agrees.mean())
    return Parity(
        target=target,
        num_experts=architecture.moe.num_experts if architecture.moe else 0,
        cases=[case.name for case, _ in expected],
        positions=len(kl),
        max_relative_error=exact.relative_error,
        mean_kl=float(counted.mean()),
        top1_agreement=agreement,
        shipped_mean_kl=float(shipped.kl.mean()),
        shipped_top1_agreement=float(shipped.agrees.mean()),
        failure=_failure(target, scheme, sparse, float(counted.mean()), agreement) if gated else "",
    )


def _failure(target: str, scheme: Scheme, sparse: bool, kl: float, agreement: float) -> str:
    max_kl, least = MAX_KL, MIN_AGREEMENT
    if scheme.bits == 16 and not sparse:
        least = 1.0
    if TARGETS[target].runtime == "onnx" and sparse and scheme.bits == 8:
        max_kl, least = INT8_EXPERTS_MAX_KL, INT8_EXPERTS_MIN_AGREEMENT
    if kl <= max_kl and agreement >= least:
        return ""
    return (
        f"the graph's logits are not the reference's (KL {kl:.1e} nats per token of at most "
        f"{max_kl:.0e}, top-1 {agreement:.3f} of at least {least}); do not ship it, report the "
        "config of the checkpoint"
    )


def _difference(session: GraphSession, expected: Sequence[Expected]) -> Difference:
    reference, found = [], []
    for case, rows in expected:
        reference += rows
        found += run_case(session, case)
    return compare(reference, found)


def open_session(variant: Path, target: str, device: str = "CPU") -> GraphSession:
    """The graph of ``target`` as it ships; on the CPU unless another device is asked for."""
    if TARGETS[target].runtime == "onnx":
        return OnnxSession(variant, device=device)
    return OpenVINOSession(variant, device)


@contextmanager
def _exact_session(variant: Path, target: str) -> Iterator[GraphSession]:
    if TARGETS[target].runtime == "openvino":
        yield OpenVINOSession(variant, exact=True)
        return
    from edgekit.runtimes.onnx_graph import FLOAT_ACTIVATIONS, write_onnx_graph

    # beside the weights, because ONNX Runtime refuses data outside the graph's directory
    try:
        write_onnx_graph(variant, FLOAT_ACTIVATIONS, EXACT_GRAPH)
        yield OnnxSession(variant, EXACT_GRAPH)
    except PermissionError:
        raise BadInputError(
            f"{variant}: cannot be written to, and the exact ONNX graph has to lie beside the "
            "weights; compare a copy of the variant"
        ) from None
    finally:
        files_of(variant).onnx_beside(EXACT_GRAPH).unlink(missing_ok=True)
