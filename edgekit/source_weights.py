"""The float tensors that a checkpoint's files stand for, whatever form they are stored in.

``quantization_config`` of ``config.json`` says how the weights were made; the reader of that form
(:mod:`edgekit.source_formats`) finds its matrices among the stored tensors, checks the shapes of
all their parts, and puts them under the name that the model knows (``X.qweight``, ``X.qzeros``,
``X.scales`` and ``X.g_idx`` become ``X.weight``). What no reader claims is plain. Data are decoded
when they are asked for, by rows of the first axis.

Matrices whose integers and scales are edgekit's own form exactly can be taken over as codes; the
table is in docs/source-formats.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekit.config_values import ConfigReader
from edgekit.errors import BadInputError
from edgekit.source_formats.awq import find_awq
from edgekit.source_formats.compressed_tensors import find_compressed_tensors
from edgekit.source_formats.float8 import find_fp8
from edgekit.source_formats.floats import FLOAT8_WEIGHTS, PlainTensor
from edgekit.source_formats.gptq import find_gptq
from edgekit.source_formats.integers import Codes, IntegerMatrix
from edgekit.source_formats.mxfp4 import find_mxfp4
from edgekit.source_formats.settings import quantization_settings, unsupported
from edgekit.source_formats.stored import StoredTensor, Tensors
from edgekit.tensorfile import TensorFile

__all__ = ["Codes", "SourceWeights"]

Reader = Callable[[Tensors, ConfigReader], Iterator[StoredTensor]]
READERS: dict[str, Reader] = {
    "awq": find_awq,
    "compressed-tensors": find_compressed_tensors,
    "fp8": find_fp8,
    "gptq": find_gptq,
    "mxfp4": find_mxfp4,
}
# How activations and the cache were quantized; edgekit quantizes weights only.
ACTIVATION_SUFFIXES = (
    ".activation_scale", ".input_global_scale", ".input_scale", ".input_zero_point", ".k_scale",
    ".kv_scale", ".output_scale", ".output_zero_point", ".q_scale", ".v_scale",
)  # fmt: skip
QUANTIZED_SUFFIXES = (".qweight", ".weight_packed", "_blocks", ".weight_scale_inv")


class SourceWeights:
    """The logical tensors of a checkpoint.

    Args:
        config: the raw ``config.json``.
        files: the opened file of each stored tensor; they stay open while this is used.
        source: the name of the config in errors.

    Raises:
        BadInputError: the quantization is not one that edgekit reads, or a part of a quantized
            matrix is missing or of the wrong shape.
    """

    def __init__(
        self,
        config: Mapping[str, Any],
        files: Mapping[str, TensorFile],
        source: str = "config.json",
    ) -> None:
        self._tensors = Tensors(files)
        settings = quantization_settings(config, source)
        self.method = "none" if settings is None else settings.text("quant_method", "")
        self._stored: dict[str, StoredTensor] = {}
        parts: set[str] = set()
        if settings is not None:
            for tensor in _reader(settings)(self._tensors, settings):
                self._claim(tensor)
                parts.update(tensor.parts)
        for name in self._tensors:
            activation = settings is not None and name.endswith(ACTIVATION_SUFFIXES)
            if name not in parts and not activation:
                self._stored[name] = self._plain(name, settings, source)

    def _claim(self, tensor: StoredTensor) -> None:
        plain_too = tensor.name in self._tensors and tensor.name not in tensor.parts
        if plain_too or tensor.name in self._stored:
            raise self._tensors.bad(
                tensor.parts[0],
                f"stands for {tensor.name!r}, which is stored a second time; download the "
                "checkpoint again",
            )
        self._stored[tensor.name] = tensor

    def _plain(self, name: str, settings: ConfigReader | None, source: str) -> StoredTensor:
        if settings is None and (
            name.endswith(QUANTIZED_SUFFIXES) or self._tensors.info(name).dtype in FLOAT8_WEIGHTS
        ):
            raise self._tensors.bad(
                name,
                f"is quantized (float8 or packed) but {source} has no quantization_config; add the "
                "one that the checkpoint was made with, or give the checkpoint in bfloat16",
            )
        return PlainTensor(self._tensors, name)

    def names(self) -> list[str]:
        """The logical tensors.

        A stored tensor that no format claims is among them under its own name, whatever its type,
        so that the architecture can refuse what it does not know.
        """
        return list(self._stored)

    def __contains__(self, name: object) -> bool:
        return name in self._stored

    def _get(self, name: str) -> StoredTensor:
        try:
            return self._stored[name]
        except KeyError:
            raise BadInputError(
                f"tensor {name!r} is missing from the weights; download the checkpoint again"
            ) from None

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of the float tensor."""
        return self._get(name).shape

    def dtype(self, name: str) -> str:
        """Short name of the stored form.

        Plain tensors have the name of safetensors (``BF16``, ``F16``, ``F32``); others one like
        ``fp8-e4m3``, ``mxfp4``, ``int4-g128``, ``int8-channel``, ``gptq-int4-g128``.
        """
        return self._get(name).dtype

    def nbytes(self, name: str) -> int:
        """Bytes in the files, scales and other parts included."""
        return self._get(name).nbytes

    def path(self, name: str) -> Path:
        """The file that holds the tensor's numbers; its other parts may be in another shard."""
        return self._tensors.path(self._get(name).parts[0])

    def float32(self, name: str, rows: slice | None = None) -> NDArray[np.float32]:
        """The tensor, or rows of its first axis (experts, where they are in one tensor).

        Working memory is a small multiple of what is returned. The result may be transposed in
        memory (MXFP4).
        """
        tensor = self._get(name)
        start, stop = _range(tensor, name, rows)
        with np.errstate(over="ignore", invalid="ignore"):  # who uses the weights checks them
            values = tensor.decode(start, stop)
        if not isinstance(tensor, PlainTensor):
            for part in tensor.parts:
                self._tensors.forget(part)
        return values

    def misfit(self, name: str) -> str | None:
        """Why :meth:`codes` gives None, as a clause ("its zero points are not all 8 ..."), or None.

        Reads scales and zero points, not codes.
        """
        tensor = self._get(name)
        if isinstance(tensor, IntegerMatrix):
            return tensor.misfit
        return f"it is stored as {tensor.dtype}, not as integers"

    def codes(self, name: str, rows: slice | None = None) -> Codes | None:
        """The matrix, or rows of it, in edgekit's own form if it is exactly that; else None.

        Where it is not None, ``(codes - 2^(bits-1)) * scales`` equals :meth:`float32` bit by bit.
        """
        tensor = self._get(name)
        if not isinstance(tensor, IntegerMatrix):
            return None
        start, stop = _range(tensor, name, rows)
        codes = tensor.codes(start, stop)
        for part in tensor.parts:
            self._tensors.forget(part)
        return codes


def _range(tensor: StoredTensor, name: str, rows: slice | None) -> tuple[int, int]:
    count = tensor.shape[0] if tensor.shape else 1
    start, stop, step = (rows or slice(None)).indices(count)
    if step != 1:
        raise ValueError(f"rows of {name} are read in order, not with a step of {step}")
    return start, max(start, stop)


def _reader(settings: ConfigReader) -> Reader:
    method = settings.text("quant_method", "")
    if method not in READERS:
        known = ", ".join(READERS)
        raise unsupported(settings, "quant_method", f"is {method!r}, edgekit reads {known}")
    return READERS[method]
