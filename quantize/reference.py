"""A quantized checkpoint as other tools read it: the reference of the parity tests.

transformers 5.5 reads packed Linear layers, but no packed Embedding (its weight initialisation
fails on one) and no packed experts (it fuses them into one parameter). ``transformers_checkpoint``
keeps packed what it can read and widens the rest to float16; ``dequantized_checkpoint`` widens all.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekit.architecture import Architecture, TensorSpec
from edgekit.atomic import write_json
from edgekit.checkpoint import INDEX, WEIGHTS, copy_tokenizer, read_config, write_checkpoint
from edgekit.describe import describe
from edgekit.family_table import FAMILIES
from edgekit.nested import NESTED, rows_of
from edgekit.progress import Progress
from edgekit.scheme import dequantize, read_scheme
from edgekit.tensorfile import TensorFile, TensorFileWriter, TensorInfo
from edgekit.variant_files import files_of


def dequantized_checkpoint(quantized: Path, out: Path, progress: Progress) -> None:
    """Write the float32 checkpoint that a quantized one, or a variant, stands for into ``out``.

    Of a nested size's folder: the model of its first experts.
    """
    scheme = read_scheme(quantized)
    config = plain_config(read_config(quantized))
    architecture = describe(config)
    with TensorFile(weights_file(quantized)) as file:

        def tensor(spec: TensorSpec) -> NDArray[np.float32]:
            packing = scheme.packing(spec)
            if packing:
                return dequantize(file, spec.name, packing)
            values = file.float32(spec.name)
            if spec.role != "router":
                return values
            return np.concatenate([values[r] for r in rows_of(len(values), spec, architecture)])

        with progress.task("dequantize", len(architecture.tensors())) as task:
            write_checkpoint(out, config, tensor, "F32", task.advance)
    _add_identities(out, architecture)
    copy_tokenizer(files_of(quantized).shared, out)


def _add_identities(out: Path, architecture: Architecture) -> None:
    """A second shard with what transformers 5.5 wants of experts that give their input back.

    It has rows of gate and up for them, which it never reads.
    """
    mixtures = [layer.mixture for layer in architecture.layers if layer.mixture]
    unused = [
        TensorInfo(m.expert(m.num_experts + i, projection) + ".weight", "F32", shape)
        for m in mixtures
        for i in range(m.num_identities)
        for projection in ("gate", "up")
        for shape in [(m.intermediate_size, architecture.hidden_size)]
    ]
    if not unused:
        return
    first, second = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
    (out / WEIGHTS).rename(out / first)
    with TensorFileWriter(out / second, unused, {"format": "pt"}) as writer:
        for info in unused:
            writer.write(info.name, np.zeros(info.shape, np.float32))
    names = {spec.source.tensor: first for spec in architecture.tensors()}
    weight_map = names | {info.name: second for info in unused}
    write_json(out / INDEX, {"metadata": {}, "weight_map": weight_map})


def transformers_checkpoint(quantized: Path, out: Path, progress: Progress) -> None:
    """Write what transformers loads with ``from_pretrained`` into the empty ``out``."""
    scheme = read_scheme(quantized)
    config = read_config(quantized)
    specs = describe(config).tensors()
    with TensorFile(quantized / WEIGHTS) as file:
        kept = {s.name for s in specs if s.role == "linear" and scheme.packing(s)}
        parts = [
            s.name + part
            for s in specs
            if s.name in kept
            for part in ("_packed", "_scale", "_shape")
        ]
        layout = [file.info(name) for name in parts]
        layout += [TensorInfo(s.name, "F16", s.shape) for s in specs if s.name not in kept]
        with (
            TensorFileWriter(out / WEIGHTS, layout, {"format": "pt"}) as writer,
            progress.task("write for transformers", len(specs)) as task,
        ):
            for name in parts:
                writer.write(name, file.array(name))
            for spec in specs:
                packing = scheme.packing(spec)
                if spec.name not in kept:
                    wide = dequantize(file, spec.name, packing) if packing else None
                    values = file.float32(spec.name) if wide is None else wide
                    writer.write(spec.name, values.astype(np.float16))
                task.advance()
    settings = config.get("quantization_config")
    if settings:
        settings["config_groups"].pop("group_1", None)
        settings["ignore"] = sorted({*settings["ignore"], "lm_head"})
    write_json(out / "config.json", config)
    copy_tokenizer(quantized, out)


def weights_file(directory: Path) -> Path:
    """The weights of a quantized checkpoint or of a variant."""
    compiled = files_of(directory).weights
    return compiled if compiled.is_file() else directory / WEIGHTS


def plain_config(config: dict[str, Any]) -> dict[str, Any]:
    """``config`` of the unquantized model, as transformers knows its family."""
    dropped = ("quantization_config", "edgekit_scheme", "edgekit_family", NESTED)
    plain = {k: v for k, v in config.items() if k not in dropped}
    if family := config.get("edgekit_family"):
        plain = {k: v for k, v in plain.items() if k != "auto_map"}
        plain |= {"model_type": family, "architectures": [FAMILIES[family].hf_class]}
    return json.loads(json.dumps({**plain, "dtype": "float32"}))
