"""Short convolutions of the OpenVINO graph, with the last products of each layer as its state."""

from __future__ import annotations

import openvino as ov
from openvino import opset6 as op6
from openvino import opset13 as op
from openvino.op.util import Variable, VariableInfo

from edgekit.architecture import ShortConv
from edgekit.runtimes.openvino_attention import END, Context
from edgekit.runtimes.openvino_constants import Node
from edgekit.runtimes.openvino_ops import F32


def short_conv(c: Context, x: Node, s: ShortConv, layer: int) -> Node:
    """The gated short convolution of x [B, T, H]; padding gives nothing to later tokens."""
    b = c.blocks
    projected = b.linear(op.multiply(x, c.given()), s.input)
    parts = op.variadic_split(projected, b.scalar(2), b.ints(s.size, s.size, s.size))
    product = op.multiply(parts.output(0), parts.output(2))
    y = op.multiply(parts.output(1), _convolved(c, product, s, layer))
    return b.linear(y, s.output)


def _convolved(c: Context, x: Node, s: ShortConv, layer: int) -> Node:
    """Each channel of x [B, T, H] over the current token and those before it.

    A sum of shifted products: with the state in front, the tokens at distance ``d`` from the
    current ones are the same columns for any number of tokens.
    """
    b, past = c.blocks, s.length - 1
    variable = _variable(s, layer)
    seen = op.concat([_state(c, s, variable), x], 1)
    kernel = b.pool.floats(s.kernel + ".weight", (s.length, 1, 1, s.size))
    y = None
    for row in range(s.length):
        stop = row - past if row < past else END
        tokens = op.slice(seen, b.ints(row), b.ints(stop), b.ints(1), b.ints(1))
        product = op.multiply(tokens, op.gather(kernel, b.scalar(row), b.scalar(0)))
        y = product if y is None else op.add(y, product)
    if s.bias:
        y = op.add(y, b.pool.floats(s.kernel + ".bias", (1, 1, s.size)))
    last = op.slice(seen, b.ints(-past), b.ints(END), b.ints(1), b.ints(1))
    c.sinks.append(op6.assign(last, variable))
    return y


def _state(c: Context, s: ShortConv, variable: Variable) -> Node:
    """The products before the given tokens [B, length - 1, H], of the beams that go on."""
    b = c.blocks
    shape = op.concat([c.batch, b.ints(s.length - 1, s.size)], 0)
    empty = op.broadcast(b.scalar(0.0, F32), shape)
    return op.gather(op6.read_value(empty, variable), c.beam, b.scalar(0))


def _variable(s: ShortConv, layer: int) -> Variable:
    info = VariableInfo()
    info.data_shape = ov.PartialShape([-1, s.length - 1, s.size])
    info.data_type = ov.Type.f32
    info.variable_id = f"cache_params.past.conv.{layer}cache_params.present.conv.{layer}"
    return Variable(info)
