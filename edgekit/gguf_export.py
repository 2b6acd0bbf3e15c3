"""A quantized checkpoint as a GGUF file for llama.cpp, Ollama and LM Studio.

The weights are the same codes and scales, repacked into GGUF's blocks one tensor at a time, so the
file stands for exactly the matrices that the graphs multiply. The header is written by the ``gguf``
package; the data follow as they are read. In order: describe the model, refuse what llama.cpp would
compute differently (:mod:`edgekit.gguf_families`), lay out the tensors
(:mod:`edgekit.gguf_tensors`), write metadata (:mod:`edgekit.gguf_metadata`) and tokenizer
(:mod:`edgekit.gguf_tokenizer`), then the data.
"""

from __future__ import annotations

import collections
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from edgekit.atomic import atomic_file
from edgekit.checkpoint import WEIGHTS, read_config
from edgekit.describe import describe
from edgekit.errors import BadInputError, EdgekitError, missing_extra
from edgekit.gguf_families import gguf_family
from edgekit.gguf_metadata import add_metadata, context_length, model_rotary
from edgekit.gguf_tensors import GgufTensor, gguf_tensors, tensor_chunks
from edgekit.gguf_tokenizer import add_vocabulary, read_vocabulary
from edgekit.memory import require_disk
from edgekit.progress import Progress
from edgekit.runtimes.compile import VARIANT_WEIGHTS, check_layout
from edgekit.scheme import Scheme, read_scheme
from edgekit.tensorfile import TensorFile


@dataclass(frozen=True)
class GgufReport:
    """What was written: llama.cpp's architecture and pre-tokenizer, tensors per type, bytes."""

    architecture: str
    pre_tokenizer: str
    context_length: int
    tensors: dict[str, int]
    size_bytes: int


def export_gguf(model: Path, out: Path, progress: Progress, pre: str = "") -> GgufReport:
    """Write the quantized checkpoint or variant ``model`` into the new file ``out``.

    ``pre`` names llama.cpp's pre-tokenizer where edgekit does not find it.

    Raises:
        BadInputError: ``model`` is not quantized, damaged, of a family that llama.cpp does not
            compute the same way, or ``out`` exists.
        MissingRuntimeError: the ``build`` extra is not installed.
    """
    try:
        import gguf
    except ImportError as error:
        raise missing_extra("gguf", "build") from error
    source = str(model / "config.json")
    config = read_config(model)
    scheme = read_scheme(model)
    architecture = describe(config, source)
    row = gguf_family(architecture, source)
    weights = _weights(model)
    check_layout(weights, architecture, scheme)
    tensors = gguf_tensors(architecture, row, scheme, source)
    positions = model_rotary(architecture, row, config, source)
    vocabulary = read_vocabulary(model, architecture.vocab_size, pre)
    require_disk(out.absolute().parent, sum(t.nbytes for t in tensors), str(out))
    with atomic_file(out) as temporary:
        writer = gguf.GGUFWriter(temporary, gguf.MODEL_ARCH_NAMES[gguf.MODEL_ARCH[row.arch]])
        add_metadata(writer, architecture, row, scheme.bits, positions)
        add_vocabulary(writer, vocabulary, model)
        _write_header(writer, positions[0].divisors, tensors)
        with TensorFile(weights) as file, temporary.open("ab") as target:
            data = _Data(target, writer.data_alignment)
            for values in positions[0].divisors.values():
                data.append(values)
                data.end()
            _write_tensors(data, tensors, file, scheme, progress)
    counts = collections.Counter(t.kind for t in tensors)
    return GgufReport(
        row.arch.lower(), vocabulary.pre, context_length(architecture, row), dict(counts),
        out.stat().st_size,
    )  # fmt: skip


def _weights(model: Path) -> Path:
    """The weights file of a checkpoint or of a variant."""
    for name in (WEIGHTS, VARIANT_WEIGHTS):
        if (model / name).is_file():
            return model / name
    raise BadInputError(
        f"{model}: neither {WEIGHTS} nor {VARIANT_WEIGHTS} is there; give the directory that "
        "`edgekit quantize` or `edgekit compile` wrote"
    )


def _write_header(
    writer: Any, divisors: Mapping[str, NDArray[np.float32]], tensors: Sequence[GgufTensor]
) -> None:
    """Everything before the data."""
    import gguf

    for name, values in divisors.items():
        full = gguf.TENSOR_NAMES[gguf.MODEL_TENSOR[name]] + ".weight"
        writer.add_tensor_info(full, values.shape, values.dtype, values.nbytes)
    for tensor in tensors:
        kind = gguf.GGMLQuantizationType[tensor.kind]
        float16 = np.dtype(np.float16)  # not uint8, which would make the shape one of bytes
        writer.add_tensor_info(tensor.name, tensor.shape, float16, tensor.nbytes, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()


class _Data:
    """Appends tensors in parts; each begins at a multiple of the alignment."""

    def __init__(self, file: BinaryIO, alignment: int) -> None:
        self._file, self._alignment = file, alignment
        self.end()

    def append(self, part: NDArray[Any]) -> int:
        """Some of a tensor; returns its bytes."""
        return self._file.write(np.ascontiguousarray(part).view(np.uint8).data)

    def end(self) -> None:
        """The tensor is whole."""
        self._file.write(bytes(-self._file.tell() % self._alignment))


def _write_tensors(
    data: _Data, tensors: Sequence[GgufTensor], file: TensorFile, scheme: Scheme,
    progress: Progress,
) -> None:  # fmt: skip
    total = sum(spec.parameters for t in tensors for spec in t.specs)
    with progress.task("write GGUF", total) as task:
        for tensor in tensors:
            written = 0
            for elements, chunk in tensor_chunks(tensor, file, scheme):
                written += data.append(chunk)
                task.advance(elements)
            if written != tensor.nbytes:
                raise EdgekitError(
                    f"{tensor.name}: {written} bytes written, {tensor.nbytes} were announced"
                )
            data.end()
