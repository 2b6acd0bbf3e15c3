"""Quantization schemes and the packed form that every runtime reads in place.

A quantized checkpoint is compressed-tensors ``pack-quantized``: a matrix ``X`` [N, K] becomes
``X_packed`` int32 [N, K * bits / 32] (unsigned codes, zero point ``2^(bits-1)``, low bits first
along the input dimension), ``X_scale`` float16 [N, K / group_size] and ``X_shape`` int64 [2],
where ``X`` ends in ``weight``. The bytes of ``X_packed`` are those of an OpenVINO ``u4``/``u8``
constant and of ONNX Runtime's ``MatMulNBits``. Experts of one layer and projection lie side by
side in the file, packed codes first, then scales, so that ``[E, N, K / g, g]`` is one constant.

    w[n, k] = (code[n, k] - 2^(bits-1)) * scale[n, k // group_size]
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgekit.architecture import TensorSpec
from edgekit.checkpoint import read_config
from edgekit.errors import BadInputError
from edgekit.source_formats.integers import unpack_words
from edgekit.tensorfile import TensorFile

VARIANT_WEIGHTS = "weights.safetensors"  # of a compiled variant
CONSTANTS = "edgekit.constants"  # U8 tensor: room for the small constants of an OpenVINO graph
CONSTANTS_BYTES = 256 * 1024
FLOAT32_ROLES = ("router", "norm", "bias", "vector")
SCHEMES = ("none", "int8", "int4-g32", "int4-g64", "int4-g128", "int4-channel")


@dataclass(frozen=True)
class Packing:
    """How one matrix is stored: ``bits`` 4 or 8; ``group_size`` inputs share one scale."""

    bits: int
    group_size: int

    @property
    def zero_point(self) -> int:
        """The code that stands for 0."""
        return 1 << (self.bits - 1)


@dataclass(frozen=True)
class Scheme:
    """A named scheme; ``group_size`` 0 means one scale per output channel."""

    name: str
    bits: int  # of linear and expert matrices; 16 for "none"
    group_size: int

    @classmethod
    def parse(cls, name: str) -> Scheme:
        """One of :data:`SCHEMES`; ``BadInputError`` otherwise."""
        if name not in SCHEMES:
            raise BadInputError(
                f"quantization scheme {name!r} is not known; choose one of {', '.join(SCHEMES)}"
            )
        if name == "none":
            return cls(name, 16, 0)
        bits, _, group = name.removeprefix("int").partition("-")
        return cls(name, int(bits), int(group[1:]) if group.startswith("g") else 0)

    def packing(self, spec: TensorSpec) -> Packing | None:
        """How ``spec`` is stored; None for what stays in floating point.

        Linear and expert matrices take the scheme's bits; embedding and head are 8-bit; routers,
        norms and biases are never quantized.
        """
        if self.bits == 16 or spec.role not in ("linear", "expert", "embedding", "head"):
            return None
        bits = 8 if spec.role in ("embedding", "head") else self.bits
        return Packing(bits, self.group_size or spec.shape[1])


def float_dtype(spec: TensorSpec, scheme: Scheme) -> str:
    """Stored dtype of a tensor that is not packed.

    Routers, norms, biases and other vectors are float32, which both runtimes read in place;
    matrices that are not packed are float16.
    """
    return "F32" if spec.role in FLOAT32_ROLES else "F16"


def read_scheme(directory: Path) -> Scheme:
    """The scheme of a quantized checkpoint, from ``quantization_config.edgekit_scheme``.

    A checkpoint written with the scheme "none" says so in ``edgekit_scheme`` at the top level.

    Raises:
        BadInputError: the directory is not a quantized checkpoint written by edgekit.
    """
    config = read_config(directory)
    inner = config.get("quantization_config")
    name = inner.get("edgekit_scheme") if isinstance(inner, dict) else config.get("edgekit_scheme")
    if not isinstance(name, str):
        raise BadInputError(
            f"{directory / 'config.json'}: not a quantized checkpoint of edgekit; run "
            "`edgekit quantize` on the model first"
        )
    return Scheme.parse(name)


def is_quantized(directory: Path) -> bool:
    """Whether a directory holds a quantized checkpoint of edgekit's."""
    config = read_config(directory)
    settings = config.get("quantization_config")
    return "edgekit_scheme" in {**config, **(settings if isinstance(settings, dict) else {})}


def unpack(packed: NDArray[np.int32], bits: int) -> NDArray[np.uint8]:
    """Codes [..., K] as uint8 from packed int32 [..., K * bits / 32]."""
    return unpack_words(packed, bits)


def dequantize(file: TensorFile, name: str, packing: Packing) -> NDArray[np.float32]:
    """The float32 matrix [N, K] that the packed tensor ``name`` stands for."""
    codes = unpack(file.array(name + "_packed"), packing.bits).astype(np.float32)
    scales = file.float32(name + "_scale")
    rows, columns = codes.shape
    grouped = codes.reshape(rows, columns // packing.group_size, packing.group_size)
    values = (grouped - packing.zero_point) * scales[:, :, None]
    return values.reshape(rows, columns)
