"""Write the ONNX graph of an embedding model over the weights file in place.

Inputs ``input_ids`` and ``attention_mask`` [B, T], int64, padded on the right; output ``embedding``
[B, hidden_size], float32, rows of length 1. Attention and the norms after a sum are ONNX Runtime's
own fused operators.
"""

from __future__ import annotations

from pathlib import Path

from edgekit.encoder import POSITIONS, TYPES, WORDS, Encoder, EncoderLayer
from edgekit.encoder_settings import Pooling
from edgekit.mixers import Norm
from edgekit.runtimes.onnx_matrices import Matrices
from edgekit.runtimes.onnx_nodes import MICROSOFT, GraphBuilder, TensorProto, helper
from edgekit.scheme import VARIANT_WEIGHTS, Scheme
from edgekit.variant_files import ONNX_GRAPH

INT8_ACTIVATIONS = 4  # MatMulNBits accuracy_level: int8 dot products, the fast path of the CPU
TINY = 1e-12  # bounds the length of a vector from below


def write_onnx_encoder(
    variant: Path, encoder: Encoder, scheme: Scheme, pooling: Pooling,
    accuracy_level: int = INT8_ACTIVATIONS,
) -> None:  # fmt: skip
    """Write ``model.onnx`` beside the weights file.

    ``accuracy_level`` 1 keeps activations in float32, for comparisons with a reference.

    Raises:
        MissingRuntimeError: the ``onnx`` package is not installed.
    """
    builder = GraphBuilder(variant / VARIANT_WEIGHTS, encoder, VARIANT_WEIGHTS)
    matrices = Matrices(builder, encoder, scheme, accuracy_level)
    (variant / ONNX_GRAPH).write_bytes(_Graph(matrices, encoder).build(pooling))


class _Graph:
    """Assembles the whole model."""

    def __init__(self, matrices: Matrices, encoder: Encoder) -> None:
        self.m = matrices
        self.b = matrices.b
        self.e = encoder

    def build(self, pooling: Pooling) -> bytes:
        """The serialized model."""
        b = self.b
        visible = b.node("Cast", ["attention_mask"], "visible", to=TensorProto.INT32)
        x = self._embedded()
        for layer in self.e.layers:
            x = self._layer(x, layer, visible)
        self._normalized(self._pooled(x, pooling))
        info = helper.make_tensor_value_info
        inputs = [
            info(name, TensorProto.INT64, ["batch", "length"])
            for name in ("input_ids", "attention_mask")
        ]
        shape = ["batch", self.e.hidden_size]
        return b.model(inputs, [info("embedding", TensorProto.FLOAT, shape)])

    def _embedded(self) -> str:
        b, e = self.b, self.e
        x = self.m.embed(f"{WORDS}.weight", "input_ids", "words")
        shape = b.node("Shape", ["input_ids"], "length", start=1)
        stop = b.node("Add", [shape, b.ints(e.position_offset)], "positions.stop")
        start, axis = b.ints(e.position_offset), b.ints(0)
        rows = b.node("Slice", [b.floats(POSITIONS), start, stop, axis], "positions")
        first = b.node("Slice", [b.floats(TYPES), b.ints(0), b.ints(1), axis], "type")
        typed = b.node("Add", [x, first], "typed")
        return self.m.norm(b.node("Add", [typed, rows], "embedded"), e.embedding_norm)

    def _layer(self, x: str, layer: EncoderLayer, visible: str) -> str:
        b, m = self.b, self.m
        q, k, v = (m.linear(x, module) for module in (layer.q, layer.k, layer.v))
        y = b.node(
            "MultiHeadAttention", [q, k, v, "", visible], layer.o + ".input", MICROSOFT,
            num_heads=self.e.num_heads,
        )  # fmt: skip
        x = self._norm(m.linear(y, layer.o), x, layer.attention_norm)
        return self._norm(m.feed_forward(x, layer.feed_forward), x, layer.feed_forward_norm)

    def _norm(self, x: str, y: str, norm: Norm) -> str:
        """The norm of x + y."""
        weight, bias = (self.b.floats(f"{norm.module}.{part}") for part in ("weight", "bias"))
        return self.b.node(
            "SkipLayerNormalization", [x, y, weight, bias], norm.module + ".out", MICROSOFT,
            epsilon=norm.eps,
        )  # fmt: skip

    def _pooled(self, x: str, pooling: Pooling) -> str:
        """One vector [B, H] of x [B, T, H]."""
        b = self.b
        if pooling == "cls":
            return b.node(
                "Squeeze",
                [b.node("Slice", [x, b.ints(0), b.ints(1), b.ints(1)], "first"), b.ints(1)],
                "pooled",
            )
        seen = b.node("Cast", ["attention_mask"], "seen.flat", to=TensorProto.FLOAT)
        seen = b.node("Unsqueeze", [seen, b.ints(2)], "seen")
        shown = b.node("Mul", [x, seen], "shown")
        total = b.node("ReduceSum", [shown, b.ints(1)], "total", keepdims=0)
        count = b.node("ReduceSum", [seen, b.ints(1)], "count", keepdims=0)
        return b.node("Div", [total, count], "pooled")

    def _normalized(self, x: str) -> None:
        b = self.b
        size = b.node("ReduceL2", [x, b.ints(-1)], "size", keepdims=1)
        bounded = b.node("Max", [size, b.real(TINY)], "size.bounded")
        b.node("Div", [x, bounded], "embedding")
