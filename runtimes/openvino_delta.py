"""Gated delta rules of the OpenVINO graph: a Loop over tokens that OpenVINO fuses into one step.

The fusion (``GatedDeltaNet``) looks for this very order: unit queries and keys [B, T, heads, D]
turned to heads first, queries divided by the root of their own shape's last side, and a body that
fades, learns and tells. A runtime without it runs the Loop, which is right and slow.
"""

from __future__ import annotations

import openvino as ov
from openvino import opset6 as op6
from openvino import opset13 as op

from edgekit.architecture import GatedDelta
from edgekit.runtimes.openvino_attention import Context, new_variable
from edgekit.runtimes.openvino_constants import Node
from edgekit.runtimes.openvino_conv import convolved, state
from edgekit.runtimes.openvino_ops import Blocks

EPSILON = 1e-6  # of the unit queries and keys
I32 = "int32"


def gated_delta(c: Context, x: Node, d: GatedDelta, layer: int) -> Node:
    """The gated delta rule of x [B, T, H]; padding leaves the state as it is."""
    b = c.blocks
    x = op.multiply(x, c.given())
    joined = op.concat([b.linear(x, module) for module in (d.q, d.k, d.v)], -1)
    mixed = convolved(c, joined, d.kernel, d.conv_size, d.length, layer)
    mixed = b.activation(mixed, "silu")
    sizes = b.ints(d.key_size, d.key_size, d.value_size)
    parts = op.variadic_split(mixed, b.scalar(2), sizes)
    q, k = (_unit(b, _spread(b, parts.output(i), d)) for i in (0, 1))
    v = b.heads(parts.output(2), d.num_value_heads, d.value_dim)
    heads = (1, 1, d.num_value_heads)
    decay = op.exp(b.pool.floats(d.decay, heads))
    step = op.softplus(op.add(b.linear(x, d.a), b.pool.floats(d.decay_bias, heads)))
    g = op.multiply(op.multiply(decay, b.real(-1.0)), step)
    y = _recurrence(c, (q, k, v, g, op.sigmoid(b.linear(x, d.b))), d, layer)
    z = b.heads(b.linear(x, d.z), d.num_value_heads, d.value_dim)
    y = op.multiply(b.norm(y, d.norm, rank=4), b.activation(z, "silu"))
    return b.linear(op.reshape(y, b.ints(0, 0, d.value_size), True), d.output)


def _spread(b: Blocks, x: Node, d: GatedDelta) -> Node:
    """[B, T, key_size] to [B, T, value heads, key_dim]: a key head for each that it serves."""
    repeats = d.num_value_heads // d.num_key_heads
    x = b.heads(x, d.num_key_heads, d.key_dim)
    if repeats == 1:
        return x
    x = op.tile(op.unsqueeze(x, b.scalar(3)), b.ints(1, 1, 1, repeats, 1))
    return op.reshape(x, b.ints(0, 0, d.num_value_heads, d.key_dim), True)


def _unit(b: Blocks, x: Node) -> Node:
    length = op.reduce_sum(op.multiply(x, x), b.ints(-1), True)
    length = op.sqrt(op.add(length, b.real(EPSILON)))
    return op.multiply(x, op.divide(b.real(1.0), length))


def _recurrence(c: Context, inputs: tuple[Node, ...], d: GatedDelta, layer: int) -> Node:
    """What the state tells each token [B, T, heads, value_dim]."""
    b = c.blocks
    shape = [d.num_value_heads, d.key_dim, d.value_dim]
    name = f"cache_params.past.recurrent.{layer}cache_params.present.recurrent.{layer}"
    variable = new_variable(name, [-1, *shape])
    q, k, v = (b.heads_first(x) for x in inputs[:3])
    g, beta = (op.transpose(x, b.ints(0, 2, 1)) for x in inputs[3:])
    key_dim = op.gather(op.shape_of(q, "i64"), b.scalar(3), b.scalar(0))
    q = op.divide(q, op.power(op.convert(key_dim, "f32"), b.real(0.5)))
    told, after = _loop(b, (q, k, v, g, beta), state(c, variable, shape))
    # Assign takes nodes only, not one of several outputs; this conversion is removed
    c.sinks.append(op6.assign(op.convert(after, "f32"), variable))
    return b.heads_first(told)


def _loop(b: Blocks, sliced: tuple[Node, ...], before: Node) -> tuple[Node, Node]:
    """Output [B, heads, T, value_dim] and the last state, one token after another."""
    values = sliced[2]
    sizes = op.shape_of(values, "i64")
    length = op.gather(sizes, b.scalar(2), b.scalar(0))
    told = op.broadcast(b.real(0.0), sizes)
    body, parameters, results = _body(b)
    loop = op.loop(op.convert(length, "i32"), b.pool.value(True, bool))
    loop.set_function(body)
    for parameter, whole in zip(parameters[1:6], sliced, strict=True):
        loop.set_sliced_input(parameter, whole.output(0), 0, 1, 1, -1, 2)
    loop.set_merged_input(parameters[6], before.output(0), results[1].output(0))
    loop.set_merged_input(parameters[7], told.output(0), results[2].output(0))
    loop.set_special_body_ports([0, 0])
    out = loop.get_iter_value(results[2].output(0), -1)
    after = loop.get_iter_value(results[1].output(0), -1)
    return out, after


def _body(b: Blocks) -> tuple[ov.Model, list[Node], list[Node]]:
    """One token: its parameters, and the results (go on, state, output so far)."""
    axis = b.pool.value(2, I32)
    minus_one, minus_two = b.pool.value([-1], I32), b.pool.value([-2], I32)
    step = op.parameter([], ov.Type.i32, "step")
    q, k, v = (op.parameter([-1, -1, 1, -1], ov.Type.f32, name) for name in "qkv")
    g, beta = (op.parameter([-1, -1, 1], ov.Type.f32, name) for name in ("g", "beta"))
    known = op.parameter([-1, -1, -1, -1], ov.Type.f32, "known")
    so_far = op.parameter([-1, -1, -1, -1], ov.Type.f32, "so_far")
    key = op.unsqueeze(op.squeeze(k, axis), minus_one)
    faded = op.multiply(known, op.unsqueeze(op.exp(g), minus_one))
    recalled = op.reduce_sum(op.multiply(faded, key), minus_two, False)
    surprise = op.multiply(op.subtract(op.squeeze(v, axis), recalled), beta)
    learnt = op.add(faded, op.multiply(key, op.unsqueeze(surprise, minus_two)))
    query = op.unsqueeze(op.squeeze(q, axis), minus_one)
    told = op.reduce_sum(op.multiply(learnt, query), minus_two, True)
    place = op.unsqueeze(step, b.pool.value([0], I32))
    output = op.scatter_update(so_far, place, told, axis)
    results = [b.pool.value([True], bool), learnt, output]
    parameters = [step, q, k, v, g, beta, known, so_far]
    return ov.Model(results, parameters, "token"), parameters, results
