"""Sparse layers as ONNX Runtime's ``QMoE``, which computes the chosen experts only.

``QMoE`` on the CPU wants gate and up rows alternating in one tensor. Most files have them as two,
so a Concat stands before each layer and is folded while the runtime loads; nothing is stored twice
on disk. The other road, gathering the tokens of each expert for its own ``MatMulNBits``, keeps the
experts apart but decoded a random 6-expert top-2 model of SmolLM2's width (576, experts of 1,152,
30 layers, int4-g64, 2 cores) at 82 tokens/s against 118, in 460 MB against 610.

The operator routes by a softmax over all experts. Every other router is written as nodes that end
in a gate for each expert, 0 for those not chosen, which the operator takes as given. Its
``accuracy_level`` came with ONNX Runtime 1.32; older ones refuse the graph. Its 8-bit experts
always see int8 activations on the CPU, whatever the level.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from edgekit.architecture import Mixture
from edgekit.runtimes.onnx_matrices import Matrices
from edgekit.runtimes.onnx_nodes import MICROSOFT, TensorProto, block_size

GATES_GIVEN = 14  # position of the input that replaces the router's own weights
CLAMP = {"activation_alpha": 1.702, "activation_beta": 1.0, "swiglu_limit": 7.0}  # gpt-oss
SILU = {"activation_alpha": 1.0, "activation_beta": 0.0}
LEAST = 1e-30  # stands for log 0


def mixture(m: Matrices, x: str, hidden_size: int, moe: Mixture) -> str:
    """The mixture of experts applied to x [B, T, hidden_size]."""
    b, router = m.b, moe.router
    flat = b.node("Reshape", [x, b.ints(-1, hidden_size)], router + ".tokens")
    bias = [b.floats(router + ".bias")] if moe.router_bias else []
    weight = b.floats(router + ".weight")
    logits = b.node("Gemm", [flat, weight, *bias], router + ".logits", transB=1)
    plain = moe.scoring == "softmax" and not moe.correction and moe.num_groups == 1
    plain = plain and not moe.num_identities
    if plain and moe.scaling == 1.0 and not moe.normalize_epsilon:
        y = _softmax_routed(m, x, logits, moe)
    else:
        gates, factor = _gates(m, logits, moe)
        y = _given(m, m.b.node("Mul", [x, _like_x(m, factor, x)], x + ".scaled")
                   if factor else x, gates, moe)  # fmt: skip
    if moe.num_identities:
        back = b.node("Mul", [x, _like_x(m, router + ".given_back", x)], router + ".identity")
        y = b.node("Add", [y, back], router + ".with_identity")
    if moe.output_bias:
        y = b.node("Add", [y, b.floats(moe.output_bias)], router + ".biased")
    if moe.shared is None:
        return y
    shared = m.feed_forward(x, moe.shared)
    if moe.shared_gate:
        gate = m.linear(x, moe.shared_gate)
        gate = b.node("Sigmoid", [gate], gate + ".sigmoid")
        shared = b.node("Mul", [shared, gate], shared + ".gated")
    return b.node("Add", [y, shared], router + ".with_shared")


def _like_x(m: Matrices, factor: str, x: str) -> str:
    """[B * T, 1] in the rank of x [B, T, H]."""
    shape = m.b.node("Shape", [x], factor + ".shape", start=0, end=2)
    wide = m.b.node("Concat", [shape, m.b.ints(1)], factor + ".rows", axis=0)
    return m.b.node("Reshape", [factor, wide], factor + ".column")


def _softmax_routed(m: Matrices, x: str, logits: str, moe: Mixture) -> str:
    inputs, packing = _experts_inputs(m, moe)
    if packing is None:
        return _float_experts(m, [x, logits, *inputs], moe, int(moe.normalize))
    given = [x, logits, *inputs]
    if not moe.normalize:
        # QMoE on the CPU divides by the sum whatever the attribute says, but uses these as given
        given += [""] * (GATES_GIVEN - len(given))
        given.append(m.b.node("Softmax", [logits], moe.router + ".softmax", axis=-1))
    return _packed_experts(m, given, moe, packing, int(moe.normalize))


def _given(m: Matrices, x: str, gates: str, moe: Mixture) -> str:
    """Experts with gates [T, E] that are 0 where an expert is not chosen."""
    b = m.b
    inputs, packing = _experts_inputs(m, moe)
    if packing is not None:
        given = [x, gates, *inputs]
        given += [""] * (GATES_GIVEN - len(given))
        return _packed_experts(m, [*given, gates], moe, packing, 0)
    # the float operator has no such input: softmax(log g) is g / sum g, so the sum is put back
    least = b.node("Max", [gates, b.real(LEAST)], gates + ".least")
    logs = b.node("Log", [least], gates + ".log")
    y = _float_experts(m, [x, logs, *inputs], moe, 1)
    total = b.node("ReduceSum", [gates, b.ints(-1)], gates + ".total", keepdims=1)
    return b.node("Mul", [y, _like_x(m, total, x)], moe.router + ".weighted")


def _attributes(moe: Mixture, normalize: int) -> dict[str, Any]:
    kind = CLAMP if moe.activation == "clamped" else SILU
    return {
        "k": moe.num_experts_per_tok, "activation_type": "swiglu", "swiglu_fusion": 1,
        "normalize_routing_weights": normalize, **kind,
    }  # fmt: skip


def _float_experts(m: Matrices, inputs: list[str], moe: Mixture, normalize: int) -> str:
    attributes = _attributes(moe, normalize)
    return m.b.node("MoE", inputs, moe.router + ".experts", MICROSOFT, **attributes)


def _packed_experts(
    m: Matrices, inputs: list[str], moe: Mixture, packing: tuple[int, int], normalize: int
) -> str:
    bits, block = packing
    return m.b.node(
        "QMoE", inputs, moe.router + ".experts", MICROSOFT, expert_weight_bits=bits,
        block_size=block, weights_prepacked=0, accuracy_level=m.accuracy,
        **_attributes(moe, normalize),
    )  # fmt: skip


def _experts_inputs(m: Matrices, moe: Mixture) -> tuple[list[str], tuple[int, int] | None]:
    """Inputs from the third on, and (bits, block size) of packed experts; None for floats."""
    names = {p: moe.expert(0, p) + ".weight" for p, _ in moe.expert_names}
    packing = m.scheme.packing(m.specs[names["down"]])
    block = 0
    if packing:
        sizes = {m.specs[name].shape[1] for name in names.values()}
        # one block for all projections, since the operator has one attribute for it
        block = min(block_size(size, min(packing.group_size, size)) for size in sizes)
    parts = {p: _experts(m, moe, name, block) for p, name in names.items()}
    both = parts["gate_up"] if moe.joined else _interleaved(m, moe, parts["gate"], parts["up"])
    biases = ["", ""]
    if moe.expert_bias:
        biases = [_biases(m, moe, p) for p in ("gate_up", "down")]
    inputs = [*both, biases[0], *parts["down"], biases[1]]
    if not biases[1]:
        inputs.pop()
    return inputs, (packing.bits, block) if packing else None


def _experts(m: Matrices, moe: Mixture, name: str, block: int) -> list[str]:
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


def _biases(m: Matrices, moe: Mixture, projection: str) -> str:
    name = moe.expert(0, projection) + ".bias"
    shape = (moe.num_experts, *m.specs[name].shape)
    return m.b.stored(name, m.b.info(name), TensorProto.FLOAT, shape)


def _interleaved(m: Matrices, moe: Mixture, gate: list[str], up: list[str]) -> list[str]:
    """Gate and up rows alternating [E, 2 I, ...]."""
    b = m.b
    shape = b.ints(moe.num_experts, 2 * moe.intermediate_size, -1)
    names = []
    for pair in zip(gate, up, strict=True):
        parts = [b.node("Unsqueeze", [name, b.ints(2)], name + ".part") for name in pair]
        joined = b.node("Concat", parts, pair[0] + ".pair", axis=2)
        names.append(b.node("Reshape", [joined, shape], pair[0] + ".interleaved"))
    return names


def _gates(m: Matrices, logits: str, moe: Mixture) -> tuple[str, str]:
    """Gate of every expert [T, E], 0 if not chosen; and what multiplies the experts' input."""
    b, router = m.b, moe.router
    factor = ""
    if moe.scoring in ("softmax_top_k", "sigmoid_input", "sparsemixer"):
        values, indices = _top_k(m, logits, moe.num_experts_per_tok, router)
        if moe.scoring == "softmax_top_k":
            chosen = b.node("Softmax", [values], router + ".softmax", axis=-1)
        elif moe.scoring == "sparsemixer":
            chosen = _sparse_mixer(m, logits, values, indices, moe)
        else:
            factor = b.node("Sigmoid", [values], router + ".sigmoid")
            chosen = b.node("Div", [values, values], router + ".ones")
    else:
        kind = "Softmax" if moe.scoring == "softmax" else "Sigmoid"
        attributes: dict[str, Any] = {"axis": -1} if kind == "Softmax" else {}
        scores = b.node(kind, [logits], router + ".scores", **attributes)
        choice = scores
        if moe.correction:
            choice = b.node("Add", [scores, b.floats(moe.correction)], router + ".corrected")
        if moe.num_groups > 1 and moe.top_groups < moe.num_groups:
            choice = _best_groups(m, choice, moe)
        chosen, indices = _top_k(m, choice, moe.num_experts_per_tok, router)
        if moe.correction:
            chosen = b.node("GatherElements", [scores, indices], router + ".chosen", axis=1)
        chosen = _normalized(m, chosen, moe)
    zeros = b.node("Mul", [logits, b.real(0.0)], router + ".zeros")
    gates = b.node("ScatterElements", [zeros, indices, chosen], router + ".gates", axis=1)
    if moe.num_identities:
        parts = [router + ".of_experts", router + ".of_identities"]
        b.node("Split", [gates, b.ints(moe.num_experts, moe.num_identities)], parts, axis=1)
        b.node("ReduceSum", [parts[1], b.ints(1)], router + ".given_back", keepdims=1)
        gates = parts[0]
    return gates, factor


