"""Write a quantized checkpoint: compressed-tensors ``pack-quantized``, one tensor at a time.

The layout of the file is what the runtimes read in place (:mod:`edgekit.scheme`). The last tensor,
``edgekit.constants``, is room for the small constants of the OpenVINO graph.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekit.architecture import Architecture, TensorSpec
from edgekit.checkpoint import WEIGHTS, Checkpoint, copy_tokenizer
from edgekit.errors import BadInputError
from edgekit.layout import check_groups, layout
from edgekit.progress import Progress
from edgekit.quantize.codes import Method, pack, quantize_matrix
from edgekit.scheme import CONSTANTS, CONSTANTS_BYTES, Packing, Scheme, float_dtype, unpack
from edgekit.tensorfile import DTYPES, TensorFileWriter

ROWS_AT_ONCE = 1 << 20  # elements of one slice; bounds the working memory of the search
Packed = tuple[NDArray[np.int32], NDArray[np.float16]]


@dataclass(frozen=True)
class QuantizeReport:
    """What was written. ``relative_error`` is ||w - q||^2 / ||w||^2 over all packed matrices."""

    scheme: str
    method: str
    parameters: int
    size_bytes: int
    bits_per_weight: float
    relative_error: float


def quantize(
    model: Path, scheme: Scheme, out: Path, progress: Progress, method: Method = "mse"
) -> QuantizeReport:
    """Quantize the checkpoint ``model`` into the existing, empty directory ``out``.

    Raises:
        BadInputError: the checkpoint is damaged or quantized already, holds NaN or infinity, or
            an input dimension does not divide by the group.
    """
    with Checkpoint(model) as checkpoint:
        architecture = checkpoint.architecture
        check_groups(architecture, scheme, str(model / "config.json"))
        tensors = list(layout(architecture, scheme))
        total = architecture.parameters()
        error = weight = 0.0
        with (
            TensorFileWriter(out / WEIGHTS, tensors, {"format": "pt"}) as writer,
            progress.task(f"quantize to {scheme.name}", total) as task,
        ):
            for spec in checkpoint.specs:
                values = _finite(checkpoint, spec)
                packing = scheme.packing(spec)
                if packing is None:
                    dtype = DTYPES[float_dtype(spec, scheme)][1]
                    writer.write(spec.name, values.astype(dtype))
                else:
                    (codes, scales), lost = _quantize_rows(values, packing, method)
                    error, weight = error + lost, weight + float(np.vdot(values, values))
                    writer.write(spec.name + "_packed", codes)
                    writer.write(spec.name + "_scale", scales)
                    writer.write(spec.name + "_shape", np.array(spec.shape, np.int64))
                task.advance(spec.parameters)
            writer.write(CONSTANTS, np.zeros(CONSTANTS_BYTES, np.uint8))
        config = quantized_config(checkpoint.config, architecture, scheme)
    text = json.dumps(config, indent=2, ensure_ascii=False) + "\n"
    (out / "config.json").write_text(text, encoding="utf-8")
    copy_tokenizer(model, out)
    size = (out / WEIGHTS).stat().st_size
    return QuantizeReport(
        scheme.name, method, total, size, 8 * size / total, error / weight if weight else 0.0
    )


def _finite(checkpoint: Checkpoint, spec: TensorSpec) -> NDArray[np.float32]:
    values = checkpoint.float32(spec.name)
    if not np.isfinite(values).all():
        raise BadInputError(
            f"{checkpoint.path}: tensor {spec.name!r} holds NaN or infinity; the checkpoint is "
            "broken, train or download it again"
        )
    return values


def _quantize_rows(
    values: NDArray[np.float32], packing: Packing, method: Method
) -> tuple[Packed, float]:
    """Quantize a matrix in row slices on all cores; returns it packed, and the squared error."""
    step = max(1, ROWS_AT_ONCE // values.shape[1])

    def one(start: int) -> tuple[NDArray[np.int32], NDArray[np.float16], float]:
        part = values[start : start + step]
        codes, scales = quantize_matrix(part, packing, method)
        back = (codes.astype(np.float32) - packing.zero_point).reshape(*scales.shape, -1)
        back *= scales.astype(np.float32)[..., None]
        difference = back.reshape(part.shape) - part
        return pack(codes, packing.bits), scales, float(np.vdot(difference, difference))

    with ThreadPoolExecutor() as pool:
        parts = list(pool.map(one, range(0, len(values), step)))
    codes = np.concatenate([p[0] for p in parts])
    scales = np.concatenate([p[1] for p in parts])
    return (codes, scales), sum(p[2] for p in parts)


def fake_quantized(
    values: NDArray[np.float32], packing: Packing, method: Method = "mse"
) -> NDArray[np.float32]:
    """The matrix [N, K] that the packed form of ``values`` stands for."""
    (codes, scales), _ = _quantize_rows(values, packing, method)
    unpacked = unpack(codes, packing.bits).astype(np.float32) - packing.zero_point
    grouped = unpacked.reshape(*scales.shape, packing.group_size)
    return (grouped * scales.astype(np.float32)[..., None]).reshape(values.shape)


def quantized_config(
    config: Mapping[str, Any], architecture: Architecture, scheme: Scheme
) -> dict[str, Any]:
    """``config.json`` of the quantized checkpoint, as transformers and vLLM read it."""
    result = {**config, "dtype": "float16"}
    result.pop("torch_dtype", None)
    if scheme.bits == 16:
        return {**result, "edgekit_scheme": scheme.name}
    unpacked = [
        spec.name.removesuffix(".weight")
        for spec in architecture.tensors()
        if spec.role in ("router", "vector", "latent") and len(spec.shape) == 2
    ]
    groups = {"group_0": _group(["Linear"], scheme.bits, scheme.group_size)}
    wide = ["Embedding"] if architecture.tie_word_embeddings else ["Embedding", "re:.*lm_head$"]
    groups["group_1"] = _group(wide, 8, scheme.group_size)
    result["quantization_config"] = {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "ignore": [*unpacked, *(["lm_head"] if architecture.tie_word_embeddings else [])],
        "config_groups": groups,
        "edgekit_scheme": scheme.name,
    }
    return result


def _group(targets: list[str], bits: int, group_size: int) -> dict[str, Any]:
    weights: dict[str, Any] = {
        "num_bits": bits,
        "type": "int",
        "symmetric": True,
        "strategy": "group" if group_size else "channel",
        "dynamic": False,
    }
    if group_size:
        weights["group_size"] = group_size
    return {"targets": targets, "weights": weights, "format": "pack-quantized"}
