"""Write the OpenVINO IR of a decoder over the weights file in place.

The graph is stateful (key-value cache inside) with the inputs of OpenVINO GenAI: ``input_ids``,
``attention_mask``, ``position_ids``, ``beam_idx``. OpenVINO's serializer gives the topology; its
constants' offsets are then pointed into ``weights.safetensors``, which serves as the IR's ``.bin``.
"""

from __future__ import annotations

import os
import re
import tempfile
from pathlib import Path

import numpy as np
import openvino as ov
from openvino import opset6 as op6
from openvino import opset13 as op
from openvino.op.util import Variable, VariableInfo

from edgekit.architecture import EMBEDDING, FINAL_NORM, HEAD, Architecture, describe
from edgekit.checkpoint import read_config
from edgekit.errors import EdgekitError
from edgekit.runtimes.openvino_constants import ConstantPool, Node
from edgekit.runtimes.openvino_ops import F32, Blocks
from edgekit.scheme import CONSTANTS, read_scheme

GRAPH = Path("openvino") / "openvino_model.xml"
WEIGHTS = "weights.safetensors"
MASKED = float(np.finfo(np.float16).min)
_CONST = re.compile(r'<layer id="\d+" name="([^"]*)" type="Const"[^>]*>\s*<data [^>]*>')
_LAYER = re.compile(r'<layer id="(\d+)" name="[^"]*" type="(?!Parameter)')
_OFFSET = re.compile(r' offset="\d+"')


def write_openvino(variant: Path) -> None:
    """Write ``openvino/openvino_model.xml`` and fill the constants tensor of the weights file.

    Raises:
        BadInputError: ``variant`` is not a quantized checkpoint of a known family.
    """
    architecture = describe(read_config(variant), str(variant / "config.json"))
    pool = ConstantPool(variant / WEIGHTS)
    blocks = Blocks(pool, architecture, read_scheme(variant))
    xml = _serialize(_Decoder(blocks, architecture).build())
    places, content = pool.place_small()
    text = _point_into_file(xml, pool, places)
    room = pool.info(CONSTANTS)
    (variant / GRAPH).parent.mkdir(exist_ok=True)
    (variant / GRAPH).write_text(text, encoding="utf-8")
    with (variant / WEIGHTS).open("r+b") as file:
        file.seek(room.offset)
        file.write(content.ljust(room.nbytes, b"\0"))


