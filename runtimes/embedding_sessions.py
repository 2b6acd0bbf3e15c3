"""The graphs of an embedding pack, loaded: token ids in, vectors of length 1 out."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from edgekit.errors import BadInputError, EdgekitError, MissingRuntimeError, missing_extra
from edgekit.rules import TARGETS
from edgekit.runtimes.graph_sessions import PROVIDERS
from edgekit.runtimes.onnx_engine import silence
from edgekit.runtimes.openvino_engine import EXACT, last_line
from edgekit.scheme import VARIANT_WEIGHTS
from edgekit.variant_files import OPENVINO_GRAPH

Tokens = NDArray[np.int64]


class EmbeddingSession(Protocol):
    """A loaded graph. Not thread safe."""

    def run(self, tokens: Tokens, mask: Tokens) -> NDArray[np.float32]:
        """Vectors [B, dim] of tokens [B, T]; ``mask`` [B, T] is 0 where a row is padded, on the
        right.

        Raises:
            MissingRuntimeError: the device fails.
        """


class OpenVINOEmbedding:
    """The OpenVINO graph of a variant on one device.

    With ``exact`` everything stays in float32, for comparisons with a reference; without it the
    device's defaults hold: bfloat16 where the processor multiplies it, float16 on GPUs.
    """

    def __init__(self, variant: Path, device: str = "CPU", exact: bool = False) -> None:
        graph = variant / OPENVINO_GRAPH
        if not graph.is_file():
            raise BadInputError(f"{graph} is missing; make the embedding pack again")
        try:
            import openvino
        except ImportError as error:
            raise MissingRuntimeError(
                "openvino is not installed: run `pip install edgekit` and try again"
            ) from error
        core = openvino.Core()
        if not any(d.split(".")[0] == device for d in core.available_devices):
            raise MissingRuntimeError(
                f"device {device} is not on this machine (OpenVINO finds "
                f"{', '.join(core.available_devices)}); choose one of these"
            )
        properties = dict(EXACT) if exact else {}
        properties.pop("KV_CACHE_PRECISION", None)  # there is no cache
        try:
            model = core.read_model(str(graph), str(variant / VARIANT_WEIGHTS))
            self.compiled = core.compile_model(model, device, properties)
        except RuntimeError as error:  # what OpenVINO raises for everything
            raise _refused(graph, device, "OpenVINO", last_line(error)) from error
        self._device = device
        self._request = self.compiled.create_infer_request()

    def run(self, tokens: Tokens, mask: Tokens) -> NDArray[np.float32]:
        """Vectors [B, dim]."""
        try:
            result = self._request.infer({"input_ids": tokens, "attention_mask": mask})
        except RuntimeError as error:
            raise _failed(self._device, "OpenVINO", last_line(error)) from error
        return np.array(result[0], np.float32)


class OnnxEmbedding:
    """The ONNX graph of a variant on one provider of ONNX Runtime."""

    def __init__(self, variant: Path, device: str = "CPU") -> None:
        graph = variant / "model.onnx"
        if not graph.is_file():
            raise BadInputError(
                f'{graph} is missing; make the embedding pack again with "edgekit[build]" installed'
            )
        try:
            import onnxruntime
        except ImportError as error:
            raise missing_extra("onnxruntime", "onnx") from error
        silence(onnxruntime)
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        try:
            self._session: Any = onnxruntime.InferenceSession(
                str(graph), options, providers=[PROVIDERS[device]]
            )
        except Exception as error:  # its classes derive from Exception alone
            raise _refused(graph, device, "ONNX Runtime", " ".join(str(error).split())[:300]) from (
                error
            )
        self._device = device

    def run(self, tokens: Tokens, mask: Tokens) -> NDArray[np.float32]:
        """Vectors [B, dim]."""
        inputs = {"input_ids": tokens, "attention_mask": mask}
        try:
            (vectors,) = self._session.run(None, inputs)
        except Exception as error:
            reason = " ".join(str(error).split())[:300]
            raise _failed(self._device, "ONNX Runtime", reason) from error
        return np.asarray(vectors, np.float32)


def open_session(variant: Path, target: str) -> EmbeddingSession:
    """The graph of ``variant`` for ``target``, loaded.

    Raises:
        BadInputError: the target is unknown, its graph is missing or cannot be loaded.
        MissingRuntimeError: the runtime or the device is not there.
    """
    if target not in TARGETS:
        raise BadInputError(f"target {target!r} is not known; choose one of {', '.join(TARGETS)}")
    info = TARGETS[target]
    if info.runtime == "openvino":
        return OpenVINOEmbedding(variant, info.device)
    return OnnxEmbedding(variant, info.device)


def _refused(graph: Path, device: str, runtime: str, reason: str) -> EdgekitError:
    if device == "CPU":
        return BadInputError(
            f"{graph}: {runtime} cannot load it ({reason}); verify the pack, or make it again"
        )
    return MissingRuntimeError(
        f"{device}: {runtime} could not load {graph} ({reason}); choose openvino-cpu"
    )


def _failed(device: str, runtime: str, reason: str) -> EdgekitError:
    return MissingRuntimeError(
        f"{device}: {runtime} could not run the embedding model ({reason}); choose another device"
    )
