"""An ONNX Runtime GenAI model that is fed token by token; several texts share its weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekit.errors import MissingRuntimeError


class OnnxStepper:
    """A loaded ``onnxruntime_genai.Model``."""

    def __init__(self, genai: Any, model: Any, device: str) -> None:
        self._genai, self._model, self._device = genai, model, device

    def open(self, tokens: int) -> OnnxText:
        """An empty text; its cache is allocated for ``tokens`` at once."""
        parameters = self._genai.GeneratorParams(self._model)
        parameters.set_search_options(max_length=tokens, do_sample=False)
        return OnnxText(self._genai.Generator(self._model, parameters), self._device)

    def close(self) -> None:
        """Free the model."""
        self._model = None


class OnnxText:
    """One text with its own cache."""

    def __init__(self, generator: Any, device: str) -> None:
        self._generator, self._device = generator, device

    def feed(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """Append tokens; logits [V] after the last."""
        try:
            self._generator.append_tokens(np.array(list(tokens), np.int32))
            logits = self._generator.get_logits()
        except RuntimeError as error:  # what GenAI raises for everything
            reason = " ".join(str(error).split())[:300]
            raise MissingRuntimeError(
                f"{self._device}: ONNX Runtime could not run the model ({reason}); choose another "
                "device"
            ) from error
        return np.array(logits[0, -1], np.float32)

    def close(self) -> None:
        """Free the cache."""
        self._generator = None