def _top_k(m: Matrices, x: str, k: int, name: str) -> tuple[str, str]:
    outputs = [name + ".top", name + ".top.indices"]
    m.b.node("TopK", [x, m.b.ints(k)], outputs, axis=-1)
    return outputs[0], outputs[1]


def _normalized(m: Matrices, chosen: str, moe: Mixture) -> str:
    b, router = m.b, moe.router
    if moe.normalize:
        total = b.node("ReduceSum", [chosen, b.ints(-1)], router + ".total", keepdims=1)
        if moe.normalize_epsilon:
            kind = "Max" if moe.normalize_clamp else "Add"
            total = b.node(kind, [total, b.real(moe.normalize_epsilon)], router + ".divisor")
        chosen = b.node("Div", [chosen, total], router + ".normalized")
    return m.scaled(chosen, moe.scaling)


def _best_groups(m: Matrices, choice: str, moe: Mixture) -> str:
    """``choice`` [T, E] with the experts of all but the best groups set to 0."""
    b, router = m.b, moe.router + ".groups"
    size = moe.num_experts // moe.num_groups
    grouped = b.node("Reshape", [choice, b.ints(-1, moe.num_groups, size)], router)
    if moe.group_score == "max":
        rating = b.node("ReduceMax", [grouped, b.ints(-1)], router + ".rating", keepdims=0)
    else:
        best, _ = _top_k(m, grouped, 2, router + ".best")
        rating = b.node("ReduceSum", [best, b.ints(-1)], router + ".rating", keepdims=0)
    values, indices = _top_k(m, rating, moe.top_groups, router)
    zeros = b.node("Mul", [rating, b.real(0.0)], router + ".zeros")
    nothing = b.node("Mul", [values, b.real(0.0)], router + ".nothing")
    ones = b.node("Add", [nothing, b.real(1.0)], router + ".ones")
    mask = b.node("ScatterElements", [zeros, indices, ones], router + ".mask", axis=1)
    mask = b.node("Unsqueeze", [mask, b.ints(-1)], router + ".mask.column")
    kept = b.node("Mul", [grouped, mask], router + ".kept")
    return b.node("Reshape", [kept, b.ints(-1, moe.num_experts)], router + ".choice")


