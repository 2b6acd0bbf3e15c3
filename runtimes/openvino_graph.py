"""Write the OpenVINO IR of a decoder over the weights file in place.

The graph is stateful (key-value cache inside) with the inputs of OpenVINO GenAI: ``input_ids``,
``attention_mask``, ``position_ids``, ``beam_idx``.
"""

from __future__ import annotations

from pathlib import Path

import openvino as ov
from openvino import opset13 as op

from edgekit.architecture import (
    Architecture,
    Attention,
    GatedDelta,
    Layer,
    SelectiveScan,
    ShortConv,
)
from edgekit.checkpoint import read_config
from edgekit.describe import describe
from edgekit.runtimes.openvino_attention import Context, attention, latent_attention
from edgekit.runtimes.openvino_constants import ConstantPool, Node, SmallConstants
from edgekit.runtimes.openvino_conv import short_conv
from edgekit.runtimes.openvino_delta import gated_delta
from edgekit.runtimes.openvino_file import write_ir
from edgekit.runtimes.openvino_moe import mixture
from edgekit.runtimes.openvino_ops import Blocks
from edgekit.runtimes.openvino_scan import selective_scan
from edgekit.scheme import read_scheme
from edgekit.variant_files import files_of, size_directories


def write_openvino(variant: Path) -> None:
    """Write ``openvino/openvino_model.xml`` of a variant and of each nested size in it.

    Fills the constants tensor of the weights file, which all of them share.

    Raises:
        BadInputError: ``variant`` is not a quantized checkpoint of a known family.
    """
    small = SmallConstants()
    for directory in size_directories(variant):
        files = files_of(directory)
        architecture = describe(read_config(directory), str(directory / "config.json"))
        pool = ConstantPool(files.weights, architecture, small)
        blocks = Blocks(pool, architecture, read_scheme(directory))
        write_ir(_Decoder(blocks, architecture).build(), pool, files.openvino_graph)


class _Decoder:
    """Assembles the blocks into the whole model."""

    def __init__(self, blocks: Blocks, architecture: Architecture) -> None:
        self.b = blocks
        self.a = architecture
        self.ids = _parameter("input_ids", [-1, -1], ov.Type.i64)
        mask = _parameter("attention_mask", [-1, -1], ov.Type.i64)
        positions = _parameter("position_ids", [-1, -1], ov.Type.i64)
        beam = _parameter("beam_idx", [-1], ov.Type.i32)
        self.inputs = [self.ids, mask, positions, beam]
        shape = op.shape_of(self.ids, "i64")
        batch = op.gather(shape, blocks.ints(0), blocks.scalar(0))
        length = op.gather(shape, blocks.ints(1), blocks.scalar(0))
        self.context = Context(blocks, mask, positions, beam, batch, length)
        self.shortcut: Node | None = None  # a mixture to be added after the next layer

    def build(self) -> ov.Model:
        """The model with its four inputs and ``logits`` [B, T, vocab_size]."""
        b, a = self.b, self.a
        embedding = b.matrix(a.embedding + ".weight")
        x = op.gather(embedding, op.convert(self.ids, "i32"), b.scalar(0))
        x = b.scaled(x, a.embedding_scale)
        for layer in a.layers:
            x = self._layer(x, layer)
        x = b.norm(x, a.final_norm)
        # a tied head has constants of its own over the same bytes: the NPU's pipeline moves the
        # head into a part by itself and does not find constants that it shares
        head = b.matrix((a.embedding if a.tie_word_embeddings else a.head) + ".weight")
        logits = op.matmul(x, head, False, True)
        if a.head_bias:
            logits = op.add(logits, b.pool.floats(a.head + ".bias", (1, 1, a.vocab_size)))
        logits = b.soft_capped(b.scaled(logits, a.logit_scale), a.logit_soft_cap)
        logits.output(0).get_tensor().set_names({"logits"})
        return ov.Model([op.result(logits)], self.context.sinks, self.inputs, "edgekit")

    def _layer(self, x: Node, layer: Layer) -> Node:
        b, scale = self.b, layer.residual_scale
        shortcut, self.shortcut = self.shortcut, None
        h = b.norm(x, layer.attention_norm)
        y = self._mixed(h, layer)
        y = b.scaled(b.norm(y, layer.attention_post_norm), scale)
        after = op.add(x, y)
        if not layer.parallel:
            h = b.norm(after, layer.feed_forward_norm)
        elif layer.feed_forward_norm:
            h = b.norm(x, layer.feed_forward_norm)
        y = self._fed_forward(h, after, layer)
        x = op.add(after, b.scaled(b.norm(y, layer.feed_forward_post_norm), scale))
        if shortcut is not None:
            x = op.add(x, shortcut)
        return op.multiply(x, b.pool.floats(layer.scalar, (1, 1, 1))) if layer.scalar else x

    def _mixed(self, h: Node, layer: Layer) -> Node:
        if isinstance(layer.attention, Attention):
            return attention(self.context, h, layer.attention, layer.index)
        if isinstance(layer.attention, ShortConv):
            return short_conv(self.context, h, layer.attention, layer.index)
        if isinstance(layer.attention, SelectiveScan):
            return selective_scan(self.context, h, layer.attention, layer.index)
        if isinstance(layer.attention, GatedDelta):
            return gated_delta(self.context, h, layer.attention, layer.index)
        return latent_attention(self.context, h, layer.attention, layer.index)

    def _fed_forward(self, h: Node, x: Node, layer: Layer) -> Node:
        """The dense part, the mixture, or both; h is the normalized x."""
        b = self.b
        if layer.mixture is None:
            return self._dense(h, layer)
        if layer.shortcut:
            self.shortcut = mixture(b, h, layer.mixture)
            return self._dense(h, layer)
        if layer.beside is None:
            return mixture(b, h, layer.mixture)
        norms = layer.beside
        dense = b.norm(self._dense(h, layer), norms.dense_post_norm)
        sparse = mixture(b, b.norm(x, norms.mixture_norm), layer.mixture, x)
        return op.add(dense, b.norm(sparse, norms.mixture_post_norm))

    def _dense(self, x: Node, layer: Layer) -> Node:
        assert layer.dense is not None
        return self.b.feed_forward(x, layer.dense)


def _parameter(name: str, shape: list[int], kind: ov.Type) -> Node:
    node = op.parameter(ov.PartialShape(shape), kind, name=name)
    node.output(0).get_tensor().set_names({name})
    return node
