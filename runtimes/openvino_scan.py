"""Selective state spaces of the OpenVINO graph: a Loop over chunks of the prompt.

Inside a chunk the recurrence is a masked product of all its tokens, as attention is, and only the
state goes from chunk to chunk (Mamba-2, arXiv 2405.21060, section 6). A step of one token is a
chunk of one. OpenVINO 2026.4 has an operation for the recurrence but makes it only on its way to
paged attention, from a Loop over tokens that keeps [T, heads, head_dim, state_size].
"""

from __future__ import annotations

import openvino as ov
from openvino import opset6 as op6
from openvino import opset13 as op

from edgekit.architecture import SelectiveScan
from edgekit.runtimes.openvino_attention import END, Context, new_variable
from edgekit.runtimes.openvino_constants import Node
from edgekit.runtimes.openvino_conv import convolved, state
from edgekit.runtimes.openvino_ops import Blocks

UNBOUNDED = (0.0, float("inf"))
CHUNK = 64  # tokens
NEVER = -1e30  # an exponent that gives 0


def selective_scan(c: Context, x: Node, s: SelectiveScan, layer: int) -> Node:
    """The selective state space of x [B, T, H]; padding leaves the state at 0."""
    b, given = c.blocks, c.given()
    x = op.multiply(x, given)
    mixed = convolved(c, b.linear(x, s.x), s.kernel, s.conv_size, s.length, layer)
    mixed = op.multiply(b.activation(mixed, "silu"), given)
    sizes = b.ints(s.size, s.group_size, s.group_size)
    parts = op.variadic_split(mixed, b.scalar(2), sizes)
    values = b.heads_first(b.heads(parts.output(0), s.num_heads, s.head_dim))
    keys, queries = (_spread(b, parts.output(i), s) for i in (1, 2))
    y = _recurrence(c, (_steps(b, x, s), keys, values, queries), s, layer)
    skip = b.pool.floats(s.skip, (1, s.num_heads, 1, 1))
    y = b.heads_first(op.add(y, op.multiply(values, skip)))
    y = op.reshape(y, b.ints(0, 0, s.size), True)
    y = op.multiply(y, b.activation(b.linear(x, s.z), "silu"))
    return b.linear(b.norm(y, s.norm), s.output)


def _steps(b: Blocks, x: Node, s: SelectiveScan) -> Node:
    """dt [B, heads, T, 1]."""
    bias = b.pool.floats(s.decay_bias, (1, 1, s.num_heads))
    steps = op.softplus(op.add(b.linear(x, s.dt), bias))
    if s.step_limits != UNBOUNDED:
        steps = op.clamp(steps, *s.step_limits)
    return op.unsqueeze(op.transpose(steps, b.ints(0, 2, 1)), b.scalar(-1))


def _spread(b: Blocks, x: Node, s: SelectiveScan) -> Node:
    """[B, T, groups * N] to [B, heads, T, N]: one for each head that a group serves."""
    x = b.heads_first(b.heads(x, s.groups, s.state_size))
    x = op.tile(op.unsqueeze(x, b.scalar(2)), b.ints(1, 1, s.num_heads // s.groups, 1, 1))
    return op.reshape(x, b.ints(0, s.num_heads, -1, s.state_size), True)


def _recurrence(c: Context, inputs: tuple[Node, ...], s: SelectiveScan, layer: int) -> Node:
    """What the state tells each token [B, heads, T, head_dim]."""
    b = c.blocks
    steps, keys, values, queries = inputs
    decay = op.multiply(op.exp(b.pool.floats(s.decay, (1, s.num_heads, 1, 1))), b.real(-1.0))
    whole = [op.multiply(decay, steps), op.multiply(values, steps), keys, queries]
    shape = [s.num_heads, s.head_dim, s.state_size]
    name = f"cache_params.past.ssm.{layer}cache_params.present.ssm.{layer}"
    variable = new_variable(name, [-1, *shape])
    told, after = _over_chunks(b, whole, state(c, variable, shape))
    # Assign takes nodes only, not one of several outputs; this conversion is removed
    c.sinks.append(op6.assign(op.convert(after, "f32"), variable))
    return told


def _over_chunks(b: Blocks, whole: list[Node], before: Node) -> tuple[Node, Node]:
    """The output and the last state; ``whole`` is (log decay, x dt, B, C), all heads first."""
    sizes = op.shape_of(whole[1], "i64")
    length = op.gather(sizes, b.scalar(2), b.scalar(0))
    chunks = op.divide(op.add(length, b.scalar(CHUNK - 1)), b.scalar(CHUNK))
    step = op.parameter([], ov.Type.i64, "step")
    end = op.parameter([], ov.Type.i64, "length")
    given = [op.parameter([-1, -1, -1, -1], ov.Type.f32, name) for name in ("a", "x", "b", "c")]
    known, so_far = (op.parameter([-1, -1, -1, -1], ov.Type.f32, n) for n in ("known", "so_far"))
    start = op.multiply(step, b.scalar(CHUNK))
    stop = op.minimum(op.add(start, b.scalar(CHUNK)), end)
    places = op.range(start, stop, b.scalar(1), "i64")
    bounds = op.unsqueeze(start, b.scalar(0)), op.unsqueeze(stop, b.scalar(0))
    parts = [op.slice(p, *bounds, b.ints(1), b.ints(2)) for p in given]
    told, new = _chunk(b, parts, places, known)
    output = op.scatter_update(so_far, places, told, b.scalar(2))
    results = [b.pool.value([True], bool), new, output]
    loop = op.loop(chunks, b.pool.value(True, bool))
    loop.set_function(ov.Model(results, [step, end, *given, known, so_far], "chunk"))
    for parameter, value in zip([end, *given], [length, *whole], strict=True):
        loop.set_invariant_input(parameter, value.output(0))
    loop.set_merged_input(known, before.output(0), new.output(0))
    empty = op.broadcast(b.real(0.0), sizes)
    loop.set_merged_input(so_far, empty.output(0), output.output(0))
    loop.set_special_body_ports([0, 0])
    return loop.get_iter_value(output.output(0), -1), loop.get_iter_value(new.output(0), -1)


def _chunk(b: Blocks, parts: list[Node], places: Node, known: Node) -> tuple[Node, Node]:
    """Output [B, heads, q, head_dim] of a chunk of q tokens, and the state after it."""
    log_decay, values, keys, queries = parts
    total = op.cum_sum(log_decay, b.scalar(2))  # [B, heads, q, 1]
    row = op.transpose(total, b.ints(0, 1, 3, 2))
    earlier = op.greater_equal(op.unsqueeze(places, b.scalar(1)), op.unsqueeze(places, b.scalar(0)))
    fading = op.exp(op.select(earlier, op.subtract(total, row), b.real(NEVER)))
    within = op.matmul(op.multiply(op.matmul(queries, keys, False, True), fading), values,
                       False, False)  # fmt: skip
    carried = op.multiply(op.matmul(queries, known, False, True), op.exp(total))
    last = op.slice(total, b.ints(-1), b.ints(END), b.ints(1), b.ints(2))
    left = op.multiply(values, op.exp(op.subtract(last, total)))
    new = op.add(op.multiply(known, op.exp(last)), op.matmul(left, keys, True, False))
    return op.add(within, carried), new
