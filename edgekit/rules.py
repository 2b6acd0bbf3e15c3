"""What targets can run and steps can do: a table of targets and one of rules (``plan --rules``).

A rule is data with a small predicate. ``blocks`` says whether compile refuses what breaks it; the
others are advice that ``plan`` shows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from edgekit.architecture import Architecture, GatedDelta, SelectiveScan
from edgekit.errors import BadInputError
from edgekit.layout import misfit
from edgekit.scheme import Scheme


@dataclass(frozen=True)
class TargetInfo:
    """A runtime on a device."""

    name: str
    runtime: str
    device: str
    description: str


TARGETS: dict[str, TargetInfo] = {
    t.name: t
    for t in (
        TargetInfo("openvino-cpu", "openvino", "CPU", "any x86-64 or ARM processor"),
        TargetInfo("openvino-gpu", "openvino", "GPU", "Intel integrated or discrete GPU"),
        TargetInfo("openvino-npu", "openvino", "NPU", "Intel NPU (Core Ultra)"),
        TargetInfo("onnx-cpu", "onnx", "CPU", "any x86-64 or ARM processor"),
        TargetInfo("onnx-dml", "onnx", "DML", "any DirectX 12 GPU on Windows"),
    )
}

Breaks = Callable[[Architecture, Scheme], bool]


@dataclass(frozen=True)
class Rule:
    """``breaks(architecture, scheme)`` is true when a model cannot run well on ``targets``."""

    id: str
    targets: tuple[str, ...]
    breaks: Breaks
    reason: str
    remedy: str
    source: str
    blocks: bool = True


@dataclass(frozen=True)
class Finding:
    """A broken rule."""

    rule: str
    target: str
    reason: str
    remedy: str
    blocks: bool


def _group_misfit(architecture: Architecture, scheme: Scheme) -> bool:
    return misfit(architecture, scheme) is not None


def _block_misfit(architecture: Architecture, scheme: Scheme) -> bool:
    """Per-channel scales are repeated per block of 16 or more, which must divide the inputs."""
    return any(
        spec.shape[1] % 16 for spec in architecture.tensors() if scheme.packing(spec) is not None
    )


def _unwritten_states(architecture: Architecture, scheme: Scheme) -> bool:
    states = (GatedDelta, SelectiveScan)
    return any(isinstance(layer.attention, states) for layer in architecture.layers)


def _foreign_activation(architecture: Architecture, scheme: Scheme) -> bool:
    return architecture.moe is not None and architecture.moe.activation not in ("silu", "clamped")


KERNEL_STEP = 8  # experts
UNPACKED = ("router", "norms")  # what quantization-aware training can train
OPENVINO = ("openvino-cpu", "openvino-gpu", "openvino-npu")
ONNX = ("onnx-cpu", "onnx-dml")
NPU = ("openvino-npu",)

RULES: tuple[Rule, ...] = (
    Rule(
        "openvino-family", OPENVINO, lambda a, s: "openvino" not in a.runtimes,
        "the OpenVINO graph has no form of this family's layers",
        "compile for onnx-cpu",
        "edgekit inspect --families",
    ),
    Rule(
        "onnx-family", ONNX, lambda a, s: "onnx" not in a.runtimes,
        "the ONNX graph has no form of this family's layers",
        "compile for openvino-cpu or openvino-gpu",
        "edgekit inspect --families",
    ),
    Rule(
        "group-divides", OPENVINO + ONNX, _group_misfit,
        "an input dimension is not a multiple of the group, so the packed weights cannot be read "
        "in place",
        "use a smaller group or int4-channel",
        "compressed-tensors pack-quantized layout",
    ),
    Rule(
        "onnx-states", ONNX, _unwritten_states,
        "the ONNX graph has no recurrent states (Mamba, gated delta rule)",
        "compile for openvino-cpu or openvino-gpu",
        "edgekit inspect --families",
    ),
    Rule(
        "onnx-activation", ONNX, _foreign_activation,
        "ONNX Runtime's experts multiply with a SiLU gate only",
        "compile for openvino-cpu or openvino-gpu",
        "ONNX Runtime QMoE: activation_type swiglu",
    ),
    Rule(
        "npu-dense", NPU, lambda a, s: a.moe is not None,
        "the NPU's compiler takes small experts, but at a real model's width it did not finish "
        "(per channel) or refused the graph (groups of 128)",
        "distil into a dense student ([student] in the recipe) and compile that",
        "compiler 8.4 of OpenVINO 2026.4.1, asked offline: docs/npu.md",
    ),
    Rule(
        "npu-states", NPU, lambda a, s: len(a.attentions) < len(a.layers),
        "the NPU's language-model path knows keys and values only, and this model has "
        "states of another kind too",
        "compile for openvino-cpu or openvino-gpu",
        "OpenVINO GenAI NPU guide",
    ),
    Rule(
        "npu-int4", NPU, lambda a, s: s.bits != 4,
        "the NPU's language-model path wants symmetric int4 weights",
        "quantize with int4-g128 or int4-channel",
        "OpenVINO GenAI NPU guide: int4, symmetric, group 128 or per channel",
    ),
    Rule(
        "npu-group", NPU, lambda a, s: s.bits == 4 and s.group_size not in (0, 128),
        "Intel's guide names groups of 128 and whole channels for the NPU; other groups compile "
        "(groups of 64 on four platforms), their speed on a device is not known",
        "prefer int4-channel or int4-g128",
        "OpenVINO GenAI NPU guide; docs/npu.md",
        blocks=False,
    ),
    Rule(
        "npu-static", NPU, lambda a, s: a.context_length > 1024,
        "prompt and answer lengths are fixed when the NPU graph is compiled, here to 1,024 tokens "
        "together, whatever the model's context",
        "route longer conversations to the GPU or CPU",
        "OpenVINO GenAI NPU guide: MAX_PROMPT_LEN, MIN_RESPONSE_LEN",
        blocks=False,
    ),
    Rule(
        "onnx-blocks", ONNX, _block_misfit,
        "ONNX Runtime multiplies in blocks that are powers of two from 16 up",
        "choose a model whose dimensions divide by 16",
        "ONNX Runtime MatMulNBits: block_size",
    ),
    Rule(
        "onnx-sparse-prompt", ("onnx-cpu",), lambda a, s: a.moe is not None,
        "experts decode as fast as OpenVINO's, but a prompt takes 1.5 to 2.4 times as long",
        "prefer openvino-cpu for sparse models",
        "benchmarks/sparse.py; docs/families.md",
        blocks=False,
    ),
    Rule(
        "onnx-channel-scales", ONNX, lambda a, s: s.bits == 4 and s.group_size == 0,
        "per-channel scales are repeated for every block, which makes the graph larger",
        "use int4-g64 or int4-g128 where the size matters",
        "ONNX Runtime MatMulNBits: one scale per block",
        blocks=False,
    ),
    Rule(
        "dml-dense", ("onnx-dml",), lambda a, s: a.moe is not None,
        "DirectML has no kernel for experts, and its builds of ONNX Runtime (1.24) refuse the "
        "QMoE operator of the graph, whose accuracy_level came with 1.32",
        "use openvino-gpu on Intel or onnx-cpu, or distil into a dense student",
        "ONNX Runtime pull request 32644; loading the graph with onnxruntime 1.24.4 fails",
    ),
    Rule(
        "unquantized", OPENVINO + ONNX, lambda a, s: s.bits == 16,
        "decoding reads every active weight once per token, so float16 is about four times slower "
        "than int4",
        "quantize with int4-g64 or int4-g128",
        "memory-bound decoding; see benchmarks/",
        blocks=False,
    ),
)  # fmt: skip


def check(target: str, architecture: Architecture, scheme: Scheme) -> list[Finding]:
    """The rules of ``target`` that a model in a scheme breaks, blocking ones first."""
    broken = [
        Finding(rule.id, target, rule.reason, rule.remedy, rule.blocks)
        for rule in RULES
        if target in rule.targets and rule.breaks(architecture, scheme)
    ]
    return sorted(broken, key=lambda finding: not finding.blocks)


def check_target(architecture: Architecture, scheme: Scheme, target: str) -> None:
    """Refuse a model that breaks a rule of ``target``; the sentence carries the remedy."""
    if target not in TARGETS:
        raise BadInputError(f"target {target!r} is not known; choose one of {', '.join(TARGETS)}")
    for finding in check(target, architecture, scheme):
        if finding.blocks:
            raise BadInputError(f"{target}: {finding.reason}; {finding.remedy}")


def rounded_experts(keep: float, experts: int) -> int:
    """The fraction ``keep`` of ``experts``, rounded.

    Of 64 and more it is a multiple of 8 if ``experts`` is one: some kernels for sparse models pad
    other numbers. Of fewer experts that would change the wanted size by more than a sixteenth.
    """
    step = KERNEL_STEP if experts >= 8 * KERNEL_STEP and experts % KERNEL_STEP == 0 else 1
    count = step * round(keep * experts / step)
    if keep * experts >= experts - 0.5:
        return experts
    return max(min(count, experts - step), 1)


def experts_to_keep(architecture: Architecture, keep: float, source: str) -> int:
    """How many experts of each layer the fraction ``keep`` means (:func:`rounded_experts`).

    Raises:
        BadInputError: the model is dense, fewer would stay than every token uses, or ``keep`` is
            less than 1 and yet all would.
    """
    moe = architecture.moe
    if moe is None:
        raise BadInputError(
            f"{source}: a dense {architecture.model_type} has no experts to drop; remove [shrink] "
            "from the recipe"
        )
    if not architecture.expert_count_keys:
        raise BadInputError(
            f"{source}: experts of a {architecture.model_type} cannot be left out, because more "
            "than the mixture depends on their number; remove [shrink] from the recipe"
        )
    count = rounded_experts(keep, moe.num_experts)
    if count == moe.num_experts and keep < 1:
        raise BadInputError(
            f"[shrink] keep: {keep} of {moe.num_experts} experts is all of them; keep at most "
            f"{(moe.num_experts - 1) / moe.num_experts:.4g}, or 1 for no change"
        )
    if count < moe.num_experts_per_tok:
        raise BadInputError(
            f"[shrink] keep: {keep} of {moe.num_experts} experts is {count}, fewer than the "
            f"{moe.num_experts_per_tok} that every token uses; keep at least "
            f"{moe.num_experts_per_tok / moe.num_experts:.3g}"
        )
    return count


def require_unpacked(trainable: Sequence[str]) -> None:
    """Refuse to train matrices against their own rounding.

    Raises:
        BadInputError: names the parts that quantization-aware training keeps as they are.
    """
    packed = [p for p in trainable if p not in UNPACKED]
    if packed:
        raise BadInputError(
            f"[distill] trainable: {', '.join(packed)} cannot be trained with quantization_aware, "
            "which keeps the matrices; name router and norms, or switch it off"
        )
