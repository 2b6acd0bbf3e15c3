"""Write a quantized checkpoint: compressed-tensors ``pack-quantized``, whatever its size.

The layout of the file is known before the first weight is read (:mod:`edgekit.layout`), so every
piece goes to its place as soon as it is done. A piece is a tensor, or some rows of a large one;
each thread reads one, quantizes and packs it, writes it, and forgets it. Memory holds the pieces in
flight, never the model. The last tensor, ``edgekit.constants``, is room for the small constants of
the OpenVINO graph.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from edgekit.architecture import Architecture, TensorSpec, TensorTable
from edgekit.checkpoint import WEIGHTS, Checkpoint, copy_tokenizer
from edgekit.errors import BadInputError
from edgekit.layout import check_groups, layout
from edgekit.nested import stored_sizes
from edgekit.progress import Progress
from edgekit.quantize.codes import Method, NotFiniteError, pack, pack_matrix, quantize_matrix
from edgekit.quantize.threads import bounded_map
from edgekit.scheme import CONSTANTS, CONSTANTS_BYTES, Packing, Scheme, float_dtype
from edgekit.source_weights import Codes
from edgekit.tensorfile import DTYPES, TensorFileWriter

PIECE_ELEMENTS = 1 << 22  # a tensor of more goes in pieces of this size, 16 MB of float32


@dataclass(frozen=True)
class QuantizeReport:
    """What was written. ``relative_error`` is ||w - q||^2 / ||w||^2 over all packed matrices.

    ``taken_over`` parameters kept the integers that the checkpoint had.
    """

    scheme: str
    method: str
    parameters: int
    taken_over: int
    size_bytes: int
    bits_per_weight: float
    relative_error: float


def quantize(
    model: Path, scheme: Scheme, out: Path, progress: Progress, method: Method = "mse",
    family: str = "",
) -> QuantizeReport:  # fmt: skip
    """Quantize the checkpoint ``model`` into the existing, empty directory ``out``.

    ``family`` reads a checkpoint of an unknown ``model_type`` as one of that family.

    Raises:
        BadInputError: the checkpoint is damaged or quantized already, holds NaN or infinity, says
            that sizes are nested in it which cannot be, or an input dimension does not divide by
            the group.
    """
    source = str(model / "config.json")
    with Checkpoint(model, family) as checkpoint:
        stored_sizes(checkpoint.config, checkpoint.architecture, source)
        check_groups(checkpoint.architecture, scheme, source)
        report = write_weights(checkpoint, scheme, out / WEIGHTS, progress, method)
        config = quantized_config(checkpoint.config, checkpoint.architecture, scheme)
    text = json.dumps(config, indent=2, ensure_ascii=False) + "\n"
    (out / "config.json").write_text(text, encoding="utf-8")
    copy_tokenizer(model, out)
    return report


class FloatTensors(Protocol):
    """What is quantized: an opened checkpoint."""

    @property
    def path(self) -> Path:
        """Names it in errors."""

    @property
    def architecture(self) -> TensorTable:
        """Its tensors."""

    def float32(self, name: str, rows: slice | None = None) -> NDArray[np.float32]:
        """One tensor as float32, or some of its rows."""

    def codes(self, name: str, rows: slice | None = None) -> Codes | None:
        """The integers of a matrix, or of its rows, if it is stored in edgekit's form."""


def write_weights(
    checkpoint: FloatTensors, scheme: Scheme, path: Path, progress: Progress, method: Method = "mse"
) -> QuantizeReport:
    """Write the weights file ``path``.

    Raises:
        BadInputError: a tensor holds NaN or infinity.
    """
    total = sum(spec.parameters for spec in checkpoint.architecture.tensors())
    taken, error, weight = 0, 0.0, 0.0
    with (
        TensorFileWriter(path, layout(checkpoint.architecture, scheme), {"format": "pt"}) as writer,
        progress.task(f"quantize to {scheme.name}", total) as task,
    ):
        conversion = _Conversion(checkpoint, writer, scheme, method)
        with closing(bounded_map(conversion.convert, conversion.pieces())) as results:
            for count, kept, lost, norm in results:
                taken, error, weight = taken + kept, error + lost, weight + norm
                task.advance(count)
        writer.write(CONSTANTS, np.zeros(CONSTANTS_BYTES, np.uint8))
    size = path.stat().st_size
    lost = error / weight if weight else 0.0
    return QuantizeReport(scheme.name, method, total, taken, size, 8 * size / total, lost)


@dataclass(frozen=True)
class _Piece:
    """A tensor, or its rows from ``first_row`` to before ``end``."""

    spec: TensorSpec
    first_row: int | None = None
    end: int | None = None

    @property
    def range(self) -> slice | None:
        """The rows; None for all."""
        return None if self.first_row is None else slice(self.first_row, self.end)


