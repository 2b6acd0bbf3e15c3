"""Where every tensor of a quantized checkpoint lies, and which schemes a model's shapes allow."""

from __future__ import annotations

from collections.abc import Iterator

from edgekit.architecture import TensorSpec, TensorTable
from edgekit.errors import BadInputError
from edgekit.scheme import CONSTANTS, CONSTANTS_BYTES, Scheme, float_dtype
from edgekit.tensorfile import TensorInfo


def misfit(architecture: TensorTable, scheme: Scheme) -> TensorSpec | None:
    """The first matrix that ``scheme`` cannot store; packed rows are whole 32-bit words."""
    for spec in architecture.tensors():
        packing = scheme.packing(spec)
        if packing and (spec.shape[1] % packing.group_size or spec.shape[1] * packing.bits % 32):
            return spec
    return None


def check_groups(architecture: TensorTable, scheme: Scheme, source: str) -> None:
    """Refuse a group size that does not divide every input dimension.

    Raises:
        BadInputError: names the first such matrix and the schemes that fit.
    """
    names = ("int4-g128", "int4-g64", "int4-g32", "int4-channel")
    if not (bad := misfit(architecture, scheme)):
        return
    fitting = [n for n in names if not misfit(architecture, Scheme.parse(n))]
    raise BadInputError(
        f"{source}: {bad.name} has {bad.shape[1]} inputs, which the group of {scheme.name} does "
        f"not divide; use {' or '.join(fitting) or 'none'}"
    )


def layout(architecture: TensorTable, scheme: Scheme) -> Iterator[TensorInfo]:
    """Tensors in file order.

    Matrices that a runtime can multiply as one lie side by side, codes then scales: the experts of
    a projection, and the query, key and value projections of a layer.
    """
    groups: dict[tuple[int, str] | str, list[TensorSpec]] = {}
    for spec in architecture.tensors():
        groups.setdefault(_neighbours(spec), []).append(spec)
    shapes: list[TensorInfo] = []
    for specs in groups.values():
        packing = scheme.packing(specs[0])
        if packing is None:
            yield from (TensorInfo(s.name, float_dtype(s, scheme), s.shape) for s in specs)
            continue
        columns = specs[0].shape[1]
        words, blocks = columns * packing.bits // 32, columns // packing.group_size
        yield from (TensorInfo(s.name + "_packed", "I32", (s.shape[0], words)) for s in specs)
        yield from (TensorInfo(s.name + "_scale", "F16", (s.shape[0], blocks)) for s in specs)
        shapes += [TensorInfo(s.name + "_shape", "I64", (2,)) for s in specs]
    yield from shapes
    yield TensorInfo(CONSTANTS, "U8", (CONSTANTS_BYTES,))


def _neighbours(spec: TensorSpec) -> tuple[int, str] | str:
    """What a matrix shares with those that it lies beside."""
    if spec.role == "expert":
        return spec.layer, spec.projection
    return (spec.layer, "qkv") if spec.projection in ("q", "k", "v") else spec.name
