"""Short convolutions of the OpenVINO graph, with the last products of each layer as its state."""

from __future__ import annotations

from openvino import opset6 as op6
from openvino import opset13 as op
from openvino.op.util import Variable

from edgekit.architecture import ShortConv
from edgekit.runtimes.openvino_attention import END, Context, new_variable
from edgekit.runtimes.openvino_constants import Node
from edgekit.runtimes.openvino_ops import F32


def short_conv(c: Context, x: Node, s: ShortConv, layer: int) -> Node:
    """The gated short convolution of x [B, T, H]; padding gives nothing to later tokens."""
    b = c.blocks
    projected = b.linear(op.multiply(x, c.given()), s.input)
    parts = op.variadic_split(projected, b.scalar(2), b.ints(s.size, s.size, s.size))
    product = op.multiply(parts.output(0), parts.output(2))
    y = op.multiply(parts.output(1), convolved(c, product, s.kernel, s.size, s.length, layer))
    return b.linear(y, s.output)


def convolved(c: Context, x: Node, kernel: str, size: int, length: int, layer: int) -> Node:
    """Each channel of x [B, T, size] over the current token and the ``length - 1`` before it.

    A sum of shifted products: with the state in front, the tokens at distance ``d`` from the
    current ones are the same columns for any number of tokens.
    """
    b, past = c.blocks, length - 1
    name = f"cache_params.past.conv.{layer}cache_params.present.conv.{layer}"
    variable = new_variable(name, [-1, past, size])
    seen = op.concat([state(c, variable, [past, size]), x], 1)
    weights = b.pool.floats(kernel + ".weight", (length, 1, 1, size))
    y = None
    for row in range(length):
        stop = row - past if row < past else END
        tokens = op.slice(seen, b.ints(row), b.ints(stop), b.ints(1), b.ints(1))
        product = op.multiply(tokens, op.gather(weights, b.scalar(row), b.scalar(0)))
        y = product if y is None else op.add(y, product)
    if kernel + ".bias" in b.specs:
        y = op.add(y, b.pool.floats(kernel + ".bias", (1, 1, size)))
    last = op.slice(seen, b.ints(-past), b.ints(END), b.ints(1), b.ints(1))
    c.sinks.append(op6.assign(last, variable))
    return y


def state(c: Context, variable: Variable, sizes: list[int]) -> Node:
    """What a layer remembers of the beams that go on [B, *sizes]; zeros at first."""
    b = c.blocks
    empty = op.broadcast(b.scalar(0.0, F32), op.concat([c.batch, b.ints(*sizes)], 0))
    return op.gather(op6.read_value(empty, variable), c.beam, b.scalar(0))
