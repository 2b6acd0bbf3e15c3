"""Sparse layers of the OpenVINO graph, in the form that OpenVINO fuses into GatherMatmul.

Tokens are tiled over experts, every expert is a batched MatMul, and the gates are scattered to
zeros for experts that were not chosen; the fusion computes the chosen only.
"""

from __future__ import annotations

from openvino import opset13 as op

from edgekit.architecture import Mixture
from edgekit.runtimes.openvino_constants import Node
from edgekit.runtimes.openvino_ops import F32, Blocks


def mixture(b: Blocks, x: Node, m: Mixture, before: Node | None = None) -> Node:
    """The mixture of experts applied to x [B, T, H]; a router with a norm reads ``before``."""
    count, hidden = m.num_experts, b.architecture.hidden_size
    shape = op.shape_of(x, "i64")
    flat = op.reshape(x, b.ints(-1, hidden), False)
    routed = flat
    if m.router_norm and before is not None:
        routed = _normed_for_router(b, op.reshape(before, b.ints(-1, hidden), False), m)
    if m.num_identities:
        chosen, indices, given_back = _route_with_identities(b, routed, m)
        factor = None
    else:
        chosen, indices, factor = _route(b, routed, m)
    if m.expert_scale:
        scales = b.pool.floats(m.expert_scale)
        chosen = op.multiply(chosen, op.gather(scales, indices, b.scalar(0)))
    given = flat if factor is None else op.multiply(flat, factor)
    tiled = op.tile(given, b.ints(count, 1))
    tiled = op.reshape(tiled, b.ints(count, -1, hidden), False)
    if m.joined:
        both = _product(b, tiled, m, "gate_up")
        gate, up = _every_second(b, both, 0), _every_second(b, both, 1)
    else:
        gate, up = _product(b, tiled, m, "gate"), _product(b, tiled, m, "up")
    y = b.gated(gate, up, m.activation)
    y = op.reshape(_product(b, y, m, "down"), b.ints(count, -1, hidden), False)
    gates = op.reshape(_scattered(b, flat, chosen, indices, m), b.ints(count, -1), False)
    weighted = op.multiply(y, op.unsqueeze(gates, b.scalar(-1)))
    y = op.reshape(op.reduce_sum(weighted, b.ints(0), False), shape, False)
    if m.num_identities:
        y = op.add(y, op.reshape(op.multiply(flat, given_back), shape, False))
    if m.output_bias:
        y = op.add(y, b.pool.floats(m.output_bias, (1, 1, hidden)))
    if m.shared is None:
        return y
    shared = b.feed_forward(x, m.shared)
    if m.shared_gate:
        gate = b.pool.floats(m.shared_gate + ".weight")
        shared = op.multiply(shared, op.sigmoid(op.matmul(x, gate, False, True)))
    return op.add(y, shared)


def _normed_for_router(b: Blocks, x: Node, m: Mixture) -> Node:
    hidden = b.architecture.hidden_size
    x = op.multiply(b.norm(x, m.router_norm, rank=2), b.pool.floats(m.router_scale, (1, hidden)))
    return b.scaled(x, hidden**-0.5)


def _product(b: Blocks, x: Node, m: Mixture, projection: str) -> Node:
    y = op.matmul(x, b.experts(m, projection), False, True)
    return op.add(y, b.expert_biases(m, projection)) if m.expert_bias else y


def _every_second(b: Blocks, x: Node, start: int) -> Node:
    """Columns of x [E, T, N] from ``start`` on; halves side by side would not fuse."""
    return op.slice(x, b.ints(start), b.ints(2**63 - 1), b.ints(2), b.ints(2))


def _scattered(b: Blocks, flat: Node, chosen: Node, indices: Node, m: Mixture) -> Node:
    """Gate of every expert for every token [E, T]; zero for experts that are not chosen."""
    tokens = op.gather(op.shape_of(flat, "i64"), b.ints(0), b.scalar(0))
    zeros = op.broadcast(b.scalar(0.0, F32), op.concat([tokens, b.ints(m.num_experts)], 0))
    scattered = op.scatter_elements_update(zeros, indices, chosen, b.scalar(1))
    return op.transpose(scattered, b.ints(1, 0))


def _route(b: Blocks, flat: Node, m: Mixture) -> tuple[Node, Node, Node | None]:
    """Gates [T, k] and experts [T, k]; the third multiplies the experts' input, if anything."""
    logits = op.matmul(flat, b.pool.floats(m.router + ".weight"), False, True)
    if m.router_bias:
        logits = op.add(logits, b.pool.floats(m.router + ".bias", (1, m.num_experts)))
    if m.scoring in ("softmax_top_k", "sigmoid_input", "sparsemixer"):
        top = _top_k(b, logits, m.num_experts_per_tok)
        values, indices = top.output(0), top.output(1)
        if m.scoring == "softmax_top_k":
            return op.softmax(values, -1), indices, None
        if m.scoring == "sparsemixer":
            return _sparse_mixer(b, logits, values, indices, m), indices, None
        ones = op.divide(values, values)
        return ones, indices, op.sigmoid(values)
    scores = op.softmax(logits, -1) if m.scoring == "softmax" else op.sigmoid(logits)
    choice = scores
    if m.correction:
        choice = op.add(scores, b.pool.floats(m.correction, (1, m.num_experts)))
    if m.num_groups > 1 and m.top_groups < m.num_groups:
        choice = _best_groups(b, choice, m)
    top = _top_k(b, choice, m.num_experts_per_tok)
    indices = top.output(1)
    chosen = op.gather_elements(scores, indices, 1) if m.correction else top.output(0)
    return _normalized(b, chosen, m), indices, None


