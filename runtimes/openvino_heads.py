"""Attention heads as experts in the OpenVINO graph (JetMoE, arXiv 2404.07413).

No fusion picks single experts of a projection, so the queries of all experts are computed and the
chosen gathered, and the output projection sees zeros in the place of the others: right, and as much
work as a dense attention with all heads.
"""

from __future__ import annotations

from openvino import opset13 as op

from edgekit.architecture import Attention, HeadExperts
from edgekit.runtimes.openvino_constants import Node
from edgekit.runtimes.openvino_ops import F32, Blocks


def expert_queries(b: Blocks, x: Node, a: Attention, e: HeadExperts) -> tuple[Node, Node]:
    """Queries of the chosen experts [B, T, heads, D] and gates of their slots [B, T, k, E].

    Every expert has one query for each key head, so those of a key head are brought together.
    """
    wide = a.num_key_value_heads * a.head_dim
    logits = op.matmul(x, b.pool.floats(e.router + ".weight"), False, True)
    top = op.topk(logits, b.scalar(e.top_k), -1, "max", "value", "i64")
    every = op.reshape(b.linear(x, a.q), b.ints(0, 0, e.num_experts, wide), True)
    chosen = op.gather(every, top.output(1), b.scalar(2), 2)
    chosen = op.reshape(chosen, b.ints(0, 0, e.top_k, a.num_key_value_heads, a.head_dim), True)
    queries = op.reshape(
        op.transpose(chosen, b.ints(0, 1, 3, 2, 4)), b.ints(0, 0, a.num_heads, a.head_dim), True
    )
    slots = op.one_hot(
        top.output(1), b.scalar(e.num_experts), b.scalar(1.0, F32), b.scalar(0.0, F32), -1
    )
    gates = op.unsqueeze(op.softmax(top.output(0), -1), b.scalar(-1))
    return queries, op.multiply(slots, gates)


def expert_outputs(b: Blocks, y: Node, gates: Node, a: Attention, e: HeadExperts) -> Node:
    """The gated sum of the chosen experts' outputs; y [B, T, heads, D]."""
    wide = a.num_key_value_heads * a.head_dim
    y = op.reshape(y, b.ints(0, 0, a.num_key_value_heads, e.top_k, a.head_dim), True)
    y = op.reshape(op.transpose(y, b.ints(0, 1, 3, 2, 4)), b.ints(0, 0, e.top_k, wide), True)
    placed = op.matmul(gates, y, True, False)  # [B, T, E, wide]
    placed = op.reshape(placed, b.ints(0, 0, e.num_experts * wide), True)
    return b.linear(placed, a.o)
