"""Quantized source checkpoints in small, packed by the formats' own packages or definitions."""

import struct

import numpy as np
import torch
from safetensors.torch import save_file

from edgekit.source_weights import SourceWeights
from edgekit.tensorfile import TensorFile

MODULE = "model.layers.0.mlp.up_proj"
WEIGHT = MODULE + ".weight"
FP8 = {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [128, 128]}
MXFP4 = {
    "quant_method": "mxfp4",
    "modules_to_not_convert": ["model.layers.*.self_attn", "model.layers.*.mlp.router", "lm_head"],
}
EXPERTS = "model.layers.0.mlp.experts.gate_up_proj"
GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": False, "sym": True}
AWQ = {"quant_method": "awq", "bits": 4, "group_size": 32, "zero_point": True, "version": "gemm"}


def packed_config(bits=4, group_size=32, symmetric=True, form="pack-quantized", **changes):
    weights = {
        "num_bits": bits,
        "type": "int",
        "symmetric": symmetric,
        "strategy": "group" if group_size else "channel",
        "group_size": group_size,
        **changes,
    }
    return {
        "quant_method": "compressed-tensors",
        "format": form,
        "ignore": ["lm_head"],
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}},
    }


def open_weights(directory, tensors, quantization=None, **config):
    """The tensors as they are read from a file of them, written into ``directory``."""
    path = directory / f"{len(list(directory.iterdir()))}.safetensors"
    save_file({name: value.clone().contiguous() for name, value in tensors.items()}, path)
    if quantization is not None:
        config["quantization_config"] = quantization
    file = TensorFile(path)
    return SourceWeights(config, dict.fromkeys(file.tensors, file))


def generator(seed=0):
    return np.random.default_rng(seed)


def same(found, expected):
    """Equal bit by bit, and float32; NaN equals NaN."""
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, np.asarray(expected))


def float8(rng, *shape, dtype=torch.float8_e4m3fn):
    return torch.from_numpy(rng.normal(size=shape).astype(np.float32)).to(dtype)


def scale_of(rng, *shape, dtype=torch.float32):
    return torch.from_numpy(rng.uniform(0.5, 2, shape).astype(np.float32)).to(dtype)


def mxfp4(rng, experts=3, rows=10, groups=2, low=100, high=150):
    blocks = rng.integers(0, 256, (experts, rows, groups, 16), np.uint8)
    scales = rng.integers(low, high, (experts, rows, groups), np.uint8)
    return torch.from_numpy(blocks), torch.from_numpy(scales)


def packed_parts(rng, rows, columns, bits, groups, symmetric=True, scale_dtype=torch.float32):
    """The parts of one matrix, packed by the package, and the state that it decompresses."""
    from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32

    low = -(1 << (bits - 1))
    signed = torch.from_numpy(rng.integers(low, -low, (rows, columns), np.int8))
    zero = torch.from_numpy(rng.integers(low, -low, (rows, groups), np.int8))
    state = {
        "weight_packed": pack_to_int32(signed, bits),
        "weight_scale": (scale_of(rng, rows, groups) / 16).to(scale_dtype),
        "weight_shape": torch.tensor([rows, columns]),
    }
    if not symmetric:
        state["weight_zero_point"] = pack_to_int32(zero, bits, packed_dim=0)
    return signed, zero, state


def stored(state):
    return {f"{MODULE}.{name}": value for name, value in state.items()}


def to_words(numbers, bits):
    """int32 from lists of 32 / bits numbers, the first one in the lowest bits."""
    per_word = 32 // bits
    words = []
    for start in range(0, len(numbers), per_word):
        word = sum(int(v) << (bits * i) for i, v in enumerate(numbers[start : start + per_word]))
        words.append(struct.unpack("<i", struct.pack("<I", word))[0])
    return words


def gptq_parts(codes, zeros, scales, bits=4, less_one=True, g_idx=None):
    """``codes`` [N, K], ``zeros`` and ``scales`` [N, G] as GPTQ stores them, by its definition."""
    qweight = np.array([to_words(row, bits) for row in codes], np.int32).T
    shifted = (zeros - 1 if less_one else zeros) % (1 << bits)
    parts = {
        "qweight": torch.from_numpy(qweight.copy()),
        "qzeros": torch.tensor([to_words(row, bits) for row in shifted.T], dtype=torch.int32),
        "scales": torch.from_numpy(scales.T.copy()),
    }
    if g_idx is not None:
        parts["g_idx"] = torch.from_numpy(g_idx.astype(np.int32))
    return {f"{MODULE}.{name}": value for name, value in parts.items()}


AWQ_NIBBLES = (0, 2, 4, 6, 1, 3, 5, 7)  # output of each nibble, from the lowest


def awq_parts(codes, zeros, scales):
    """``codes`` [N, K], ``zeros`` and ``scales`` [N, G] as AutoAWQ's gemm stores them."""

    def shuffled(outputs):
        return [
            outputs[start + place] for start in range(0, len(outputs), 8) for place in AWQ_NIBBLES
        ]

    return {
        MODULE + ".qweight": torch.tensor([to_words(shuffled(c), 4) for c in codes.T]).int(),
        MODULE + ".qzeros": torch.tensor([to_words(shuffled(c), 4) for c in zeros.T]).int(),
        MODULE + ".scales": torch.from_numpy(scales.T.copy()),
    }


def integers(rng, rows, columns, groups, bits=4, symmetric=False):
    codes = rng.integers(0, 1 << bits, (rows, columns))
    zeros = rng.integers(1, 1 << bits, (rows, groups))
    if symmetric:
        zeros[:] = 1 << (bits - 1)
    return codes, zeros, rng.uniform(0.01, 0.1, (rows, groups)).astype(np.float16)
