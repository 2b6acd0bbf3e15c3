"""The OpenVINO graph of a variant as a stateful model that is fed token by token.

It is compiled apart from any pipeline, so where a pipeline runs the same variant the device holds
its weights twice: about the size of the weights file once more, because plugins keep them in a
layout of their own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekit.errors import BadInputError, MissingRuntimeError
from edgekit.runtimes.openvino_engine import last_line
from edgekit.variant_files import files_of


class OpenVINOStepper:
    """The graph of a variant compiled for ``device`` with OpenVINO's ``properties``."""

    def __init__(self, directory: Path, device: str, properties: Mapping[str, Any]) -> None:
        import openvino as ov

        self._device = device
        core, files = ov.Core(), files_of(directory)
        try:
            model = core.read_model(str(files.openvino_graph), str(files.weights))
            _keep_last_position(model)
            self._compiled: Any = core.compile_model(model, device, dict(properties))
        except RuntimeError as error:  # what OpenVINO raises for everything
            if device == "CPU":
                raise BadInputError(
                    f"{directory}: OpenVINO cannot load it ({last_line(error)}); verify the pack, "
                    "or compile again"
                ) from error
            raise MissingRuntimeError(
                f"{device}: OpenVINO could not load {directory} ({last_line(error)}); choose "
                "openvino-cpu or another device"
            ) from error

    def open(self, tokens: int) -> OpenVINOText:
        """An empty text; its cache grows as it does."""
        return OpenVINOText(self._compiled.create_infer_request(), self._device)

    def close(self) -> None:
        """Free the model."""
        self._compiled = None


class OpenVINOText:
    """One text with its own state of the graph."""

    def __init__(self, request: Any, device: str) -> None:
        self._request, self._device = request, device
        self._length = 0

    def feed(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """Append tokens; logits [V] after the last."""
        before, self._length = self._length, self._length + len(tokens)
        try:
            result = self._request.infer(
                {
                    "input_ids": np.array([list(tokens)], np.int64),
                    "attention_mask": np.ones((1, self._length), np.int64),
                    "position_ids": np.arange(before, self._length)[None],
                    "beam_idx": np.zeros(1, np.int32),
                }
            )
        except RuntimeError as error:
            raise MissingRuntimeError(
                f"{self._device}: OpenVINO could not run the model ({last_line(error)}); choose "
                "another device"
            ) from error
        return np.array(result[0][0, -1], np.float32)

    def close(self) -> None:
        """Free the state."""
        self._request = None


def _keep_last_position(model: Any) -> None:
    """Compute logits of a prompt's last token alone: the head is the widest matrix."""
    from openvino import opset13 as op

    node = model.output("logits").node
    while node.get_type_name() != "MatMul":
        node = node.input_value(0).get_node()
    last, end, one = (np.array([i], np.int64) for i in (-1, 2**63 - 1, 1))
    shorter = op.slice(node.input_value(0), op.constant(last), op.constant(end), op.constant(one),
                       op.constant(one))  # fmt: skip
    node.input(0).replace_source_output(shorter.output(0))
    model.validate_nodes_and_infer_types()
