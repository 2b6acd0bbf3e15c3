"""Load a checkpoint into transformers for the steps that run the model."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from edgekit.architecture import Architecture
from edgekit.checkpoint import Checkpoint
from edgekit.memory import require_memory

Model = Any  # transformers.PreTrainedModel, which carries no types


def load_model(
    directory: Path, dtype: torch.dtype = torch.float32, training: bool = False, force: bool = False
) -> Model:
    """The model of a checkpoint, on the CPU, checked by edgekit before transformers reads it.

    Raises:
        BadInputError: the checkpoint is damaged or of an unknown family.
        OutOfResourcesError: the memory does not hold it, unless ``force``.
    """
    with Checkpoint(directory) as checkpoint:
        needed = model_bytes(checkpoint.architecture, dtype, training)
    require_memory(needed, f"{directory}: the model in {str(dtype).removeprefix('torch.')}", force)
    with _quiet_transformers():
        from transformers import AutoModelForCausalLM

        model = AutoModelForCausalLM.from_pretrained(
            directory,
            dtype=dtype,
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=False,
            experts_implementation="eager",
        )
    model.eval()
    model.requires_grad_(False)
    return model


def model_bytes(architecture: Architecture, dtype: torch.dtype, training: bool) -> int:
    """Memory of the weights, and while training of activations and optimizer in proportion."""
    weights = architecture.parameters() * dtype.itemsize
    return int(weights * (2.5 if training else 1.3)) + (500 << 20)


def sparse_blocks(model: Model, architecture: Architecture) -> dict[int, Any]:
    """The ``experts`` module of every sparse layer.

    It holds ``gate_up_proj`` [E, 2 I, H] and ``down_proj`` [E, H, I] and is called with hidden
    states [T, H], expert indices [T, k] and weights [T, k].
    """
    return {
        index: layer.mlp.experts
        for index, layer in enumerate(model.model.layers)
        if architecture.is_sparse(index)
    }


@contextlib.contextmanager
def _quiet_transformers() -> Iterator[None]:
    """Loading bars and advice of transformers would land amid ours."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