def _sparse_mixer(m: Matrices, logits: str, values: str, indices: str, moe: Mixture) -> str:
    """Gates of the best two experts (arXiv 2409.12136): each is a softmax over the logits within a
    relative distance of it, the second without the first."""
    b, router = m.b, moe.router
    size = b.node("Abs", [logits], router + ".size")
    experts = b.value(f"experts_{moe.num_experts}", np.arange(moe.num_experts)[None])
    first = b.node("Slice", [indices, b.ints(0), b.ints(1), b.ints(1)], router + ".first")
    others = b.node("Not", [b.node("Equal", [experts, first], router + ".taken")],
                    router + ".others")  # fmt: skip
    gates = []
    for rank in range(2):
        name = f"{router}.mixer{rank}"
        best = b.node("Slice", [values, b.ints(rank), b.ints(rank + 1), b.ints(1)], name + ".best")
        scale = b.node("Max", [size, best], name + ".scale")
        distance = b.node("Sub", [best, logits], name + ".distance")
        distance = b.node("Div", [distance, scale], name + ".relative")
        near = b.node("LessOrEqual", [distance, b.real(2 * moe.jitter)], name + ".near")
        if rank:
            near = b.node("And", [near, others], name + ".left")
        terms = b.node("Exp", [b.node("Sub", [logits, best], name + ".shifted")], name + ".exp")
        terms = b.node("Where", [near, terms, b.real(0.0)], name + ".terms")
        total = b.node("ReduceSum", [terms, b.ints(-1)], name + ".total", keepdims=1)
        gates.append(b.node("Reciprocal", [total], name))
    return b.node("Concat", gates, router + ".mixed", axis=1)
