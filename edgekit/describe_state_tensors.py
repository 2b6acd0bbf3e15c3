"""Tensors of layers that keep a state: convolutions, gated delta rules, selective scans."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from edgekit.architecture import GatedDelta, SelectiveScan, ShortConv, TensorSpec
from edgekit.describe_parts import matrix, norm_specs, own
from edgekit.stored_parts import Part, rows


def short_conv(c: ShortConv, layer: int) -> Iterator[TensorSpec]:
    """Projections, kernel and biases."""
    size = c.size
    yield from matrix(c.input, 3 * size, size, layer, c.bias)
    yield _kernel(c.kernel, size, c.length, layer)
    if c.bias:
        yield own(c.kernel + ".bias", (size,), "bias", layer)
    yield from matrix(c.output, size, size, layer, c.bias)


def _kernel(module: str, size: int, length: int, layer: int) -> TensorSpec:
    """Stored as [size, 1, length] and read as one row per token that it sees."""
    name = module + ".weight"
    part = Part(name, (size, 1, length), (size, length), transposed=True)
    return TensorSpec(name, (length, size), "vector", part, layer)


def gated_delta(d: GatedDelta, hidden: int, fused: bool, layer: int) -> Iterator[TensorSpec]:
    """Projections, convolution, decay, norm; what decides on the state is not packed."""
    sources = _fused(d, hidden) if fused else _joined(d, hidden)
    sizes = {"q": d.key_size, "k": d.key_size, "v": d.value_size, "z": d.value_size}
    for part, size in sizes.items():
        projection = part if part != "z" else ""
        module = {"q": d.q, "k": d.k, "v": d.v, "z": d.z}[part]
        yield from matrix(module, size, hidden, layer, False, projection, sources[part])
    heads = (d.num_value_heads, hidden)
    for module, part in ((d.a, "a"), (d.b, "b")):
        name = module + ".weight"
        yield TensorSpec(name, heads, "latent", sources[part] or Part(name, heads), layer)
    yield _kernel(d.kernel, d.conv_size, d.length, layer)
    yield own(d.decay, heads[:1], "vector", layer)
    yield own(d.decay_bias, heads[:1], "vector", layer)
    yield from norm_specs(d.norm, layer)
    yield from matrix(d.output, hidden, d.value_size, layer)


def _joined(d: GatedDelta, hidden: int) -> dict[str, Part | None]:
    """q, k and v as rows of one matrix; the rest by itself."""
    stored, shape = d.q.removesuffix("q_proj") + "in_proj_qkv.weight", (d.conv_size, hidden)
    keys = d.key_size
    return {
        "q": rows(stored, shape, 0, keys),
        "k": rows(stored, shape, keys, 2 * keys),
        "v": rows(stored, shape, 2 * keys, d.conv_size),
        "z": None, "a": None, "b": None,
    }  # fmt: skip


def _fused(d: GatedDelta, hidden: int) -> dict[str, Part | None]:
    """q, k, v, z as rows of a key head after another, and b, a likewise."""
    heads, each = d.num_key_heads, d.num_value_heads // d.num_key_heads
    prefix = d.q.removesuffix("q_proj")

    def parts(name: str, sizes: dict[str, int]) -> Iterator[tuple[str, Part]]:
        start, total = 0, sum(sizes.values())
        for part, size in sizes.items():
            index = ((0, heads, 1), (start, start + size, 1))
            stored = (heads * total, hidden)
            yield part, Part(prefix + name, stored, (heads, total, hidden), index)
            start += size

    wide = each * d.value_dim
    first = {"q": d.key_dim, "k": d.key_dim, "v": wide, "z": wide}
    return {
        **dict(parts("in_proj_qkvz.weight", first)),
        **dict(parts("in_proj_ba.weight", {"b": each, "a": each})),
    }


def selective_scan(s: SelectiveScan, hidden: int, layer: int) -> Iterator[TensorSpec]:
    """Projections, convolution, decay, skip, norm; the steps' rows are not packed."""
    stored = s.z.removesuffix("z_proj") + "in_proj.weight"
    sizes = {s.z: s.size, s.x: s.conv_size, s.dt: s.num_heads}
    start, shape = 0, (sum(sizes.values()), hidden)
    for module, size in sizes.items():
        part = rows(stored, shape, start, start + size)
        for spec in matrix(module, size, hidden, layer, s.bias, source=part):
            packed = spec.role == "linear" and module != s.dt
            yield spec if packed or spec.role == "bias" else replace(spec, role="latent")
        start += size
    yield _kernel(s.kernel, s.conv_size, s.length, layer)
    if s.conv_bias:
        yield own(s.kernel + ".bias", (s.conv_size,), "bias", layer)
    for name in (s.decay, s.decay_bias, s.skip):
        yield own(name, (s.num_heads,), "vector", layer)
    yield from norm_specs(s.norm, layer)
    yield from matrix(s.output, hidden, s.size, layer, s.bias)
