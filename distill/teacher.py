"""The teacher as a function from tokens to logits."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from edgekit.distill.loading import load_model


def teacher_logits(directory: Path) -> Callable[[NDArray[np.int32]], NDArray[np.float32]]:
    """Load a checkpoint; the function maps tokens [T] to float32 logits [T, vocab_size]."""
    model = load_model(directory)

    @torch.inference_mode()
    def logits(tokens: NDArray[np.int32]) -> NDArray[np.float32]:
        ids = torch.from_numpy(tokens.astype(np.int64))[None]
        return model(input_ids=ids, use_cache=False).logits[0].float().numpy()

    return logits
