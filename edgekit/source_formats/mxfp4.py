"""MXFP4 experts as gpt-oss stores them (OCP Microscaling formats, E2M1 elements, E8M0 scales).

    X_blocks  U8 [E, R, G, 16]  two elements in a byte, the low half first, 32 elements in a block
    X_scales  U8 [E, R, G]      exponent of the block's scale, bias 127

    w[e, k, r] = element(e, r, k) * 2 ** (scale[e, r, k // 32] - 127)

The model multiplies with the transposed matrix, [E, K, R], and so does transformers when it
dequantizes: that is the logical tensor. For ``gate_up_proj`` the columns R alternate between gate
and up.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from edgekit.config_values import ConfigReader
from edgekit.source_formats.floats import lookup, to_float32
from edgekit.source_formats.settings import exclusions
from edgekit.source_formats.stored import Float, StoredTensor, Tensors

BYTES_PER_BLOCK = 16
E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)
PAIRS = np.stack([E2M1[np.arange(256) & 15], E2M1[np.arange(256) >> 4]], axis=1)  # [256, 2]


def find_mxfp4(tensors: Tensors, settings: ConfigReader) -> Iterator[StoredTensor]:
    """The expert tensors of a checkpoint with ``quant_method`` "mxfp4"."""
    excluded = exclusions(settings, "modules_to_not_convert")
    for blocks in tensors:
        if blocks.endswith("_blocks"):
            excluded.check(tensors, blocks)
            yield _mxfp4_tensor(tensors, blocks)


def _mxfp4_tensor(tensors: Tensors, blocks: str) -> Mxfp4Tensor:
    name = blocks.removesuffix("_blocks")
    scales = tensors.partner(blocks, name + "_scales")
    shape = tensors.info(blocks).shape
    if len(shape) != 4 or shape[3] != BYTES_PER_BLOCK:
        raise tensors.bad(
            blocks,
            f"has shape {list(shape)}, expected [experts, rows, groups, {BYTES_PER_BLOCK}]; "
            "download the checkpoint again",
        )
    tensors.expect(blocks, ("U8",), shape)
    tensors.expect(scales.name, ("U8", "F8_E8M0"), shape[:3])
    return Mxfp4Tensor(tensors, name, blocks, scales.name)


class Mxfp4Tensor(StoredTensor):
    """The experts of one projection, [E, K, R]."""

    def __init__(self, tensors: Tensors, name: str, blocks: str, scales: str) -> None:
        experts, rows, groups, size = tensors.info(blocks).shape
        shape = (experts, groups * size * 2, rows)
        super().__init__(tensors, name, shape, "mxfp4", (blocks, scales))

    def decode(self, start: int, stop: int) -> Float:
        """Experts ``start`` to ``stop``, a transposed view of [experts, R, K] in memory."""
        blocks, scales = (self.tensors.array(part)[start:stop] for part in self.parts)
        values = lookup(PAIRS, blocks).reshape(*scales.shape, 2 * BYTES_PER_BLOCK)
        values *= to_float32(scales, "F8_E8M0")[..., None]
        return values.reshape(len(values), self.shape[2], self.shape[1]).transpose(0, 2, 1)
