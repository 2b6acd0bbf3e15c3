"""Converts a checkpoint and prints how far the resident set grew above that of the imports.

    python memory_driver.py quantize|compile SOURCE OUT [FAULT]

A fault breaks the streaming on purpose: "resident" leaves pages of the file in memory that were
read, "keep" keeps every matrix, "map" lays the graph's constants on the file.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np

import edgekit.runtimes.onnx_graph
import edgekit.runtimes.openvino_constants
import edgekit.runtimes.openvino_graph
from edgekit.checkpoint import Checkpoint
from edgekit.memory import peak_memory, reset_peak_memory
from edgekit.progress import Silent
from edgekit.quantize.write import quantize
from edgekit.runtimes.compile import compile_variant
from edgekit.scheme import Scheme
from edgekit.tensorfile import TensorFile


def inject(fault: str) -> None:
    """Break the streaming."""
    if fault == "resident":
        TensorFile._advise = lambda *_: None
    elif fault == "keep":
        kept, read = [], Checkpoint.float32

        def float32(*arguments: object) -> object:
            kept.append(read(*arguments))
            return kept[-1]

        Checkpoint.float32 = float32
    elif fault == "map":
        edgekit.runtimes.openvino_constants._stand_in = lambda path: np.memmap(
            path, np.uint8, mode="c"
        )
    elif fault:
        raise SystemExit(f"no fault {fault!r}")


def main() -> None:
    step, source, out, fault = [*sys.argv[1:], ""][:4]
    inject(fault)
    Path(out).mkdir()
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:2])  # each thread holds a piece
    reset_peak_memory()
    before = peak_memory()
    if step == "quantize":
        quantize(Path(source), Scheme.parse("int4-g128"), Path(out), Silent(), "rtn")
    else:
        compile_variant(Path(source), ["openvino-cpu", "onnx-cpu"], Path(out), Silent())
    print(peak_memory() - before)


if __name__ == "__main__":
    main()