class _Conversion:
    """What the threads share: where weights come from, where they go, and how they change."""

    def __init__(
        self, checkpoint: FloatTensors, writer: TensorFileWriter, scheme: Scheme, method: Method
    ) -> None:
        self.checkpoint = checkpoint
        self.writer = writer
        self.scheme = scheme
        self.method = method

    def pieces(self) -> Iterator[_Piece]:
        """All tensors in forward order, the large ones in rows."""
        for spec in self.checkpoint.architecture.tensors():
            # what is stored otherwise is read as one: its rows need not lie together
            if spec.parameters <= PIECE_ELEMENTS or not spec.source.whole:
                yield _Piece(spec)
                continue
            step = max(1, PIECE_ELEMENTS * spec.shape[0] // spec.parameters)
            for start in range(0, spec.shape[0], step):
                yield _Piece(spec, start, start + step)

    def convert(self, piece: _Piece) -> tuple[int, int, float, float]:
        """Write ``piece``; returns its elements, how many kept their integers, and of the others
        that are packed ||w - q||^2 and ||w||^2."""
        spec = piece.spec
        packing = self.scheme.packing(spec)
        if packing and (count := self._take_over(piece, packing)):
            return count, count, 0.0, 0.0
        values = self.checkpoint.float32(spec.name, piece.range)
        if packing is None:
            self._write_floats(piece, values)
            return values.size, 0, 0.0, 0.0
        try:
            packed = pack_matrix(values, packing, self.method)
        except NotFiniteError:
            raise self._not_finite(spec) from None
        self._write_packed(piece, packed.words, packed.scales)
        return values.size, 0, packed.squared_error, packed.squared_norm

    def _take_over(self, piece: _Piece, packing: Packing) -> int:
        """Write the integers that the checkpoint has, where they fit; returns how many."""
        stored = self.checkpoint.codes(piece.spec.name, piece.range)
        if stored is None or stored.bits != packing.bits:
            return 0
        stored = stored.regrouped(packing.group_size)
        if stored is None:
            return 0
        self._write_packed(piece, pack(stored.codes, stored.bits), stored.scales)
        return stored.codes.size

    def _write_packed(
        self, piece: _Piece, words: NDArray[np.int32], scales: NDArray[np.float16]
    ) -> None:
        spec = piece.spec
        self.writer.write(spec.name + "_packed", words, piece.first_row)
        self.writer.write(spec.name + "_scale", scales, piece.first_row)
        if not piece.first_row:
            self.writer.write(spec.name + "_shape", np.array(spec.shape, np.int64))

    def _write_floats(self, piece: _Piece, values: NDArray[np.float32]) -> None:
        if not np.isfinite(values).all():
            raise self._not_finite(piece.spec)
        dtype = DTYPES[float_dtype(piece.spec, self.scheme)][1]
        self.writer.write(piece.spec.name, values.astype(dtype, copy=False), piece.first_row)

    def _not_finite(self, spec: TensorSpec) -> BadInputError:
        return BadInputError(
            f"{self.checkpoint.path}: tensor {spec.name!r} holds NaN or infinity; the checkpoint "
            "is broken, train or download it again"
        )


def fake_quantized(
    values: NDArray[np.float32], packing: Packing, method: Method = "mse"
) -> NDArray[np.float32]:
    """The matrix [N, K] that the packed form of ``values`` stands for."""
    step = max(1, PIECE_ELEMENTS // values.shape[1])

    def one(start: int) -> NDArray[np.float32]:
        codes, scales = quantize_matrix(values[start : start + step], packing, method)
        signed = codes.astype(np.float32) - packing.zero_point
        grouped = signed.reshape(*scales.shape, packing.group_size)
        return (grouped * scales.astype(np.float32)[..., None]).reshape(codes.shape)

    with closing(bounded_map(one, range(0, len(values), step))) as parts:
        return np.concatenate(list(parts))


def quantized_config(
    config: Mapping[str, Any], architecture: Architecture, scheme: Scheme
) -> dict[str, Any]:
    """``config.json`` of the quantized checkpoint, as transformers and vLLM read it.

    Keys of others stay, among them the nested sizes (:data:`edgekit.nested.NESTED`).
    """
    result = {**config, "dtype": "float16"}
    result.pop("torch_dtype", None)
    if scheme.bits == 16:
        return {**result, "edgekit_scheme": scheme.name}
    unpacked = [
        spec.name.removesuffix(".weight")
        for spec in architecture.tensors()
        if spec.role in ("router", "vector", "latent") and len(spec.shape) == 2
    ]
    wide = ["Embedding"] if architecture.tie_word_embeddings else ["Embedding", "re:.*lm_head$"]
    ignored = [*unpacked, *(["lm_head"] if architecture.tie_word_embeddings else [])]
    result["quantization_config"] = quantization_settings(scheme, wide, ignored)
    return result


def quantization_settings(
    scheme: Scheme, wide: Sequence[str], ignored: Sequence[str]
) -> dict[str, Any]:
    """``quantization_config``: ``wide`` targets are 8-bit, ``ignored`` modules not packed."""
    return {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "ignore": list(ignored),
        "config_groups": {
            "group_0": _group(["Linear"], scheme.bits, scheme.group_size),
            "group_1": _group(wide, 8, scheme.group_size),
        },
        "edgekit_scheme": scheme.name,
    }


def _group(targets: Sequence[str], bits: int, group_size: int) -> dict[str, Any]:
    weights: dict[str, Any] = {
        "num_bits": bits,
        "type": "int",
        "symmetric": True,
        "strategy": "group" if group_size else "channel",
        "dynamic": False,
    }
    if group_size:
        weights["group_size"] = group_size
    return {"targets": list(targets), "weights": weights, "format": "pack-quantized"}
