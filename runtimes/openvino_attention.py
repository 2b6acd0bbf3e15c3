"""Attention of the OpenVINO graph: grouped-query and multi-head latent, with a stateful cache."""

from __future__ import annotations

from dataclasses import dataclass, field

import openvino as ov
from openvino import opset6 as op6
from openvino import opset13 as op
from openvino.op.util import Variable, VariableInfo
from openvino.utils.node_factory import NodeFactory

from edgekit.architecture import Attention, LatentAttention, Norm, Rope, Temperature
from edgekit.runtimes.openvino_constants import Node
from edgekit.runtimes.openvino_heads import expert_outputs, expert_queries
from edgekit.runtimes.openvino_ops import F32, Blocks

END = 2**63 - 1


@dataclass
class Context:
    """What all layers of one model share: inputs, masks, rotary tables, and the cache's sinks."""

    blocks: Blocks
    attention_mask: Node
    positions: Node
    beam: Node
    batch: Node
    length: Node
    masks: dict[int, Node] = field(default_factory=dict)
    tables: dict[Rope, tuple[Node, Node]] = field(default_factory=dict)
    sinks: list[Node] = field(default_factory=list)

    def mask(self, window: int) -> Node:
        """0 where a query may look, a large negative elsewhere: [B, 1, T, S]."""
        if window not in self.masks:
            self.masks[window] = self._mask(window)
        return self.masks[window]

    def _mask(self, window: int) -> Node:
        b = self.blocks
        zero, one = b.scalar(0), b.scalar(1)
        total = op.gather(op.shape_of(self.attention_mask, "i64"), b.ints(1), zero)
        keys = op.unsqueeze(op.range(zero, op.squeeze(total, zero), one, "i64"), zero)
        queries = op.range(zero, op.squeeze(self.length, zero), one, "i64")
        queries = op.unsqueeze(op.add(queries, op.subtract(total, self.length)), one)
        causal = _lifted(b, op.less_equal(keys, queries))
        given = op.unsqueeze(op.unsqueeze(op.convert(self.attention_mask, "boolean"), one), one)
        if not window:
            visible = op.logical_and(causal, given)
            return op.select(visible, b.scalar(0.0, F32), b.scalar(MASKED, F32))
        near = op.greater(_lifted(b, keys), op.add(_lifted(b, queries), b.scalar(-window)))
        # Paged attention knows a window by this row of operations and by no other; a mask in
        # another form it drops without a word, and the layer then sees everything.
        visible = op.bitwise_and(op.bitwise_and(causal, near), given)
        visible = op.bitwise_and(op.bitwise_and(given, visible), given)
        visible = op.broadcast(visible, op.shape_of(visible, "i64"))
        mask = op.select(visible, b.scalar(0.0, F32), b.scalar(MASKED, F32))
        return op.slice(mask, b.ints(0), b.ints(END), b.ints(1), b.ints(3))

    def given(self) -> Node:
        """1 for tokens given, 0 for padding: [B, T, 1]."""
        b = self.blocks
        start = op.subtract(b.ints(0), self.length)
        mask = op.slice(self.attention_mask, start, b.ints(END), b.ints(1), b.ints(1))
        return op.convert(op.unsqueeze(mask, b.scalar(-1)), "f32")

    def rotary(self, rope: Rope) -> tuple[Node, Node]:
        """cos and sin [B, 1, T, dimensions] of the positions."""
        if rope not in self.tables:
            self.tables[rope] = self._rotary(rope)
        return self.tables[rope]

    def _rotary(self, rope: Rope) -> tuple[Node, Node]:
        b = self.blocks
        axis = b.scalar(1)
        inverse = b.pool.value([[[f] for f in rope.inv_freq]], F32)
        factor: Node | float = rope.attention_factor
        if rope.long_inv_freq:
            longest = op.add(op.reduce_max(self.positions, b.ints(0, 1), False), b.scalar(1))
            beyond = op.greater(longest, b.scalar(rope.original_length))
            long = b.pool.value([[[f] for f in rope.long_inv_freq]], F32)
            inverse = op.select(beyond, long, inverse)
            factor = op.select(
                beyond, b.real(rope.long_attention_factor), b.real(rope.attention_factor)
            )
        positions = op.unsqueeze(op.convert(self.positions, "f32"), axis)
        angles = op.transpose(op.matmul(inverse, positions, False, False), b.ints(0, 2, 1))
        angles = op.concat([angles, angles], -1)
        tables = [op.unsqueeze(op.cos(angles), axis), op.unsqueeze(op.sin(angles), axis)]
        if isinstance(factor, float):
            cos, sin = (b.scaled(table, factor) for table in tables)
        else:
            cos, sin = (op.multiply(table, factor) for table in tables)
        return cos, sin

    def temperature(self, t: Temperature) -> Node:
        """The factor of the queries [B, 1, T, 1]."""
        b = self.blocks
        positions = op.add(op.convert(self.positions, "f32"), b.real(t.offset))
        steps = op.floor(op.divide(positions, b.real(t.floor)))
        factor = op.multiply(op.log(op.add(steps, b.real(1.0))), b.real(t.beta))
        factor = op.add(factor, b.real(1.0))
        return op.unsqueeze(op.unsqueeze(factor, b.scalar(1)), b.scalar(-1))

    def remember(self, x: Node, layer: int, kind: str, heads: int, size: int) -> Node:
        """Append to the cache: ReadValue, reordered by ``beam_idx``, Concat, Assign."""
        b = self.blocks
        name = f"past_key_values.{layer}.{kind}present.{layer}.{kind}"
        variable = new_variable(name, [-1, heads, -1, size])
        sizes = [self.batch, b.ints(heads), b.ints(0), b.ints(size)]
        empty = op.broadcast(b.scalar(0.0, F32), op.concat(sizes, 0))
        past = op.gather(op6.read_value(empty, variable), self.beam, b.scalar(0))
        whole = op.concat([past, x], 2)
        self.sinks.append(op6.assign(whole, variable))
        return whole


