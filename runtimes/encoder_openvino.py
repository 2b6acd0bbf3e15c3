"""Write the OpenVINO IR of an embedding model over the weights file in place.

Inputs ``input_ids`` and ``attention_mask`` [B, T], int64, padded on the right; output ``embedding``
[B, hidden_size], float32, rows of length 1. Batch and length are free.
"""

from __future__ import annotations

from pathlib import Path

import openvino as ov
from openvino import opset13 as op

from edgekit.encoder import POSITIONS, TYPES, WORDS, Encoder, EncoderLayer
from edgekit.encoder_settings import Pooling
from edgekit.runtimes.openvino_constants import ConstantPool, Node
from edgekit.runtimes.openvino_file import write_ir
from edgekit.runtimes.openvino_ops import Blocks
from edgekit.scheme import VARIANT_WEIGHTS, Scheme
from edgekit.variant_files import OPENVINO_GRAPH

TINY = 1e-12  # bounds the length of a vector from below


def write_openvino_encoder(
    variant: Path, encoder: Encoder, scheme: Scheme, pooling: Pooling
) -> None:
    """Write ``openvino/openvino_model.xml`` and fill the constants tensor of the weights file."""
    pool = ConstantPool(variant / VARIANT_WEIGHTS, encoder)
    graph = _Graph(Blocks(pool, encoder, scheme), encoder)
    write_ir(graph.build(pooling), pool, variant / OPENVINO_GRAPH)


class _Graph:
    """Assembles the blocks into the whole model."""

    def __init__(self, blocks: Blocks, encoder: Encoder) -> None:
        self.b = blocks
        self.e = encoder
        self.ids = _parameter("input_ids")
        self.mask = _parameter("attention_mask")
        shape = op.shape_of(self.ids, "i64")
        self.length = op.gather(shape, blocks.ints(1), blocks.scalar(0))
        axes = blocks.ints(1, 2)
        self.visible = op.unsqueeze(op.convert(self.mask, "boolean"), axes)  # [B, 1, 1, T]

    def build(self, pooling: Pooling) -> ov.Model:
        """The model with its two inputs and ``embedding``."""
        x = self._embedded()
        for layer in self.e.layers:
            x = self._layer(x, layer)
        vector = self._normalized(self._pooled(x, pooling))
        vector.output(0).get_tensor().set_names({"embedding"})
        return ov.Model([op.result(vector)], [self.ids, self.mask], "edgekit")

    def _embedded(self) -> Node:
        b, e = self.b, self.e
        words = b.matrix(f"{WORDS}.weight")
        x = op.gather(words, op.convert(self.ids, "i32"), b.scalar(0))
        start = b.ints(e.position_offset)
        stop = op.add(self.length, start)
        rows = op.slice(b.pool.floats(POSITIONS), start, stop, b.ints(1), b.ints(0))
        first = op.slice(b.pool.floats(TYPES), b.ints(0), b.ints(1), b.ints(1), b.ints(0))
        return b.norm(op.add(op.add(x, first), rows), e.embedding_norm)

    def _layer(self, x: Node, layer: EncoderLayer) -> Node:
        b = self.b
        x = b.norm(op.add(x, self._attention(x, layer)), layer.attention_norm)
        y = b.feed_forward(x, layer.feed_forward)
        return b.norm(op.add(x, y), layer.feed_forward_norm)

    def _attention(self, x: Node, layer: EncoderLayer) -> Node:
        b, e = self.b, self.e
        q, k, v = (
            b.heads_first(b.heads(b.linear(x, module), e.num_heads, e.head_dim))
            for module in (layer.q, layer.k, layer.v)
        )
        y = op.scaled_dot_product_attention(q, k, v, self.visible)
        joined = op.reshape(op.transpose(y, b.ints(0, 2, 1, 3)), b.ints(0, 0, e.hidden_size), True)
        return b.linear(joined, layer.o)

    def _pooled(self, x: Node, pooling: Pooling) -> Node:
        """One vector [B, H] of x [B, T, H]."""
        b = self.b
        if pooling == "cls":
            return op.gather(x, b.scalar(0), b.scalar(1))
        seen = op.unsqueeze(op.convert(self.mask, "f32"), b.ints(2))
        total = op.reduce_sum(op.multiply(x, seen), b.ints(1), False)
        return op.divide(total, op.reduce_sum(seen, b.ints(1), False))

    def _normalized(self, x: Node) -> Node:
        square = op.reduce_sum(op.multiply(x, x), self.b.ints(-1), True)
        return op.divide(x, op.maximum(op.sqrt(square), self.b.real(TINY)))


def _parameter(name: str) -> Node:
    node = op.parameter(ov.PartialShape([-1, -1]), ov.Type.i64, name=name)
    node.output(0).get_tensor().set_names({name})
    return node
