"""Load a checkpoint into transformers for the steps that run the model."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from edgekit.checkpoint import Checkpoint
from edgekit.distill.transformers_repairs import repair
from edgekit.errors import BadInputError
from edgekit.family_table import FAMILIES

Model = Any  # transformers.PreTrainedModel, which carries no types


def load_model(directory: Path) -> Model:
    """The model of a checkpoint in float32 on the CPU, checked before transformers reads it.

    Raises:
        BadInputError: the checkpoint is damaged or of an unknown family.
    """
    with Checkpoint(directory) as checkpoint:
        if checkpoint.source.method != "none":
            raise BadInputError(
                f"{directory}: the weights are stored as {checkpoint.stored_as}, and running the "
                "model needs floats; give the checkpoint in bfloat16"
            )
        eager = FAMILIES[checkpoint.architecture.model_type].eager
    with quiet_transformers():
        from transformers import AutoModelForCausalLM

        model = AutoModelForCausalLM.from_pretrained(
            directory,
            dtype=torch.float32,
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=False,
            experts_implementation="eager",
            attn_implementation="eager" if eager else None,
        )
    repair(model, str(directory))
    model.eval()
    model.requires_grad_(False)
    return model


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
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
