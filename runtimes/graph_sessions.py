"""A variant's graphs run step by step, without tokenizer or sampling: for parity and self-checks.

Both sessions keep the cache between calls of ``run`` until ``reset``, and compute in float32
without quantized activations when ``exact``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from edgekit.errors import missing_extra
from edgekit.variant_files import ONNX_GRAPH, files_of

Tokens = NDArray[np.int64]
PROVIDERS = {"CPU": "CPUExecutionProvider", "DML": "DmlExecutionProvider"}


class GraphSession(Protocol):
    """A loaded graph with its cache."""

    padding_side: str  # where a batch's shorter prompts are padded: "left" or "right"

    def run(self, tokens: Tokens, mask: Tokens) -> NDArray[np.float32]:
        """Logits [B, T, vocab_size] of tokens [B, T]; ``mask`` [B, S] covers the cache as well."""

    def reset(self) -> None:
        """Forget the cache."""


class OpenVINOSession:
    """The OpenVINO graph of a variant on one device."""

    padding_side = "left"

    def __init__(self, variant: Path, device: str = "CPU", exact: bool = False) -> None:
        import openvino as ov

        from edgekit.runtimes.openvino_engine import EXACT

        core, files = ov.Core(), files_of(variant)
        model = core.read_model(str(files.openvino_graph), str(files.weights))
        self.compiled = core.compile_model(model, device, dict(EXACT) if exact else {})
        self._request = self.compiled.create_infer_request()

    def run(self, tokens: Tokens, mask: Tokens) -> NDArray[np.float32]:
        """Logits [B, T, vocab_size]; positions count the tokens that the mask shows."""
        positions = np.maximum(np.cumsum(mask, axis=1) - 1, 0)[:, -tokens.shape[1] :]
        result = self._request.infer(
            {
                "input_ids": tokens,
                "attention_mask": mask,
                "position_ids": positions,
                "beam_idx": np.arange(len(tokens), dtype=np.int32),
            }
        )
        return np.array(result[0], np.float32)

    def reset(self) -> None:
        """Forget the cache."""
        self._request.reset_state()


class OnnxSession:
    """The ONNX graph named ``graph`` of a variant; ``device`` is CPU or DML."""

    padding_side = "right"

    def __init__(self, variant: Path, graph: str = ONNX_GRAPH, device: str = "CPU") -> None:
        try:
            import onnxruntime
        except ImportError as error:
            raise missing_extra("onnxruntime", "onnx") from error
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        self._session = onnxruntime.InferenceSession(
            str(files_of(variant).onnx_beside(graph)), options, providers=[PROVIDERS[device]]
        )
        self._caches = [i for i in self._session.get_inputs() if i.name.startswith("past_")]
        self._past: dict[str, NDArray[np.float32]] = {}

    def run(self, tokens: Tokens, mask: Tokens) -> NDArray[np.float32]:
        """Logits [B, T, vocab_size]."""
        if not self._past:
            self._past = {
                i.name: np.zeros(empty_shape(len(tokens), i.shape), np.float32)
                for i in self._caches
            }
        logits, *present = self._session.run(
            None, {"input_ids": tokens, "attention_mask": mask, **self._past}
        )
        # outputs stand in the order of the inputs that they come back as
        self._past = {i.name: value for i, value in zip(self._caches, present, strict=True)}
        return np.asarray(logits, np.float32)

    def reset(self) -> None:
        """Forget the cache."""
        self._past = {}


def empty_shape(batch: int, shape: list[int | str]) -> list[int]:
    """The shape of a cache before the first token; its names stand for lengths."""
    return [batch, *(size if isinstance(size, int) else 0 for size in shape[1:])]
