"""Attention of the ONNX graph as ONNX Runtime's ``GroupQueryAttention``, with its cache.

The operator rotates, windows, caps and counts sinks itself. What it cannot do is done before it:
norms after the rotation and a temperature need the positions (``RotaryEmbedding``), and multi-head
latent attention comes to it as one key head [rope; latent] that serves as the value too.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from edgekit.architecture import Attention, LatentAttention, Norm, Rope, Temperature
from edgekit.runtimes.onnx_heads import expert_outputs, expert_queries
from edgekit.runtimes.onnx_matrices import Matrices
from edgekit.runtimes.onnx_nodes import MICROSOFT, TensorProto


@dataclass
class Positions:
    """Lengths for the attention, and rotary tables that the runtime folds while loading.

    A table takes ``context_length * dimensions * 4`` bytes: 8 MB for 32,768 positions of 64.
    """

    m: Matrices
    context_length: int
    tables: dict[Rope, tuple[str, str]] = field(default_factory=dict)

    def lengths(self) -> None:
        """``seqlens_k`` and ``total_sequence_length`` of the operator."""
        b = self.m.b
        b.node("ReduceSum", ["attention_mask", b.ints(1)], "lengths", keepdims=0)
        b.node("Sub", ["lengths", b.ints(1)], "last")
        b.node("Cast", ["last"], "seqlens_k", to=TensorProto.INT32)
        b.node("Shape", ["attention_mask"], "mask_shape")
        b.node("Gather", ["mask_shape", b.value("one", np.array(1, np.int64))], "total")
        b.node("Cast", ["total"], "total_sequence_length", to=TensorProto.INT32)

    def rotary(self, rope: Rope) -> tuple[str, str]:
        """cos and sin tables [context_length, dimensions / 2]."""
        if rope not in self.tables:
            self.tables[rope] = self._rotary(rope, f".{len(self.tables)}" if self.tables else "")
        return self.tables[rope]

    def _rotary(self, rope: Rope, suffix: str) -> tuple[str, str]:
        b = self.m.b
        if not b.has("positions_column"):
            b.value("zero", np.array(0, np.int64))
            b.value("context", np.array(self.context_length, np.int64))
            b.node("Range", ["zero", "context", "one"], "positions")
            b.node("Cast", ["positions"], "positions_f32", to=TensorProto.FLOAT)
            b.node("Unsqueeze", ["positions_f32", b.ints(1)], "positions_column")
        short = self._table(rope.inv_freq, rope.attention_factor, suffix)
        if not rope.long_inv_freq:
            return short
        long = self._table(rope.long_inv_freq, rope.long_attention_factor, suffix + ".long")
        limit = b.value("original" + suffix, np.array(rope.original_length, np.int64))
        beyond = b.node("Greater", ["total", limit], "beyond" + suffix)
        # only the rows in use are chosen from, so that a step does not touch the whole tables
        end = b.node("Reshape", ["total", b.ints(1)], "rows" + suffix)
        chosen = []
        for pair in zip(long, short, strict=True):
            rows = [b.node("Slice", [t, b.ints(0), end, b.ints(0)], t + ".rows") for t in pair]
            chosen.append(b.node("Where", [beyond, *rows], pair[1] + ".chosen"))
        return chosen[0], chosen[1]

    def _table(self, inv_freq: tuple[float, ...], factor: float, suffix: str) -> tuple[str, str]:
        b = self.m.b
        frequencies = b.value("inv_freq" + suffix, np.array([inv_freq], np.float32))
        angles = b.node("Mul", ["positions_column", frequencies], "angles" + suffix)
        cos = b.node("Cos", [angles], "cos_cache" + suffix)
        sin = b.node("Sin", [angles], "sin_cache" + suffix)
        return self.m.scaled(cos, factor), self.m.scaled(sin, factor)

    def current(self) -> str:
        """Positions [B, T] of the tokens given; those of a right-padded prompt begin at 0."""
        b = self.m.b
        if not b.has("current_positions"):
            b.node("Shape", ["input_ids"], "ids_shape")
            b.node("Gather", ["ids_shape", "one"], "given")
            b.value("zero", np.array(0, np.int64))
            b.node("Sub", ["lengths", "given"], "before_or_less")
            b.node("Max", ["before_or_less", "zero"], "before")
            b.node("Unsqueeze", ["before", b.ints(1)], "before_column")
            b.node("Range", ["zero", "given", "one"], "steps")
            b.node("Add", ["before_column", "steps"], "current_positions")
        return "current_positions"

    def temperature(self, t: Temperature) -> str:
        """The factor of the queries [B, T, 1]."""
        b = self.m.b
        if not b.has("temperature"):
            b.node("Cast", [self.current()], "current_f32", to=TensorProto.FLOAT)
            shifted = b.node("Add", ["current_f32", b.real(t.offset)], "shifted")
            steps = b.node("Div", [shifted, b.real(t.floor)], "temperature.steps")
            b.node("Floor", [steps], "temperature.floor")
            b.node("Add", ["temperature.floor", b.real(1.0)], "temperature.plus")
            b.node("Log", ["temperature.plus"], "temperature.log")
            scaled = self.m.scaled("temperature.log", t.beta)
            b.node("Add", [scaled, b.real(1.0)], "temperature.flat")
            b.node("Unsqueeze", ["temperature.flat", b.ints(-1)], "temperature")
        return "temperature"


def attention(p: Positions, x: str, a: Attention, layer: int, prefix: str) -> str:
    """Grouped-query attention of x [B, T, H]."""
    m, b = p.m, p.m.b
    if a.experts:
        q, gates = expert_queries(m, x, a, a.experts)
        k, v = m.linear(x, a.k), m.linear(x, a.v)
    else:
        q, k, v = _queries_keys_values(m, x, a, prefix)
    turned_before = _turns_before(a)
    if a.rope and turned_before:
        q, k = (_turned(p, t, a.rope, n) for t, n in ((q, a.num_heads), (k, a.num_key_value_heads)))
    if a.norm_after_rope:
        q = _head_norm(m, q, a.num_heads, a.head_dim, a.q_norm)
        k = _head_norm(m, k, a.num_key_value_heads, a.head_dim, a.k_norm)
    if a.temperature:
        q = b.node("Mul", [q, p.temperature(a.temperature)], q + ".tempered")
    tables = p.rotary(a.rope) if a.rope and not turned_before else ("", "")
    y = _attend(m, [q, k, v], a, layer, prefix, tables)
    if a.experts:
        return expert_outputs(m, y, gates, a, a.experts)
    if a.gate:
        gate = b.node("Sigmoid", [m.linear(x, a.gate)], a.gate + ".sigmoid")
        y = b.node("Mul", [y, gate], a.gate + ".gated")
    return m.linear(y, a.o)


def _turns_before(a: Attention) -> bool:
    """Whether rotary positions are applied before the operator, which wants multiples of 16."""
    if a.rope is None:
        return False
    return a.norm_after_rope or a.temperature is not None or a.rope.dimensions % 16 != 0


def _attend(
    m: Matrices, qkv: list[str], a: Attention, layer: int, prefix: str, tables: tuple[str, str]
) -> str:
    inputs = [
        *qkv,
        *_cache("past_key_values", layer),
        "seqlens_k",
        "total_sequence_length",
        *tables,
    ]
    if a.sinks:
        inputs += ["", "", m.b.floats(a.sinks)]
    while inputs[-1] == "":
        inputs.pop()
    return m.b.node(
        "GroupQueryAttention", inputs, [f"{prefix}attention", *_cache("present", layer)], MICROSOFT,
        num_heads=a.num_heads, kv_num_heads=a.num_key_value_heads, scale=a.scale,
        do_rotary=int(bool(tables[0])),
        rotary_interleaved=int(bool(tables[0] and a.rope and a.rope.interleaved)),
        **({"local_window_size": a.window} if a.window else {}),
        **({"softcap": a.soft_cap} if a.soft_cap else {}),
    )  # fmt: skip


def _cache(prefix: str, layer: int) -> list[str]:
    return [f"{prefix}.{layer}.{kind}" for kind in ("key", "value")]


def _queries_keys_values(m: Matrices, x: str, a: Attention, prefix: str) -> tuple[str, str, str]:
    """The attention's first inputs: all three in the first one, or one each.

    One product is faster than three (SmolLM2-135M, 2 cores: all products of a token take 6.5 ms
    instead of 7.3), but norms and unpacked weights need them apart.
    """
    modules = [a.q, a.k, a.v]
    apart = a.q_norm or a.temperature or _turns_before(a)
    if m.packs(a.q) and not apart:
        return m.clipped(m.joined(x, modules, prefix + "qkv"), a.clip), "", ""
    q, k, v = (m.linear(x, module) for module in modules)
    if a.q_norm and not a.norm_after_rope:
        if a.norms_heads:
            q = _head_norm(m, q, a.num_heads, a.head_dim, a.q_norm)
            k = _head_norm(m, k, a.num_key_value_heads, a.head_dim, a.k_norm)
        else:
            q, k = m.norm(q, a.q_norm), m.norm(k, a.k_norm)
    return m.clipped(q, a.clip), m.clipped(k, a.clip), m.clipped(v, a.clip)


def _head_norm(m: Matrices, x: str, count: int, size: int, norm: Norm | None) -> str:
    """The norm of each head of [B, T, heads * head_dim]."""
    if norm is None:
        return x
    split = m.b.node("Reshape", [x, m.b.ints(0, 0, count, size)], x + ".heads")
    return m.b.node("Reshape", [m.norm(split, norm), m.b.ints(0, 0, count * size)], x + ".joined")


def _turned(p: Positions, x: str, rope: Rope, heads: int) -> str:
    """Rotary positions of [B, T, heads * head_dim]."""
    cos, sin = p.rotary(rope)
    return p.m.b.node(
        "RotaryEmbedding", [x, p.current(), cos, sin], x + ".turned", MICROSOFT,
        interleaved=int(rope.interleaved), num_heads=heads,
        rotary_embedding_dim=rope.dimensions,
    )  # fmt: skip


def latent_attention(p: Positions, x: str, a: LatentAttention, layer: int, prefix: str) -> str:
    """Multi-head latent attention of x [B, T, H] over the compressed cache.

    The key half of ``kv_b`` is multiplied into the queries and the value half into the result
    (arXiv 2405.04434, section 2.1.2). The operator wants keys and values of one size, so the cache
    holds the key [rope; latent] as the value as well.
    """
    m, b = p.m, p.m.b
    heads, size = a.num_heads, a.rope_dim + a.kv_lora_rank
    q = m.linear(x, a.q) if a.q else m.linear(m.norm(m.linear(x, a.q_a), a.q_a_norm), a.q_b)
    q = b.node("Reshape", [q, b.ints(0, 0, heads, a.nope_dim + a.rope_dim)], prefix + "q.heads")
    sizes = b.ints(a.nope_dim, a.rope_dim)
    plain, turning = prefix + "q.plain", prefix + "q.turning"
    b.node("Split", [q, sizes], [plain, turning], axis=-1)
    by_key = _per_head(m, a, "k", a.nope_dim)
    first = b.node("Transpose", [plain], plain + ".first", perm=[0, 2, 1, 3])
    absorbed = b.node("MatMul", [first, by_key], plain + ".absorbed")
    absorbed = b.node("Transpose", [absorbed], plain + ".back", perm=[0, 2, 1, 3])
    queries = b.node("Concat", [turning, absorbed], prefix + "q.both", axis=-1)
    queries = b.node("Reshape", [queries, b.ints(0, 0, heads * size)], prefix + "q.joined")
    latent, shared = prefix + "latent", prefix + "shared"
    compressed = m.linear(x, a.kv_a)
    b.node("Split", [compressed, b.ints(a.kv_lora_rank, a.rope_dim)], [latent, shared], axis=-1)
    normed = m.scaled(m.norm(latent, a.kv_a_norm), a.latent_scale)
    keys = b.node("Concat", [shared, normed], prefix + "keys", axis=-1)
    inputs = [queries, keys, keys, *_cache("past_key_values", layer), "seqlens_k",
              "total_sequence_length", *p.rotary(a.rope)]  # fmt: skip
    y = b.node(
        "GroupQueryAttention", inputs, [f"{prefix}attention", *_cache("present", layer)], MICROSOFT,
        num_heads=heads, kv_num_heads=1, scale=a.scale, do_rotary=1,
        rotary_interleaved=int(a.rope.interleaved),
    )  # fmt: skip
    y = b.node("Reshape", [y, b.ints(0, 0, heads, size)], y + ".heads")
    y = b.node("Slice", [y, b.ints(a.rope_dim), b.ints(size), b.ints(-1)], y + ".latent")
    y = b.node("Transpose", [y], y + ".first", perm=[0, 2, 1, 3])
    by_value = _per_head(m, a, "v", a.value_dim)
    by_value = b.node("Transpose", [by_value], by_value + ".turned", perm=[0, 2, 1])
    y = b.node("MatMul", [y, by_value], y + ".values")
    y = b.node("Transpose", [y], y + ".back", perm=[0, 2, 1, 3])
    y = b.node("Reshape", [y, b.ints(0, 0, heads * a.value_dim)], y + ".joined")
    return m.linear(y, a.o)


def _per_head(m: Matrices, a: LatentAttention, half: str, size: int) -> str:
    """A half of ``kv_b`` as float32 [heads, size, rank]."""
    name = f"{a.kv_b}.{half}.weight"
    shape = (a.num_heads, size, a.kv_lora_rank)
    return m.b.cast(m.b.stored(name, m.b.info(name), TensorProto.FLOAT16, shape))
