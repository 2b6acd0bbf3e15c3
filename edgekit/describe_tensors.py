"""Every tensor of an architecture, in forward order, and where a checkpoint keeps it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from edgekit.architecture import (
    Architecture,
    Attention,
    FeedForward,
    GatedDelta,
    HeadExperts,
    LatentAttention,
    Layer,
    Mixture,
    SelectiveScan,
    ShortConv,
    TensorSpec,
)
from edgekit.describe_parts import matrix, norm_specs, own
from edgekit.describe_state_tensors import gated_delta, selective_scan, short_conv
from edgekit.families import Family, Flat, MoeRow, Separate, Stacked
from edgekit.stored_parts import Part, Range, rows


def tensor_specs(architecture: Architecture, row: Family) -> Architecture:
    """``architecture`` with its tensors."""
    writer = _Specs(architecture, row)
    return replace(architecture, specs=tuple(writer.all()))


class _Specs:
    """Writes the list for one model."""

    def __init__(self, architecture: Architecture, row: Family) -> None:
        self.a = architecture
        self.row = row
        self.hidden = architecture.hidden_size

    def all(self) -> Iterator[TensorSpec]:
        """Embedding, layers, final norm, head."""
        shape = (self.a.vocab_size, self.hidden)
        yield own(self.a.embedding + ".weight", shape, "embedding")
        for layer in self.a.layers:
            yield from self._layer(layer)
        yield from norm_specs(self.a.final_norm)
        if not self.a.tie_word_embeddings:
            yield own(self.a.head + ".weight", shape, "head")
            if self.a.head_bias:
                yield own(self.a.head + ".bias", shape[:1], "bias")

    def _layer(self, layer: Layer) -> Iterator[TensorSpec]:
        yield from norm_specs(layer.attention_norm, layer.index)
        if isinstance(layer.attention, Attention):
            yield from self._attention(layer.attention, layer.index)
        elif isinstance(layer.attention, ShortConv):
            yield from short_conv(layer.attention, layer.index)
        elif isinstance(layer.attention, SelectiveScan):
            yield from selective_scan(layer.attention, self.hidden, layer.index)
        elif isinstance(layer.attention, GatedDelta):
            assert self.row.attention.gated_delta is not None
            fused = self.row.attention.gated_delta.fused
            yield from gated_delta(layer.attention, self.hidden, fused, layer.index)
        else:
            yield from self._latent(layer.attention, layer.index)
        yield from norm_specs(layer.attention_post_norm, layer.index)
        yield from norm_specs(layer.feed_forward_norm, layer.index)
        if layer.dense:
            yield from self._feed_forward(layer.dense, layer.index, self.row.names.gate_up)
        if layer.mixture:
            assert self.row.moe is not None
            yield from self._mixture(layer.mixture, self.row.moe, layer.index)
        if layer.beside:
            for norm in (layer.beside.dense_post_norm, layer.beside.mixture_norm,
                         layer.beside.mixture_post_norm):  # fmt: skip
                yield from norm_specs(norm, layer.index)
        yield from norm_specs(layer.feed_forward_post_norm, layer.index)
        if layer.scalar:
            yield own(layer.scalar, (1,), "vector", layer.index)

    def _attention(self, a: Attention, layer: int) -> Iterator[TensorSpec]:
        wide, narrow = a.num_heads * a.head_dim, a.num_key_value_heads * a.head_dim
        sizes = {"q": (a.q, wide), "k": (a.k, narrow), "v": (a.v, narrow)}
        if a.v == a.k:
            del sizes["v"]
        if a.experts:
            del sizes["q"]
            yield from self._head_queries(a, a.experts, layer)
        fused = self.row.names.qkv or self.row.names.kv
        start, total = 0, sum(out for _, out in sizes.values())
        for name, (module, out) in sizes.items():
            source = None
            if name == "q" and self.row.attention.gate_in_q:
                source = self._half_of_queries(a, 0)
            if fused:
                stored = a.k.removesuffix(self.row.names.k) + fused + ".weight"
                source = rows(stored, (total, self.hidden), start, start + out)
            yield from matrix(module, out, self.hidden, layer, a.qkv_bias, name, source)
            start += out
        if a.experts:
            yield from self._head_outputs(a, a.experts, layer)
        else:
            yield from matrix(a.o, self.hidden, wide, layer, a.o_bias, "o")
        yield from norm_specs(a.q_norm, layer)
        yield from norm_specs(a.k_norm, layer)
        if a.sinks:
            yield own(a.sinks, (a.num_heads,), "vector", layer)
        if a.gate:
            half = self._half_of_queries(a, 1) if self.row.attention.gate_in_q else None
            yield from matrix(a.gate, wide, self.hidden, layer, False, "", half)

    def _half_of_queries(self, a: Attention, half: int) -> Part:
        """Queries (0) or gates (1) of a matrix that has both for a head after another."""
        heads, start = a.num_heads, half * a.head_dim
        stored = (2 * heads * a.head_dim, self.hidden)
        split = (heads, 2 * a.head_dim, self.hidden)
        return Part(a.q + ".weight", stored, split, ((0, heads, 1), (start, start + a.head_dim, 1)))

    def _head_queries(self, a: Attention, e: HeadExperts, layer: int) -> Iterator[TensorSpec]:
        """Router, and the queries of all experts as one matrix; stored as [E, heads * D, H]."""
        yield own(e.router + ".weight", (e.num_experts, self.hidden), "vector", layer)
        wide = a.num_key_value_heads * a.head_dim
        shape = (e.num_experts * wide, self.hidden)
        part = Part(a.q + ".weight", (e.num_experts, wide, self.hidden), shape)
        yield from matrix(a.q, *shape, layer, False, "q", part)

    def _head_outputs(self, a: Attention, e: HeadExperts, layer: int) -> Iterator[TensorSpec]:
        """The outputs of all experts side by side in one matrix; stored as [E, H, heads * D]."""
        assert self.row.attention.experts is not None
        wide = a.num_key_value_heads * a.head_dim
        stored = (e.num_experts, self.hidden, wide)
        part = Part(a.o + ".weight", stored, axes=(1, 0, 2))
        yield from matrix(a.o, self.hidden, e.num_experts * wide, layer, False, "o", part)
        prefix = e.router.removesuffix(self.row.attention.experts.router)
        bias = Part(prefix + self.row.attention.experts.bias, (self.hidden,))
        yield TensorSpec(a.o + ".bias", (self.hidden,), "bias", bias, layer)

    def _latent(self, a: LatentAttention, layer: int) -> Iterator[TensorSpec]:
        queries = a.num_heads * (a.nope_dim + a.rope_dim)
        if a.q:
            yield from matrix(a.q, queries, self.hidden, layer)
        else:
            yield from matrix(a.q_a, a.q_lora_rank, self.hidden, layer, a.bias)
            yield from norm_specs(a.q_a_norm, layer)
            yield from matrix(a.q_b, queries, a.q_lora_rank, layer)
        yield from matrix(a.kv_a, a.kv_lora_rank + a.rope_dim, self.hidden, layer, a.bias)
        yield from norm_specs(a.kv_a_norm, layer)
        yield from self._key_and_value(a, layer)
        yield from matrix(a.o, self.hidden, a.num_heads * a.value_dim, layer, a.bias, "o")

    def _key_and_value(self, a: LatentAttention, layer: int) -> Iterator[TensorSpec]:
        """``kv_b``, which has a head's rows of keys, then of values, as one matrix of each.

        The keys' is multiplied from the other side, so groups along its rows would be of no use.
        """
        rank, both = a.kv_lora_rank, a.nope_dim + a.value_dim
        stored, split = (a.num_heads * both, rank), (a.num_heads, both, rank)
        heads = (0, a.num_heads, 1)
        for kind, start, size in (("k", 0, a.nope_dim), ("v", a.nope_dim, a.value_dim)):
            part = Part(a.kv_b + ".weight", stored, split, (heads, (start, start + size, 1)))
            shape = (a.num_heads * size, rank)
            yield TensorSpec(f"{a.kv_b}.{kind}.weight", shape, "latent", part, layer)

    def _feed_forward(self, f: FeedForward, layer: int, fused: str) -> Iterator[TensorSpec]:
        sources: dict[str, Part | None] = {"gate": None, "up": None}
        if fused:
            stem = f.up.removesuffix(f.up.rpartition(".")[2])
            stored, shape = stem + fused + ".weight", (2 * f.size, self.hidden)
            sources["gate"] = rows(stored, shape, 0, f.size)
            sources["up"] = rows(stored, shape, f.size, 2 * f.size)
        for name, module in (("gate", f.gate), ("up", f.up)):
            if module:
                yield from matrix(module, f.size, self.hidden, layer, f.bias, name, sources[name])
        yield from matrix(f.down, self.hidden, f.size, layer, f.bias, "down")

    def _mixture(self, m: Mixture, row: MoeRow, layer: int) -> Iterator[TensorSpec]:
        choices = m.num_experts + m.num_identities
        yield own(m.router + ".weight", (choices, self.hidden), "router", layer)
        if m.router_bias:
            yield own(m.router + ".bias", (choices,), "router", layer)
        if m.correction:
            count = (choices,)
            stored = Part(m.correction, (1, *count), count) if row.correction_row else None
            part = stored or Part(m.correction, count)
            yield TensorSpec(m.correction, count, "router", part, layer)
        if m.router_scale:
            yield own(m.router_scale, (self.hidden,), "vector", layer)
        if m.expert_scale:
            yield own(m.expert_scale, (m.num_experts,), "router", layer)
        block = self._block(row, layer)
        for projection, _ in m.expert_names:
            for e in range(m.num_experts):
                yield self._expert(row.experts, m, block, layer, e, projection)
            if m.expert_bias:
                for e in range(m.num_experts):
                    yield self._expert_bias(row.experts, m, block, layer, e, projection)
        if m.output_bias:
            yield own(m.output_bias, (self.hidden,), "bias", layer)
        if m.shared:
            yield from self._feed_forward(m.shared, layer, row.shared_gate_up)
        if m.shared_gate:
            yield own(m.shared_gate + ".weight", (1, self.hidden), "vector", layer)

    def _block(self, row: MoeRow, layer: int) -> str:
        return self.row.names.inside(layer, row.block)

    def _expert(
        self, experts: Separate | Stacked | Flat, m: Mixture, block: str, layer: int, e: int,
        projection: str,
    ) -> TensorSpec:  # fmt: skip
        wide, hidden = m.intermediate_size, self.hidden
        shapes = {"gate_up": (2 * wide, hidden), "down": (hidden, wide)}
        shape = shapes.get(projection, (wide, hidden))
        name = m.expert(e, projection) + ".weight"
        part = self._expert_part(experts, m, block, e, projection, name, shape)
        return TensorSpec(name, shape, "expert", part, layer, e, projection)

    def _expert_part(
        self, experts: Separate | Stacked | Flat, m: Mixture, block: str, e: int,
        projection: str, name: str, shape: tuple[int, ...],
    ) -> Part:  # fmt: skip
        count, wide, hidden = m.num_experts, m.intermediate_size, self.hidden
        if isinstance(experts, Separate):
            return Part(name, shape)
        if isinstance(experts, Flat):
            stored = {"gate": experts.gate, "up": experts.up, "down": experts.down}[projection]
            split = (count, wide, hidden)
            flat = (count * wide, hidden)
            return Part(block + stored, flat, split, (e,), transposed=projection == "down")
        if projection == "down":
            inner = (wide, hidden) if experts.turned else (hidden, wide)
            return Part(block + experts.down, (count, *inner), (), (e,), experts.turned)
        stored = block + experts.gate_up
        inner = (hidden, 2 * wide) if experts.turned else (2 * wide, hidden)
        index: tuple[int | Range, ...] = (e,)
        if projection != "gate_up":
            columns: tuple[Range, ...] = ((0, hidden, 1),) if experts.turned else ()
            index = (e, *columns, _half(projection, wide))
        return Part(stored, (count, *inner), (), index, experts.turned)

    def _expert_bias(
        self, experts: Separate | Stacked | Flat, m: Mixture, block: str, layer: int, e: int,
        projection: str,
    ) -> TensorSpec:  # fmt: skip
        assert isinstance(experts, Stacked)
        count, wide = m.num_experts, m.intermediate_size
        name = m.expert(e, projection) + ".bias"
        size = self.hidden if projection == "down" else 2 * wide
        stored = experts.down if projection == "down" else experts.gate_up
        part = Part(f"{block}{stored}_bias", (count, size), (), (e,))
        return TensorSpec(name, (size,), "bias", part, layer, e, projection)


def _half(projection: str, wide: int) -> Range:
    """The gate's or up's share of ``2 * wide`` rows."""
    second = int(projection == "up")
    return second * wide, (second + 1) * wide, 1
