"""Float8 weights with scales, as DeepSeek-V3, Qwen3-FP8 and compressed-tensors store them.

    X        F8_E4M3 or F8_E5M2 [N, K], or [E, N, K] for experts in one tensor
    X_scale_inv or X_scale      [ceil(N / rows), ceil(K / columns)], one scale per block

    w[n, k] = X[n, k] * scale[n // rows, k // columns]

Both names multiply: "inv" is the inverse of the factor that was used for quantizing. A scale per
tensor is a block of [N, K], a scale per output channel one of [1, K].
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from edgekit.config_values import ConfigReader
from edgekit.source_formats.floats import FLOAT8_WEIGHTS, SCALE_DTYPES, to_float32
from edgekit.source_formats.settings import exclusions
from edgekit.source_formats.stored import Float, StoredTensor, Tensors, ceil_divide

Block = tuple[int, int]


def find_fp8(tensors: Tensors, settings: ConfigReader) -> Iterator[StoredTensor]:
    """The float8 weights of a checkpoint with ``quant_method`` "fp8"."""
    block = read_block(settings, "weight_block_size")
    excluded = exclusions(settings, "modules_to_not_convert")
    for name in tensors:
        if tensors.info(name).dtype in FLOAT8_WEIGHTS:
            excluded.check(tensors, name)
            yield float8_tensor(tensors, name, block)


def read_block(settings: ConfigReader, key: str) -> Block | None:
    """Two positive sizes ``[rows, columns]``; None when the key is missing or null."""
    value = settings.config.get(key)
    if value is None:
        return None
    if not (
        isinstance(value, list | tuple)
        and len(value) == 2
        and all(type(size) is int and size > 0 for size in value)
    ):
        raise settings.bad(key, f"is {value!r}, expected two positive sizes such as [128, 128]")
    return value[0], value[1]


def float8_tensor(tensors: Tensors, name: str, block: Block | None) -> Float8Tensor:
    """The logical tensor of float8 ``name``; without ``block``, a scale per tensor or channel."""
    info = tensors.info(name)
    scale = tensors.partner(name, name + "_scale_inv", name + "_scale")
    if len(info.shape) not in (2, 3):
        raise tensors.bad(
            name, f"is float8 of shape {list(info.shape)}, expected a matrix; give it in bfloat16"
        )
    rows, columns = info.shape[-2:]
    for candidate in [block] if block else [(rows, columns), (1, columns)]:
        grid = _grid(info.shape, candidate)
        if _without_trailing_ones(scale.shape) == _without_trailing_ones(grid):
            tensors.expect(scale.name, SCALE_DTYPES, scale.shape)
            return Float8Tensor(tensors, name, scale.name, candidate)
    wanted = f"blocks of {list(block)} need" if block else "one scale per output channel needs"
    grid = _grid(info.shape, block or (1, columns))
    raise tensors.bad(
        scale.name,
        f"has shape {list(scale.shape)} but {list(info.shape)} in {wanted} {list(grid)}; config "
        "and weights do not belong together, download the checkpoint again",
    )


class Float8Tensor(StoredTensor):
    """Float8 numbers and a scale per block."""

    def __init__(self, tensors: Tensors, name: str, scale: str, block: Block) -> None:
        info = tensors.info(name)
        super().__init__(tensors, name, info.shape, FLOAT8_WEIGHTS[info.dtype], (name, scale))
        self.block = block

    def decode(self, start: int, stop: int) -> Float:
        """See :class:`StoredTensor`."""
        name, scale = self.parts
        values = to_float32(self.tensors.array(name)[start:stop], self.tensors.info(name).dtype)
        scales = to_float32(self.tensors.array(scale), self.tensors.info(scale).dtype)
        scales = scales.reshape(_grid(self.shape, self.block))
        if len(self.shape) == 2:
            _multiply(values, scales, self.block, start)
        else:
            for matrix, grid in zip(values, scales[start:stop], strict=True):
                _multiply(matrix, grid, self.block, 0)
        return values


def _grid(shape: tuple[int, ...], block: Block) -> tuple[int, ...]:
    """How many blocks there are along each axis; the last block of an axis may be partial."""
    rows, columns = shape[-2:]
    # a matrix without entries has blocks of no size
    return (
        *shape[:-2],
        ceil_divide(rows, max(1, block[0])),
        ceil_divide(columns, max(1, block[1])),
    )


def _without_trailing_ones(shape: tuple[int, ...]) -> tuple[int, ...]:
    """[N, 1] and [N] say the same, as do [1, 1], [1] and []."""
    kept = list(shape)
    while kept and kept[-1] == 1:
        kept.pop()
    return tuple(kept)


def _multiply(values: Float, grid: Float, block: Block, start: int) -> None:
    """Scale ``values`` in place, which are the rows from ``start`` of a matrix of blocks."""
    height, width = block
    stop = start + len(values)
    if grid.shape[1] == 1:  # one factor per row
        rows = np.arange(start, stop) // height
        values *= grid[rows]
        return
    for index in range(start // height, ceil_divide(stop, height)):
        part = values[max(0, index * height - start) : (index + 1) * height - start]
        part *= np.repeat(grid[index], width)[: values.shape[1]]
