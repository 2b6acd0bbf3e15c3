"""Attention heads as experts in the ONNX graph (JetMoE, arXiv 2404.07413).

As in the OpenVINO graph the queries of all experts are computed and the chosen gathered, and the
output projection sees zeros in the place of the others.
"""

from __future__ import annotations

import numpy as np

from edgekit.architecture import Attention, HeadExperts
from edgekit.runtimes.onnx_matrices import Matrices


def expert_queries(m: Matrices, x: str, a: Attention, e: HeadExperts) -> tuple[str, str]:
    """Queries of the chosen experts [B, T, heads * D] and gates of their slots [B, T, k, E]."""
    b, name = m.b, e.router
    wide = a.num_key_value_heads * a.head_dim
    logits = m.linear(x, name)
    values, indices = name + ".top", name + ".top.indices"
    b.node("TopK", [logits, b.ints(e.top_k)], [values, indices], axis=-1)
    every = b.node("Reshape", [m.linear(x, a.q), b.ints(0, 0, e.num_experts, wide)], name + ".all")
    column = b.node("Unsqueeze", [indices, b.ints(-1)], name + ".column")
    chosen = b.node("GatherND", [every, column], name + ".chosen", batch_dims=2)
    split = b.ints(0, 0, e.top_k, a.num_key_value_heads, a.head_dim)
    chosen = b.node("Reshape", [chosen, split], name + ".split")
    chosen = b.node("Transpose", [chosen], name + ".by_key", perm=[0, 1, 3, 2, 4])
    flat = b.ints(0, 0, a.num_heads * a.head_dim)
    queries = b.node("Reshape", [chosen, flat], name + ".queries")
    experts = b.value(f"experts_{e.num_experts}", np.arange(e.num_experts)[None])
    slots = b.node("Equal", [column, experts], name + ".equal")
    gates = b.node("Softmax", [values], name + ".softmax", axis=-1)
    gates = b.node("Unsqueeze", [gates, b.ints(-1)], name + ".gate_column")
    return queries, b.node("Where", [slots, gates, b.real(0.0)], name + ".gates")


def expert_outputs(m: Matrices, y: str, gates: str, a: Attention, e: HeadExperts) -> str:
    """The gated sum of the chosen experts' outputs; y [B, T, heads * D]."""
    b, name = m.b, e.router
    wide = a.num_key_value_heads * a.head_dim
    split = b.ints(0, 0, a.num_key_value_heads, e.top_k, a.head_dim)
    y = b.node("Reshape", [y, split], name + ".attended")
    y = b.node("Transpose", [y], name + ".by_slot", perm=[0, 1, 3, 2, 4])
    y = b.node("Reshape", [y, b.ints(0, 0, e.top_k, wide)], name + ".slots")
    places = b.node("Transpose", [gates], name + ".places", perm=[0, 1, 3, 2])
    placed = b.node("MatMul", [places, y], name + ".placed")
    placed = b.node("Reshape", [placed, b.ints(0, 0, e.num_experts * wide)], name + ".flat")
    return m.linear(placed, a.o)
