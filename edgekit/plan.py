"""Plan: what fits where, what it is likely to cost, and what a device refuses and why."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict

from edgekit.architecture import Architecture
from edgekit.layout import misfit
from edgekit.rules import TARGETS, Finding, check
from edgekit.scheme import CONSTANTS_BYTES, Scheme, float_dtype
from edgekit.tensorfile import DTYPES

SCHEMES = ("none", "int8", "int4-g128", "int4-g64", "int4-g32", "int4-channel")
KEEPS = (1.0, 0.75, 0.5, 0.25)
WORKING_BYTES = 150_000_000  # runtime and code
BASE_MEMORY = 700_000_000  # of a build: Python, torch and the runtimes
FLOAT32_BYTES, BFLOAT16_BYTES = 4, 2
ACTIVATION_BYTES_PER_TOKEN = 12  # times hidden_size, a prompt chunk of 512 tokens

# (scheme bits, kept fraction at most) -> risk and where it comes from
EVIDENCE: tuple[tuple[int, float, str, str], ...] = (
    (16, 1.0, "none", "same weights"),
    (8, 1.0, "very low", "8-bit weights are near lossless (LLM.int8(), arXiv 2208.07339)"),
    (4, 1.0, "low", "int4 groups with searched scales; GPTQ (arXiv 2210.17323) reports small "
                    "losses that grow as models shrink"),
    (4, 0.75, "moderate", "REAP (arXiv 2510.13999): 25 % of experts removed with small losses on "
                          "code and tools; heal and measure"),
    (4, 0.5, "high", "REAP (arXiv 2510.13999): near lossless on code for very large MoEs at 50 %, "
                     "weaker elsewhere; heal and measure"),
    (4, 0.0, "very high", "no published recipe keeps quality at this fraction; distil into a "
                          "smaller student"),
)  # fmt: skip
NESTED_EVIDENCE = (
    "measured", "a size nested in the model: shrink and evaluation measured it, by domain"
)  # fmt: skip


class Candidate(BaseModel):
    """One way to run the model on one target; sizes in bytes."""

    model_config = ConfigDict(frozen=True)

    target: str
    scheme: str
    keep: float
    weights_bytes: int
    kv_cache_bytes: int
    working_bytes: int
    bits_per_original_weight: float
    build_disk_bytes: int
    fits: bool
    findings: list[Finding]
    risk: str
    evidence: str

    @property
    def total_bytes(self) -> int:
        """Memory at the asked context."""
        return self.weights_bytes + self.kv_cache_bytes + self.working_bytes

    @property
    def blocked(self) -> bool:
        """Whether a rule forbids it."""
        return any(f.blocks for f in self.findings)


class Plan(BaseModel):
    """Candidates per target, and the one recommended with the reason; None where nothing fits.

    ``context`` is the asked one or the model's, whichever is shorter; ``build_memory_bytes`` the
    peak of `edgekit build`, which runs the teacher in float32. Of a model with ``nested`` sizes
    (numbers of experts, largest first) the candidates are these, over one weights file: a machine
    takes the largest that fits from the same pack.
    """

    model_config = ConfigDict(frozen=True)

    memory_bytes: int
    context: int
    build_memory_bytes: int
    candidates: list[Candidate]
    recommended: dict[str, Candidate | None]
    reasons: dict[str, str]
    nested: list[int] = []


def make_plan(
    architecture: Architecture,
    targets: Sequence[str],
    memory_bytes: int,
    context: int,
    nested: Sequence[int] = (),
) -> Plan:
    """Weigh every scheme, and below int4 every pruning, on every target.

    Quantization comes first: an expert is dropped only from an int4 model, since published
    results lose far less from 16 to 4 bits than from halving the experts. A model with ``nested``
    sizes is not pruned further; these are weighed in every scheme, since they cost nothing to make.
    """
    context = min(context, architecture.context_length)
    candidates = []
    for target in targets:
        for scheme in SCHEMES:
            if misfit(architecture, Scheme.parse(scheme)):
                continue
            candidates += [
                _candidate(architecture, target, scheme, keep, memory_bytes, context, bool(nested))
                for keep in _keeps(architecture, scheme, nested)
            ]
    recommended, reasons = {}, {}
    for target in targets:
        mine = [c for c in candidates if c.target == target]
        recommended[target], reasons[target] = _recommend(mine, bool(nested))
    return Plan(
        memory_bytes=memory_bytes, context=context,
        build_memory_bytes=architecture.parameters() * FLOAT32_BYTES + BASE_MEMORY,
        candidates=candidates, recommended=recommended, reasons=reasons, nested=list(nested),
    )  # fmt: skip


def _keeps(architecture: Architecture, scheme: str, nested: Sequence[int]) -> list[float]:
    """Fractions of the experts to weigh."""
    moe = architecture.moe
    if moe is None:
        return [1.0]
    if nested:
        return [size / moe.num_experts for size in nested]
    prunes = architecture.expert_count_keys and scheme.startswith("int4")
    keeps = KEEPS if prunes else KEEPS[:1]
    return [k for k in keeps if round(k * moe.num_experts) >= moe.num_experts_per_tok]


def _candidate(
    architecture: Architecture, target: str, name: str, keep: float, memory: int, context: int,
    nested: bool,
) -> Candidate:  # fmt: skip
    scheme = Scheme.parse(name)
    weights = weights_bytes(architecture, scheme, keep)
    cache_value = 4 if TARGETS[target].runtime == "onnx" else 1  # OpenVINO keeps it in 8 bits
    cache = architecture.kv_bytes_per_token(cache_value) * context + architecture.state_bytes()
    working = WORKING_BYTES + 512 * architecture.hidden_size * ACTIVATION_BYTES_PER_TOKEN
    risk, evidence = NESTED_EVIDENCE if nested and keep < 1 else _evidence(scheme.bits, keep)
    on_disk = weights_bytes(architecture, scheme) if nested else weights
    return Candidate(
        target=target, scheme=name, keep=keep, weights_bytes=weights, kv_cache_bytes=cache,
        working_bytes=working, bits_per_original_weight=8 * weights / architecture.parameters(),
        build_disk_bytes=_build_disk(architecture, on_disk, 1.0 if nested else keep),
        fits=weights + cache + working <= memory,
        findings=check(target, architecture, scheme), risk=risk, evidence=evidence,
    )  # fmt: skip


def _build_disk(architecture: Architecture, weights: int, keep: float) -> int:
    """Quantized, compiled and packed; below all experts the pruned and the healed student too."""
    if keep == 1:
        return 3 * weights
    return 3 * weights + 2 * kept_parameters(architecture, keep) * BFLOAT16_BYTES


def kept_parameters(architecture: Architecture, keep: float) -> int:
    """Parameters with a fraction of the experts kept."""
    experts = sum(s.parameters for s in architecture.tensors() if s.role == "expert")
    return architecture.parameters() - int(experts * (1 - keep))


def _evidence(bits: int, keep: float) -> tuple[str, str]:
    rows = [(k, risk, source) for b, k, risk, source in EVIDENCE if b == bits and k <= keep]
    _, risk, source = max(rows)
    return risk, source


def _recommend(candidates: Sequence[Candidate], nested: bool) -> tuple[Candidate | None, str]:
    allowed = [c for c in candidates if not c.blocked]
    if not allowed:
        finding = next(f for c in candidates for f in c.findings if f.blocks)
        return None, f"{finding.reason}; {finding.remedy}"
    fitting = [c for c in allowed if c.fits]
    if not fitting:
        smallest = min(allowed, key=lambda c: c.total_bytes)
        return None, (
            f"even {smallest.scheme} with {smallest.keep:.0%} of the experts needs "
            f"{smallest.total_bytes / 1e9:.1f} GB; distil into a smaller student"
        )
    # 4-bit decoding is fastest; among equals keep all experts, then the coarser group that fits
    order = {s: i for i, s in enumerate(("int4-g128", "int4-g64", "int4-g32", "int4-channel",
                                         "int8", "none"))}  # fmt: skip
    best = min(fitting, key=lambda c: (-c.keep, order[c.scheme]))
    if best.keep == 1:
        return best, f"{best.scheme} fits with every expert kept: quantize, do not prune"
    if nested:
        return best, (
            f"{best.scheme} with all experts does not fit; the first {best.keep:.0%} of them do, "
            "from the same pack"
        )
    return best, (
        f"{best.scheme} alone does not fit; {best.keep:.0%} of the experts does, with risk "
        f"{best.risk}: heal by distillation and gate on KL"
    )


def weights_bytes(architecture: Architecture, scheme: Scheme, keep: float = 1.0) -> int:
    """Bytes of the quantized weights file's tensors, with a fraction of the experts kept."""
    experts = architecture.moe.num_experts if architecture.moe else 0
    kept = round(keep * experts)
    total = CONSTANTS_BYTES
    for spec in architecture.tensors():
        if spec.role == "expert" and spec.expert >= kept:
            continue
        elements = spec.parameters
        if spec.role == "router" and experts:
            elements = elements * kept // experts
        packing = scheme.packing(spec)
        if packing is None:
            total += elements * DTYPES[float_dtype(spec, scheme)][0] // 8
        else:
            total += elements * packing.bits // 8 + 2 * elements // packing.group_size + 16
    return total
