"""Short convolutions of the ONNX graph as ONNX Runtime's ``CausalConvWithState``.

ONNX Runtime GenAI passes the state [B, H, length - 1] along beside the cache. The operator's own
new state holds the last columns; prompts of a batch are padded at the end, so the last tokens of
each row are gathered here instead.
"""

from __future__ import annotations

from edgekit.architecture import ShortConv
from edgekit.runtimes.onnx_attention import Positions
from edgekit.runtimes.onnx_nodes import MICROSOFT


def state_names(layer: int) -> tuple[str, str]:
    """Input and output of a layer's state."""
    return f"past_conv.{layer}", f"present_conv.{layer}"


def short_conv(p: Positions, x: str, s: ShortConv, layer: int, prefix: str) -> str:
    """The gated short convolution of x [B, T, H]."""
    m, b = p.m, p.m.b
    past, present = state_names(layer)
    parts = [prefix + name for name in ("b", "c", "x")]
    b.node("Split", [m.linear(x, s.input), b.ints(s.size, s.size, s.size)], parts, axis=-1)
    product = b.node("Mul", [parts[0], parts[2]], prefix + "bx")
    first = b.node("Transpose", [product], prefix + "bx.first", perm=[0, 2, 1])
    kernel = b.floats(s.kernel + ".weight")
    turned = b.node("Transpose", [kernel], kernel + ".turned", perm=[1, 0])
    turned = b.node("Unsqueeze", [turned, b.ints(1)], kernel + ".kernel")
    bias = b.floats(s.kernel + ".bias") if s.bias else ""
    y = b.node(
        "CausalConvWithState", [first, turned, bias, past], [prefix + "conv", prefix + "conv.last"],
        MICROSOFT, activation="none", ndim=1,
    )  # fmt: skip
    seen = b.node("Concat", [past, first], prefix + "conv.seen", axis=2)
    columns = b.node("Expand", [_last(p, s), _state_shape(p, s)], prefix + "conv.columns")
    b.node("GatherElements", [seen, columns], present, axis=2)
    y = b.node("Transpose", [y], prefix + "conv.back", perm=[0, 2, 1])
    y = b.node("Mul", [parts[1], y], prefix + "conv.gated")
    return m.linear(y, s.output)


def _last(p: Positions, s: ShortConv) -> str:
    """Columns of the state and the given tokens that are the next state [B, 1, length - 1]."""
    b, name = p.m.b, f"conv_columns_{s.length}"
    if not b.has(name):
        p.current()  # makes "given"
        padded = b.node("Sub", ["total", "lengths"], name + ".padded")
        whole = b.node("Sub", ["given", padded], name + ".prompt")
        # a step after a padded prompt gives one token, whatever the mask says of the prompt
        count = b.node("Max", [whole, "one"], name + ".count")
        column = b.node("Unsqueeze", [count, b.ints(1, 2)], name + ".first")
        steps = b.ints(*range(s.length - 1))
        b.node("Add", [column, steps], name)
    return name


def _state_shape(p: Positions, s: ShortConv) -> str:
    b, name = p.m.b, f"conv_shape_{s.length}"
    if not b.has(name):
        batch = b.node("Shape", ["input_ids"], name + ".batch", start=0, end=1)
        b.node("Concat", [batch, b.ints(s.size, s.length - 1)], name, axis=0)
    return name