MASKED = -65504.0  # the lowest float16


def attention(c: Context, x: Node, a: Attention, layer: int) -> Node:
    """Grouped-query attention of x [B, T, H]."""
    b = c.blocks
    if a.experts:
        q, gates = expert_queries(b, x, a, a.experts)
    else:
        q = _clipped(_projected(b, x, a.q, a.q_norm, a), a)
        q = b.heads(q, a.num_heads, a.head_dim)
    k = _clipped(_projected(b, x, a.k, a.k_norm, a), a)
    k = b.heads(k, a.num_key_value_heads, a.head_dim)
    v = k
    if a.v != a.k:
        v = b.heads(_clipped(b.linear(x, a.v), a), a.num_key_value_heads, a.head_dim)
    v = b.norm(v, a.v_norm, rank=4)
    if not a.norm_after_rope:
        q, k = _head_normed(b, q, a.q_norm, a), _head_normed(b, k, a.k_norm, a)
    q, k, v = b.heads_first(q), b.heads_first(k), b.heads_first(v)
    if a.rope:
        q, k = _rotate(c, q, a.rope, a.head_dim), _rotate(c, k, a.rope, a.head_dim)
    if a.norm_after_rope:
        q, k = _head_normed(b, q, a.q_norm, a), _head_normed(b, k, a.k_norm, a)
    if a.temperature:
        q = op.multiply(q, c.temperature(a.temperature))
    keys = c.remember(k, layer, "key", a.num_key_value_heads, a.head_dim)
    values = c.remember(v, layer, "value", a.num_key_value_heads, a.head_dim)
    repeats = a.num_heads // a.num_key_value_heads
    keys = _repeat_heads(b, keys, a.num_key_value_heads, repeats, a.head_dim)
    values = _repeat_heads(b, values, a.num_key_value_heads, repeats, a.head_dim)
    y = _attend(b, q, keys, values, c.mask(a.window), a)
    if a.experts:
        return expert_outputs(b, b.heads_first(y), gates, a, a.experts)
    y = op.reshape(b.heads_first(y), b.ints(0, 0, a.num_heads * a.head_dim), True)
    if a.gate:
        y = op.multiply(y, op.sigmoid(b.linear(x, a.gate)))
    return b.linear(y, a.o)


def _projected(b: Blocks, x: Node, module: str, norm: Norm | None, a: Attention) -> Node:
    """The projection, normalized over its whole width where the family does that."""
    y = b.linear(x, module)
    return y if a.norms_heads else b.norm(y, norm)


def _head_normed(b: Blocks, x: Node, norm: Norm | None, a: Attention) -> Node:
    return b.norm(x, norm, rank=4) if a.norms_heads else x


def _clipped(x: Node, a: Attention) -> Node:
    return op.clamp(x, -a.clip, a.clip) if a.clip else x


def _attend(b: Blocks, q: Node, k: Node, v: Node, mask: Node, a: Attention) -> Node:
    """softmax(q k^T scale + mask) v, [B, heads, T, D]."""
    if a.soft_cap:
        # the fused operation has no soft cap
        scores = b.scaled(op.matmul(q, k, False, True), a.scale)
        scores = op.add(b.soft_capped(scores, a.soft_cap), mask)
        return op.matmul(op.softmax(scores, -1), v, False, False)
    if a.sinks:
        sinks = b.pool.floats(a.sinks, (1, a.num_heads, 1, 1))
        inputs = [q, k, v, mask, b.real(a.scale), sinks]
        factory = NodeFactory("opset13")
        return factory.create(
            "ScaledDotProductAttention", [i.output(0) for i in inputs], {"causal": False}
        )
    if a.scale == a.head_dim**-0.5:
        return op.scaled_dot_product_attention(q, k, v, mask)
    return op.scaled_dot_product_attention(q, k, v, mask, b.real(a.scale))


