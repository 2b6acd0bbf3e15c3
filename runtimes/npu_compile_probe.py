"""Compile a graph with Intel's offline NPU compiler and say what came out, as one line of JSON.

Runs by itself under a Windows Python that has only ``openvino``, whose Windows wheel holds the
compiler; :mod:`edgekit.runtimes.npu_proof` starts it and reads the line. No NPU and no driver are
needed. Nothing of edgekit is imported here.

    python npu_compile_probe.py GRAPH.xml WEIGHTS PLATFORM OPTIONS

OPTIONS are more properties of the compilation: ``NAME=VALUE,NAME=VALUE``.
"""

from __future__ import annotations

import io
import json
import sys
from typing import Any

ELF = b"\x7fELF\x02\x01"  # 64 bit, little endian; four bytes alone could be weights
PINNED = {
    "NPU_USE_NPUW": "YES",
    "NPUW_LLM": "YES",
    "NPUW_DEVICES": "NPU",  # with the CPU behind it a refused part moves there and nobody says so
    "NPU_COMPILER_TYPE": "PLUGIN",  # the wheel's compiler, not a driver's
}
NOTHING: dict[str, Any] = {
    "openvino": "",
    "compiler": "",
    "parts": 0,  # NPU executables in the blob
    "targeted": 0,  # those made for the platform
    "blob_bytes": 0,
    "error": "",
}


def count_parts(blob: bytes, platform: str) -> tuple[int, int]:
    """Executables inside a compiled blob: all of them, and those made for ``platform``."""
    _, *parts = blob.split(ELF)
    target = f"npu={platform};".encode()
    return len(parts), sum(target in part for part in parts)


def probe(graph: str, weights: str, platform: str, options: dict[str, str]) -> dict[str, Any]:
    """What compiling ``graph`` for ``platform`` gave; ``error`` is empty when it compiled."""
    import openvino

    result = {**NOTHING, "openvino": openvino.get_version().partition("-")[0]}
    try:
        core = openvino.Core()
        version = int(core.get_property("NPU", "NPU_COMPILER_VERSION"))
        result["compiler"] = f"{version >> 16}.{version & 0xFFFF}"
        properties = {**options, **PINNED, "NPU_PLATFORM": f"NPU{platform}"}
        model = core.read_model(graph, weights)
        exported = core.compile_model(model, "NPU", properties).export_model()
        blob = exported.getvalue() if isinstance(exported, io.BytesIO) else bytes(exported)
        result["parts"], result["targeted"] = count_parts(blob, platform)
        result["blob_bytes"] = len(blob)
    except Exception as error:  # whatever OpenVINO raises is the result
        result["error"] = str(error).strip() or type(error).__name__
    return result


if __name__ == "__main__":
    graph_path, weights_path, chosen, text = sys.argv[1:]
    pairs = dict(item.split("=", 1) for item in text.split(","))
    print(json.dumps(probe(graph_path, weights_path, chosen, pairs)), flush=True)
