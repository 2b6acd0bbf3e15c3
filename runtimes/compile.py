"""Compile: graphs of every target over one copy of the weights file.

A variant directory holds ``weights.safetensors``, ``config.json``, the tokenizer, and one folder
or file set per runtime (:mod:`edgekit.variant_files`). Nothing is converted: the graphs point into
the weights file. A nested checkpoint (:mod:`edgekit.nested`) gets graphs of every size over it.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from io import FileIO
from pathlib import Path

from edgekit.architecture import Architecture
from edgekit.atomic import FULL, write_json
from edgekit.checkpoint import WEIGHTS, copy_tokenizer, read_config
from edgekit.describe import describe
from edgekit.errors import BadInputError
from edgekit.layout import layout
from edgekit.nested import prefix_config, stored_sizes
from edgekit.progress import Progress
from edgekit.rules import TARGETS, check_target
from edgekit.scheme import VARIANT_WEIGHTS, Scheme, read_scheme
from edgekit.tensorfile import Writeback, read_header
from edgekit.variant_files import size_folder

COPY_CHUNK = 16 << 20


@dataclass(frozen=True)
class CompileReport:
    """Bytes of the variant: its weights file and, per runtime, the graphs of all sizes.

    ``nested`` are the numbers of experts of a nested variant, the largest first.
    """

    targets: list[str]
    weights_bytes: int
    graph_bytes: dict[str, int]
    nested: list[int]


def compile_variant(
    model: Path, targets: Sequence[str], out: Path, progress: Progress
) -> CompileReport:
    """Write a variant of the quantized checkpoint ``model`` into the empty directory ``out``.

    Raises:
        BadInputError: ``model`` is not quantized, a target's rules refuse it, or the sizes that it
            says are nested in it cannot be.
    """
    scheme, config, source = read_scheme(model), read_config(model), str(model / "config.json")
    architecture = describe(config, source)
    sizes = stored_sizes(config, architecture, source)
    for target in targets:
        check_target(architecture, scheme, target)
    check_layout(model / WEIGHTS, architecture, scheme)
    _copy_weights(model / WEIGHTS, out / VARIANT_WEIGHTS, progress)
    shutil.copyfile(model / "config.json", out / "config.json")
    copy_tokenizer(model, out)
    for experts in sizes[1:]:
        folder = out / size_folder(experts)
        folder.mkdir()
        write_json(folder / "config.json", prefix_config(config, architecture, experts))
    runtimes = sorted({TARGETS[t].runtime for t in targets})
    graphs: dict[str, int] = {}
    with progress.task("write the graphs", len(runtimes)) as task:
        for runtime in runtimes:
            before = _bytes(out)
            _write_graph(runtime, out)
            graphs[runtime] = _bytes(out) - before
            task.advance()
    weights = (out / VARIANT_WEIGHTS).stat().st_size
    return CompileReport(list(targets), weights, graphs, list(sizes))


def check_layout(weights: Path, architecture: Architecture, scheme: Scheme) -> None:
    """Refuse a weights file whose tensors are not those that the config promises, in place.

    Raises:
        BadInputError: names the first tensor that is missing, unknown or of another shape.
    """
    found, _ = read_header(weights)
    expected = {t.name: t for t in layout(architecture, scheme)}
    for name in sorted(expected.keys() ^ found.keys()):
        state = "missing" if name in expected else "unknown"
        raise BadInputError(f"{weights}: tensor {name!r} is {state}; quantize the model again")
    for name, info in expected.items():
        stored = found[name]
        if (stored.dtype, stored.shape) != (info.dtype, info.shape):
            raise BadInputError(
                f"{weights}: {name} is {stored.dtype}{list(stored.shape)} but config.json implies "
                f"{info.dtype}{list(info.shape)}; quantize the model again"
            )


def _write_graph(runtime: str, out: Path) -> None:
    if runtime == "openvino":
        from edgekit.runtimes.openvino_graph import write_openvino

        write_openvino(out)
    else:
        from edgekit.runtimes.onnx_graph import write_onnx

        write_onnx(out)


def _copy_weights(source: Path, target: Path, progress: Progress) -> None:
    """A copy, not a link: the OpenVINO writer fills the file's room for constants."""
    size = source.stat().st_size
    with (
        progress.task("copy the weights", size) as task,
        source.open("rb", buffering=0) as reader,
        target.open("wb", buffering=0) as writer,
    ):
        writeback, copied = Writeback(writer.fileno()), 0
        while count := _copy_inside(reader, writer) or _copy_through(reader, writer):
            writeback.written(copied, count)
            copied += count
            task.advance(count)


def _copy_inside(reader: FileIO, writer: FileIO) -> int:
    """Have the kernel copy the next bytes, which some file systems do by sharing them."""
    if not hasattr(os, "copy_file_range"):
        return 0
    try:
        return os.copy_file_range(reader.fileno(), writer.fileno(), COPY_CHUNK)
    except OSError as error:
        if error.errno in FULL:
            raise
        return 0  # two file systems, or one that cannot


def _copy_through(reader: FileIO, writer: FileIO) -> int:
    """Copy the next bytes through memory."""
    chunk = memoryview(reader.read(COPY_CHUNK))
    left = chunk
    while left:
        left = left[writer.write(left) :]
    return len(chunk)


def _bytes(directory: Path) -> int:
    return sum(f.stat().st_size for f in directory.rglob("*") if f.is_file())
