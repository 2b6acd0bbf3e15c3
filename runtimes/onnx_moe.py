"""Sparse layers as ONNX Runtime's ``QMoE``, which computes the chosen experts only.

``QMoE`` on the CPU wants gate and up rows alternating in one tensor. The file has them as two, so
a Concat stands before each layer and is folded while the runtime loads; nothing is stored twice on
disk. The other road, gathering the tokens of each expert for its own ``MatMulNBits``, keeps the
experts apart but decoded a random 6-expert top-2 model of SmolLM2's width (576, experts of 1,152,
30 layers, int4-g64, 2 cores) at 82 tokens/s against 118, in 460 MB against 610.

The operator's ``accuracy_level`` came with ONNX Runtime 1.32; older ones refuse the graph. Its
8-bit experts always see int8 activations on the CPU, whatever the level.
"""

from __future__ import annotations

from typing import Any

from edgekit.architecture import Architecture, Moe
from edgekit.runtimes.onnx_matrices import Matrices
from edgekit.runtimes.onnx_nodes import MICROSOFT, TensorProto, block_size

SOFTMAX_GIVEN = 14  # position of the input that replaces the router's own weights


def mixture(m: Matrices, architecture: Architecture, x: str, layer: int) -> str:
    """The mixture of experts of ``layer`` applied to x [B, T, hidden_size]."""
    moe, b = architecture.moe, m.b
    assert moe is not None
    router = architecture.router(layer)
    flat = b.node("Reshape", [x, b.ints(-1, architecture.hidden_size)], router + ".tokens")
    weight = b.floats(router + ".weight")
    logits = b.node("Gemm", [flat, weight], router + ".logits", transB=1)
    names = {p: architecture.expert(layer, 0, p) + ".weight" for p in ("gate", "up", "down")}
    packing = m.scheme.packing(m.specs[names["gate"]])
    block = _block(architecture, packing.group_size) if packing else 0
    gate, up, down = (_experts(m, moe, name, block) for name in names.values())
    inputs = [x, logits, *_interleaved(m, moe, gate, up), "", *down]
    attributes: dict[str, Any] = {
        "k": moe.num_experts_per_tok,
        "activation_type": "swiglu",
        "swiglu_fusion": 1,
        "activation_alpha": 1.0,  # plain SiLU
        "activation_beta": 0.0,
        "normalize_routing_weights": int(moe.norm_topk_prob),
    }
    out = architecture.layer_prefix(layer) + "experts"
    if packing is None:
        return b.node("MoE", inputs, out, MICROSOFT, **attributes)
    if not moe.norm_topk_prob:
        # QMoE on the CPU divides by the sum whatever the attribute says, but uses these as given
        inputs += [""] * (SOFTMAX_GIVEN - len(inputs))
        inputs.append(b.node("Softmax", [logits], router + ".softmax", axis=-1))
    return b.node(
        "QMoE", inputs, out, MICROSOFT, expert_weight_bits=packing.bits, block_size=block,
        weights_prepacked=0, accuracy_level=m.accuracy, **attributes,
    )  # fmt: skip


def _block(architecture: Architecture, group_size: int) -> int:
    """One block for all projections of the experts, since QMoE has one attribute for it."""
    assert architecture.moe is not None
    sizes = (architecture.hidden_size, architecture.moe.intermediate_size)
    return min(block_size(size, min(group_size, size)) for size in sizes)


def _experts(m: Matrices, moe: Moe, name: str, block: int) -> list[str]:
    """Codes [E, N, K * bits / 8] and scales [E, N, K / block], or the float32 weights alone.

    ``name`` is the projection's weight of expert 0; the others follow it in the file.
    """
    spec = m.specs[name]
    packing = m.scheme.packing(spec)
    shape = (moe.num_experts, *spec.shape)
    if packing is None:
        return [m.b.cast(m.b.stored(name, m.b.info(name), TensorProto.FLOAT16, shape))]
    codes = m.b.stored(
        name + ".codes", m.b.info(name + "_packed"), TensorProto.UINT8,
        (*shape[:-1], shape[-1] * packing.bits // 8),
    )  # fmt: skip
    return [codes, m.scales(name, shape, packing, block)]


def _interleaved(m: Matrices, moe: Moe, gate: list[str], up: list[str]) -> list[str]:
    """Gate and up rows alternating [E, 2 I, ...]."""
    b = m.b
    shape = b.ints(moe.num_experts, 2 * moe.intermediate_size, -1)
    names = []
    for pair in zip(gate, up, strict=True):
        parts = [b.node("Unsqueeze", [name, b.ints(2)], name + ".part") for name in pair]
        joined = b.node("Concat", parts, pair[0] + ".pair", axis=2)
        names.append(b.node("Reshape", [joined, shape], pair[0] + ".interleaved"))
    return names