def _route_with_identities(b: Blocks, flat: Node, m: Mixture) -> tuple[Node, Node, Node]:
    """Gates [T, k], experts [T, k], and the gate [T, 1] of experts that give their input back.

    The best k of the experts alone begin with those among the best k of all, in the same order; the
    others get the gate 0. So the sparse operation sees k different experts, and only such.
    """
    logits = op.matmul(flat, b.pool.floats(m.router + ".weight"), False, True)
    scores = op.softmax(logits, -1)
    choice = scores
    if m.correction:
        count = m.num_experts + m.num_identities
        choice = op.add(scores, b.pool.floats(m.correction, (1, count)))
    best = _top_k(b, choice, m.num_experts_per_tok).output(1)
    real = op.less(best, b.scalar(m.num_experts))
    gates = b.scaled(op.gather_elements(scores, best, 1), m.scaling)
    given_back = op.reduce_sum(op.select(real, b.real(0.0), gates), b.ints(1), True)
    how_many = op.reduce_sum(op.convert(real, "i64"), b.ints(1), True)
    experts = op.slice(choice, b.ints(0), b.ints(m.num_experts), b.ints(1), b.ints(1))
    indices = _top_k(b, experts, m.num_experts_per_tok).output(1)
    ranks = b.pool.value([list(range(m.num_experts_per_tok))], "int64")
    chosen = op.select(
        op.less(ranks, how_many), op.gather_elements(scores, indices, 1), b.real(0.0)
    )
    return b.scaled(chosen, m.scaling), indices, given_back


def _top_k(b: Blocks, x: Node, k: int) -> Node:
    return op.topk(x, b.scalar(k), -1, "max", "value", "i64")


def _normalized(b: Blocks, chosen: Node, m: Mixture) -> Node:
    if m.normalize:
        total = op.reduce_sum(chosen, b.ints(-1), True)
        if m.normalize_clamp:
            total = op.maximum(total, b.real(m.normalize_epsilon))
        elif m.normalize_epsilon:
            total = op.add(total, b.real(m.normalize_epsilon))
        chosen = op.divide(chosen, total)
    return b.scaled(chosen, m.scaling)


def _best_groups(b: Blocks, choice: Node, m: Mixture) -> Node:
    """``choice`` [T, E] with the experts of all but the best groups set to 0."""
    size = m.num_experts // m.num_groups
    grouped = op.reshape(choice, b.ints(-1, m.num_groups, size), False)
    if m.group_score == "max":
        rating = op.reduce_max(grouped, b.ints(-1), False)
    else:
        rating = op.reduce_sum(_top_k(b, grouped, 2).output(0), b.ints(-1), False)
    top = _top_k(b, rating, m.top_groups)
    zeros = op.multiply(rating, b.real(0.0))
    ones = op.broadcast(b.scalar(1.0, F32), op.shape_of(top.output(1), "i64"))
    mask = op.scatter_elements_update(zeros, top.output(1), ones, b.scalar(1))
    kept = op.multiply(grouped, op.unsqueeze(mask, b.scalar(-1)))
    return op.reshape(kept, b.ints(-1, m.num_experts), False)


def _sparse_mixer(b: Blocks, logits: Node, values: Node, indices: Node, m: Mixture) -> Node:
    """Gates of the best two experts (arXiv 2409.12136): each is a softmax over the logits within a
    relative distance of it, the second without the first."""
    gates = []
    taken = None
    for rank in range(2):
        best = op.slice(values, b.ints(rank), b.ints(rank + 1), b.ints(1), b.ints(1))
        scale = op.maximum(op.abs(logits), best)
        distance = op.divide(op.subtract(best, logits), scale)
        near = op.less_equal(distance, b.real(2 * m.jitter))
        if taken is not None:
            near = op.logical_and(near, op.logical_not(taken))
        terms = op.exp(op.subtract(logits, best))
        terms = op.select(near, terms, b.real(0.0))
        gates.append(op.divide(b.real(1.0), op.reduce_sum(terms, b.ints(-1), True)))
        first = op.slice(indices, b.ints(0), b.ints(1), b.ints(1), b.ints(1))
        taken = op.equal(b.pool.value([list(range(m.num_experts))], "int64"), first)
    return op.concat(gates, 1)
