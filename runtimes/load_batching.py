"""Choose and load the batch engine of a variant."""

from __future__ import annotations

from pathlib import Path

from edgekit.checkpoint import read_config
from edgekit.describe import describe
from edgekit.errors import BadInputError
from edgekit.runtimes.batching import BatchEngine


def load_batch_engine(
    directory: Path, target: str, *, max_running: int = 16, cache_bytes: int | None = None
) -> BatchEngine:
    """Load a compiled variant for ``target`` ("openvino-cpu", "onnx-cpu", ...) to answer many.

    ``max_running`` bounds the answers at a time, ``cache_bytes`` the key-value cache (default: by
    the rule of :mod:`edgekit.runtimes.cache_plan`).

    Raises:
        BadInputError: the directory has no graph for the target, or the target is unknown.
        MissingRuntimeError: the runtime or the device is not there.
        OutOfResourcesError: there is not enough memory for a conversation.
    """
    runtime, _, name = target.partition("-")
    device = name.upper()
    if runtime == "onnx" and device:
        from edgekit.runtimes.stepwise_batching import onnx_batch_engine

        return onnx_batch_engine(directory, device, max_running, cache_bytes)
    if runtime == "openvino" and device.startswith("NPU"):
        from edgekit.runtimes.openvino_engine import OpenVINOEngine
        from edgekit.runtimes.single_batching import SingleBatchEngine

        engine = OpenVINOEngine(directory, device)
        engine.load()
        return SingleBatchEngine(engine)
    if runtime == "openvino" and device:
        return _openvino(directory, device, max_running, cache_bytes)
    raise BadInputError(f"target {target!r} is not known; see `edgekit plan --rules`")


def _openvino(
    directory: Path, device: str, max_running: int, cache_bytes: int | None
) -> BatchEngine:
    """Continuous batching where paged attention can hold the graph; answers in turn elsewhere."""
    from edgekit.runtimes.openvino_engine import OpenVINOEngine
    from edgekit.runtimes.stepwise_batching import openvino_stepwise_engine

    OpenVINOEngine(directory, device)  # refuses what is not there
    if describe(read_config(directory)).state_bytes() == 0:
        from edgekit.runtimes.openvino_batching import OpenVINOBatchEngine

        try:
            return OpenVINOBatchEngine(directory, device, max_running, cache_bytes)
        except (RuntimeError, OSError):
            # refused by the transformation to paged attention, or no links can be made here; what
            # is wrong with the files themselves is said when they are loaded below
            pass
    return openvino_stepwise_engine(directory, device, max_running, cache_bytes)
