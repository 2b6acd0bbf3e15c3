"""The tensors of a GGUF file: their names, types and shapes, and the bytes of each.

Our codes become blocks without a change of value. ``Q4_0`` is a float16 scale and 32 codes, the
first 16 in the low nibbles, the others in the high ones, ``w = (code - 8) * scale``; ``Q8_0`` is a
float16 scale and 32 signed bytes. A group of 64 or 128 inputs, or a whole row, is several blocks
with the same scale.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekit.architecture import Architecture, Attention, Layer, TensorSpec
from edgekit.errors import BadInputError
from edgekit.gguf_families import GgufFamily
from edgekit.scheme import FLOAT32_ROLES, Scheme, unpack
from edgekit.tensorfile import TensorFile

BLOCK = 32
ELEMENTS_AT_ONCE = 1 << 22  # of a matrix; bounds the working memory
ROW_BYTES = {"Q4_0": (BLOCK, 18), "Q8_0": (BLOCK, 34), "F16": (1, 2), "F32": (1, 4)}


@dataclass(frozen=True)
class GgufTensor:
    """One tensor of the file: rows of ``specs`` one after the other.

    ``kind`` is a member of ``gguf.GGMLQuantizationType``. ``heads`` groups of rows are stored as
    rotary neighbours, the first ``rotated`` of each; ``plus`` is added to every value.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    specs: tuple[TensorSpec, ...]
    heads: int = 0
    rotated: int = 0
    plus: float = 0.0

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        size, width = ROW_BYTES[self.kind]
        return int(np.prod(self.shape, dtype=object)) // size * width


def gguf_tensors(a: Architecture, row: GgufFamily, scheme: Scheme, source: str) -> list[GgufTensor]:
    """Every tensor of the file, in forward order; ``source`` names the model in errors.

    Raises:
        BadInputError: a packed matrix is not whole blocks, or llama.cpp has no such tensor.
    """
    kinds = {module: kind for layer in a.layers for module, kind in _modules(layer, row).items()}
    kinds |= {a.embedding: "TOKEN_EMBD", a.final_norm.module: "OUTPUT_NORM", a.head: "OUTPUT"}
    groups: dict[str, list[TensorSpec]] = {}
    for spec in a.tensors():
        module, _, part = spec.name.rpartition(".")
        groups.setdefault(f"{_name(kinds[module], spec, row, source)}.{part}", []).append(spec)
    if row.own_head and a.tie_word_embeddings:
        embedding = a.by_name[a.embedding + ".weight"]
        groups[f"{_name('OUTPUT', embedding, row, source)}.weight"] = [embedding]
    return [_tensor(name, specs, a, row, scheme, source) for name, specs in groups.items()]


def _modules(layer: Layer, row: GgufFamily) -> dict[str, str]:
    """Module names of a layer and the ``gguf.MODEL_TENSOR`` that each becomes a part of."""
    x = layer.attention
    assert isinstance(x, Attention)
    qkv = ("ATTN_QKV",) * 3 if row.fused_qkv else ("ATTN_Q", "ATTN_K", "ATTN_V")
    names = {x.q: qkv[0], x.k: qkv[1], x.v: qkv[2], x.o: "ATTN_OUT"}
    norms = (
        (x.q_norm, "ATTN_Q_NORM"), (x.k_norm, "ATTN_K_NORM"),
        (layer.attention_norm, "ATTN_NORM"), (layer.attention_post_norm, "ATTN_POST_NORM"),
        (layer.feed_forward_norm, "FFN_NORM"), (layer.feed_forward_post_norm, "FFN_POST_NORM"),
    )  # fmt: skip
    names |= {norm.module: kind for norm, kind in norms if norm}
    if dense := layer.dense:
        gate = "FFN_UP" if row.fused_gate_up else "FFN_GATE"
        names |= {dense.gate: gate, dense.up: "FFN_UP", dense.down: "FFN_DOWN"}
    if mixture := layer.mixture:
        names[mixture.router] = "FFN_GATE_INP"
        for projection, _ in mixture.expert_names:
            for e in range(mixture.num_experts):
                names[mixture.expert(e, projection)] = f"FFN_{projection.upper()}_EXP"
        if shared := mixture.shared:
            names |= {shared.gate: "FFN_GATE_SHEXP", shared.up: "FFN_UP_SHEXP",
                      shared.down: "FFN_DOWN_SHEXP"}  # fmt: skip
        if mixture.shared_gate:
            names[mixture.shared_gate] = "FFN_GATE_INP_SHEXP"
    return names