def _serialize(model: ov.Model) -> str:
    """The topology as XML; the weights that the serializer also writes go nowhere."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "graph.xml"
        ov.serialize(model, str(path), os.devnull)
        return path.read_text(encoding="utf-8")


def _point_into_file(xml: str, pool: ConstantPool, places: dict[str, int]) -> str:
    def point(match: re.Match[str]) -> str:
        name = match.group(1)
        if name not in pool.offsets:
            raise EdgekitError(f"constant {name!r} was not made by the graph writer")
        offset = pool.offsets[name]
        if offset < 0:
            offset = places[name.partition("#")[0]]
        return _OFFSET.sub(f' offset="{offset}"', match.group(0), count=1)

    # OpenVINO numbers its nodes per process; by position the same model has the same bytes
    return _LAYER.sub(r'<layer id="\1" name="node_\1" type="', _CONST.sub(point, xml))


class _Decoder:
    """Assembles the blocks into the whole model."""

    def __init__(self, blocks: Blocks, architecture: Architecture) -> None:
        self.b = blocks
        self.a = architecture
        self.sinks: list[Node] = []
        self.ids = _parameter("input_ids", [-1, -1], ov.Type.i64)
        self.attention_mask = _parameter("attention_mask", [-1, -1], ov.Type.i64)
        self.positions = _parameter("position_ids", [-1, -1], ov.Type.i64)
        self.beam = _parameter("beam_idx", [-1], ov.Type.i32)
        shape = op.shape_of(self.ids, "i64")
        zero = blocks.scalar(0)
        self.batch = op.gather(shape, blocks.ints(0), zero)
        self.length = op.gather(shape, blocks.ints(1), zero)
        self.mask = self._causal_mask()
        self.cos, self.sin = self._rotary()

    def build(self) -> ov.Model:
        """The model with its four inputs and ``logits`` [B, T, vocab_size]."""
        embedding = self.b.matrix(EMBEDDING)
        x = op.gather(embedding, op.convert(self.ids, "i32"), self.b.scalar(0))
        for layer in range(self.a.num_hidden_layers):
            x = op.add(x, self._attention(x, layer))
            x = op.add(x, self._feed_forward(x, layer))
        x = self.b.rms_norm(x, FINAL_NORM)
        head = embedding if self.a.tie_word_embeddings else self.b.matrix(HEAD)
        logits = op.matmul(x, head, False, True)
        logits.output(0).get_tensor().set_names({"logits"})
        inputs = [self.ids, self.attention_mask, self.positions, self.beam]
        return ov.Model([op.result(logits)], self.sinks, inputs, "edgekit")

    def _causal_mask(self) -> Node:
        """0 where a query may look, a large negative elsewhere: [B, 1, T, S]."""
        b = self.b
        zero, one = b.scalar(0), b.scalar(1)
        total = op.gather(op.shape_of(self.attention_mask, "i64"), b.ints(1), zero)
        keys = op.unsqueeze(op.range(zero, op.squeeze(total, zero), one, "i64"), zero)
        queries = op.range(zero, op.squeeze(self.length, zero), one, "i64")
        queries = op.add(queries, op.subtract(total, self.length))
        causal = op.less_equal(keys, op.unsqueeze(queries, one))
        causal = op.unsqueeze(op.unsqueeze(causal, zero), zero)
        given = op.unsqueeze(op.unsqueeze(op.convert(self.attention_mask, "boolean"), one), one)
        visible = op.logical_and(causal, given)
        return op.select(visible, b.scalar(0.0, F32), b.scalar(MASKED, F32))

    def _rotary(self) -> tuple[Node, Node]:
        """cos and sin [B, 1, T, head_dim] of the positions."""
        b = self.b
        inverse = b.pool.value(np.array(self.a.inv_freq).reshape(1, -1, 1), F32)
        positions = op.unsqueeze(op.convert(self.positions, "f32"), b.scalar(1))
        angles = op.transpose(op.matmul(inverse, positions, False, False), b.ints(0, 2, 1))
        angles = op.concat([angles, angles], -1)
        axis = b.scalar(1)
        return op.unsqueeze(op.cos(angles), axis), op.unsqueeze(op.sin(angles), axis)

    def _attention(self, x: Node, layer: int) -> Node:
        a, b = self.a, self.b
        prefix = a.layer_prefix(layer)
        h = b.rms_norm(x, prefix + "input_layernorm.weight")
        norms = {k: f"{prefix}self_attn.{k}_norm.weight" if a.family.qk_norm else "" for k in "qk"}
        q = b.heads(b.linear(h, a.attention(layer, "q")), a.num_attention_heads, norms["q"])
        k = b.heads(b.linear(h, a.attention(layer, "k")), a.num_key_value_heads, norms["k"])
        v = b.heads(b.linear(h, a.attention(layer, "v")), a.num_key_value_heads)
        q, k = b.rotate(q, self.cos, self.sin), b.rotate(k, self.cos, self.sin)
        keys, values = self._remember(k, layer, "key"), self._remember(v, layer, "value")
        y = op.scaled_dot_product_attention(
            q, b.repeat_heads(keys), b.repeat_heads(values), self.mask
        )
        y = op.transpose(y, b.ints(0, 2, 1, 3))
        y = op.reshape(y, b.ints(0, 0, a.num_attention_heads * a.head_dim), True)
        return b.linear(y, a.attention(layer, "o"))

    def _remember(self, x: Node, layer: int, kind: str) -> Node:
        """Append to the cache: ReadValue, reordered by ``beam_idx``, Concat, Assign."""
        a, b = self.a, self.b
        info = VariableInfo()
        info.data_shape = ov.PartialShape([-1, a.num_key_value_heads, -1, a.head_dim])
        info.data_type = ov.Type.f32
        info.variable_id = f"past_key_values.{layer}.{kind}present.{layer}.{kind}"
        variable = Variable(info)
        sizes = [self.batch, b.ints(a.num_key_value_heads), b.ints(0), b.ints(a.head_dim)]
        empty = op.broadcast(b.scalar(0.0, F32), op.concat(sizes, 0))
        past = op.gather(op6.read_value(empty, variable), self.beam, b.scalar(0))
        whole = op.concat([past, x], 2)
        self.sinks.append(op6.assign(whole, variable))
        return whole

    def _feed_forward(self, x: Node, layer: int) -> Node:
        a, b = self.a, self.b
        h = b.rms_norm(x, a.layer_prefix(layer) + "post_attention_layernorm.weight")
        if a.is_sparse(layer):
            return b.mixture(h, layer)
        gate = b.silu(b.linear(h, a.feed_forward(layer, "gate")))
        up = b.linear(h, a.feed_forward(layer, "up"))
        return b.linear(op.multiply(gate, up), a.feed_forward(layer, "down"))


def _parameter(name: str, shape: list[int], kind: ov.Type) -> Node:
    node = op.parameter(ov.PartialShape(shape), kind, name=name)
    node.output(0).get_tensor().set_names({name})
    return node