def _rotate(c: Context, x: Node, rope: Rope, head_dim: int) -> Node:
    """Rotary positions of the first dimensions of x [B, heads, T, head_dim].

    Interleaved pairs are brought into the half-split form of Hugging Face (arXiv 2104.09864) and
    left there: queries and keys are permuted alike, so their products are the same.
    """
    b = c.blocks
    cos, sin = c.rotary(rope)
    size = rope.dimensions
    if size < head_dim:
        rest = _columns(b, x, size, END)
        x = _columns(b, x, 0, size)
    if rope.interleaved:
        pairs = op.reshape(x, b.ints(0, 0, 0, size // 2, 2), True)
        x = op.reshape(op.transpose(pairs, b.ints(0, 1, 2, 4, 3)), b.ints(0, 0, 0, size), True)
    upper, lower = _columns(b, x, size // 2, END), _columns(b, x, 0, size // 2)
    turned = op.concat([op.multiply(upper, b.scalar(-1.0, F32)), lower], -1)
    y = op.add(op.multiply(x, cos), op.multiply(turned, sin))
    return op.concat([y, rest], -1) if size < head_dim else y


def _lifted(b: Blocks, x: Node) -> Node:
    """x [.., ..] as [1, 1, .., ..]."""
    return op.unsqueeze(op.unsqueeze(x, b.scalar(0)), b.scalar(0))


def _columns(b: Blocks, x: Node, start: int, stop: int) -> Node:
    return op.slice(x, b.ints(start), b.ints(stop), b.ints(1), b.ints(3))


def _repeat_heads(b: Blocks, x: Node, heads: int, repeats: int, size: int) -> Node:
    """Key or value heads repeated for their group of query heads, [B, heads * repeats, T, D].

    The broadcast must be bidirectional for the cache to fuse with the attention.
    """
    shape = op.shape_of(x, "i64")
    batch = op.gather(shape, b.ints(0), b.scalar(0))
    length = op.gather(shape, b.ints(2), b.scalar(0))
    wide = op.concat([batch, b.ints(heads), b.ints(repeats), length, b.ints(size)], 0)
    wide = op.broadcast(op.unsqueeze(x, b.scalar(2)), wide, broadcast_spec="BIDIRECTIONAL")
    return op.reshape(wide, b.ints(0, heads * repeats, -1, size), True)


def latent_attention(c: Context, x: Node, a: LatentAttention, layer: int) -> Node:
    """Multi-head latent attention of x [B, T, H] over the compressed cache.

    The key half of ``kv_b`` is multiplied into the queries and the value half into the result
    (arXiv 2405.04434, section 2.1.2), so that all heads share one cached key [rope; latent] and
    one cached value [latent].
    """
    b = c.blocks
    if a.q:
        queries = b.linear(x, a.q)
    else:
        queries = b.linear(b.norm(b.linear(x, a.q_a), a.q_a_norm), a.q_b)
    queries = b.heads_first(b.heads(queries, a.num_heads, a.nope_dim + a.rope_dim))
    by_key, by_value = (
        b.pool.stored(b.pool.info(f"{a.kv_b}.{part}.weight"), ov.Type.f16,
                      (1, a.num_heads, size, a.kv_lora_rank))
        for part, size in (("k", a.nope_dim), ("v", a.value_dim))
    )  # fmt: skip
    plain = op.matmul(_columns(b, queries, 0, a.nope_dim), op.convert(by_key, "f32"), False, False)
    turned = _rotate(c, _columns(b, queries, a.nope_dim, END), a.rope, a.rope_dim)
    q = op.concat([turned, plain], -1)
    compressed = b.heads_first(b.heads(b.linear(x, a.kv_a), 1, a.kv_lora_rank + a.rope_dim))
    latent = b.norm(_columns(b, compressed, 0, a.kv_lora_rank), a.kv_a_norm, rank=4)
    latent = b.scaled(latent, a.latent_scale)
    shared = _rotate(c, _columns(b, compressed, a.kv_lora_rank, END), a.rope, a.rope_dim)
    keys = op.concat([shared, latent], -1)
    size = a.kv_lora_rank + a.rope_dim
    keys = c.remember(keys, layer, "key", 1, size)
    values = c.remember(latent, layer, "value", 1, a.kv_lora_rank)
    keys = _repeat_heads(b, keys, 1, a.num_heads, size)
    values = _repeat_heads(b, values, 1, a.num_heads, a.kv_lora_rank)
    y = op.scaled_dot_product_attention(q, keys, values, c.mask(0), b.real(a.scale))
    y = op.matmul(y, op.convert(by_value, "f32"), False, True)
    y = op.reshape(b.heads_first(y), b.ints(0, 0, a.num_heads * a.value_dim), True)
    return b.linear(y, a.o)


def new_variable(name: str, shape: list[int]) -> Variable:
    """A variable of the model's state."""
    info = VariableInfo()
    info.data_shape = ov.PartialShape(shape)
    info.data_type = ov.Type.f32
    info.variable_id = name
    return Variable(info)