def _name(kind: str, spec: TensorSpec, row: GgufFamily, source: str) -> str:
    import gguf

    template = gguf.TENSOR_NAMES[gguf.MODEL_TENSOR[kind]]
    known = {gguf.TENSOR_NAMES[t] for t in gguf.MODEL_TENSORS[gguf.MODEL_ARCH[row.arch]]}
    if template not in known:
        raise BadInputError(
            f"{source}: llama.cpp's {row.arch} has no place for {spec.name}; use `edgekit compile`"
        )
    return str(template.format(bid=spec.layer))


def _tensor(
    name: str, specs: list[TensorSpec], a: Architecture, row: GgufFamily, scheme: Scheme,
    source: str,
) -> GgufTensor:  # fmt: skip
    first = specs[0]
    packing = scheme.packing(first)
    if packing and (first.shape[1] % BLOCK or packing.group_size % BLOCK):
        raise BadInputError(
            f"{source}: {first.name} has {first.shape[1]} inputs, which are not whole GGUF blocks "
            f"of {BLOCK}; quantize the model with --scheme none to export it"
        )
    kind = f"Q{packing.bits}_0" if packing else "F32" if first.role in FLOAT32_ROLES else "F16"
    shape: tuple[int, ...] = first.shape
    if first.role == "expert":
        shape = (len(specs), *first.shape)
    elif len(specs) > 1:
        shape = (sum(s.shape[0] for s in specs), *first.shape[1:])
    tensor = GgufTensor(name, kind, shape, tuple(specs))
    if first.role == "norm":
        return replace(tensor, plus=float(a.final_norm.unit_offset))
    return _with_neighbours(tensor, a, row)


def _with_neighbours(tensor: GgufTensor, a: Architecture, row: GgufFamily) -> GgufTensor:
    """Queries and keys that rotate halves, where llama.cpp rotates neighbours."""
    first = tensor.specs[0]
    if first.layer < 0:
        return tensor
    x = a.layers[first.layer].attention
    assert isinstance(x, Attention)
    heads = {x.q: x.num_heads, x.k: x.num_key_value_heads}.get(first.name.rpartition(".")[0], 0)
    if not heads or x.rope is None or x.rope.interleaved == row.neighbours:
        return tensor
    return replace(tensor, heads=heads, rotated=x.rope.dimensions)


def neighbour_order(rows: int, heads: int, rotated: int) -> NDArray[np.intp]:
    """Row numbers of halves (head, half, pair) in the order (head, pair, half).

    Rows of a head beyond the ``rotated`` ones stay.
    """
    order = np.arange(rows).reshape(heads, rows // heads)
    pairs = order[:, :rotated].reshape(heads, 2, rotated // 2).swapaxes(1, 2)
    return np.concatenate([pairs.reshape(heads, rotated), order[:, rotated:]], 1).reshape(-1)


def tensor_chunks(
    tensor: GgufTensor, file: TensorFile, scheme: Scheme
) -> Iterator[tuple[int, NDArray[Any]]]:
    """The tensor's data in order: elements and stored form of some rows at a time."""
    for spec in tensor.specs:
        rows = spec.shape[0]
        columns = spec.shape[1] if len(spec.shape) > 1 else 1
        order = np.arange(rows)
        if tensor.heads:
            order = neighbour_order(rows, tensor.heads, tensor.rotated)
        step = max(1, ELEMENTS_AT_ONCE // columns)
        for start in range(0, rows, step):
            chosen = order[start : start + step]
            yield len(chosen) * columns, _stored(tensor, spec, file, scheme, chosen)


def _stored(
    tensor: GgufTensor, spec: TensorSpec, file: TensorFile, scheme: Scheme,
    chosen: NDArray[np.intp],
) -> NDArray[Any]:  # fmt: skip
    packing = scheme.packing(spec)
    if packing is None:
        values = file.array(spec.name)[chosen]
        return values + np.float32(tensor.plus) if tensor.plus else values
    packed, scales = (file.array(spec.name + part)[chosen] for part in ("_packed", "_scale"))
    return _blocks(packed, np.repeat(scales, packing.group_size // BLOCK, axis=1), packing.bits)


def _blocks(packed: NDArray[np.int32], scales: NDArray[np.float16], bits: int) -> NDArray[Any]:
    """Q4_0 or Q8_0 blocks of rows; ``scales`` has one per block."""
    codes = unpack(packed, bits).reshape(*scales.shape, BLOCK)
    half = BLOCK // 2
    width = half if bits == 4 else BLOCK
    blocks = np.empty(scales.shape, np.dtype([("scale", "<f2"), ("codes", "u1", width)]))
    blocks["scale"] = scales
    # a signed byte is an unsigned one with zero point 128 whose top bit is flipped
    blocks["codes"] = (
        codes[..., :half] | codes[..., half:] << 4 if bits == 4 else codes ^ np.uint8(128)
    )
    return blocks
