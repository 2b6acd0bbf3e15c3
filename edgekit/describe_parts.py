"""The small pieces that lists of tensors are made of."""

from __future__ import annotations

from collections.abc import Iterator

from edgekit.architecture import Norm, TensorSpec
from edgekit.stored_parts import Part


def own(name: str, shape: tuple[int, ...], role: str, layer: int = -1) -> TensorSpec:
    """A tensor that is stored under its own name."""
    return TensorSpec(name, shape, role, Part(name, shape), layer)


def norm_specs(norm: Norm | None, layer: int = -1) -> Iterator[TensorSpec]:
    if norm is not None and norm.weight:
        yield own(norm.module + ".weight", (norm.size,), "norm", layer)
        if norm.bias:
            yield own(norm.module + ".bias", (norm.size,), "bias", layer)


def matrix(
    module: str, out: int, inputs: int, layer: int, bias: bool = False,
    projection: str = "", source: Part | None = None,
) -> Iterator[TensorSpec]:  # fmt: skip
    """Weight and bias of a module; ``source`` is of the weight, the bias has the same rows."""
    name = module + ".weight"
    part = source or Part(name, (out, inputs))
    yield TensorSpec(name, (out, inputs), "linear", part, layer, projection=projection)
    if bias:
        stored = part.tensor.removesuffix(".weight") + ".bias"
        of_bias = Part(stored, part.shape[:1], index=part.index[:1])
        yield TensorSpec(module + ".bias", (out,), "bias", of_bias, layer)
