"""Write a trained student as a checkpoint."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgekit.architecture import TensorSpec
from edgekit.checkpoint import copy_tokenizer, write_checkpoint
from edgekit.distill.open_model import OpenModel
from edgekit.progress import Progress
from edgekit.recipe import QuantizeSection
from edgekit.scheme import Scheme


def write_student(
    opened: OpenModel, out: Path, rounding: QuantizeSection | None, progress: Progress
) -> None:
    """Write the weights as they are now into ``out``, in the student's precision.

    What ``rounding`` packs was rounded for the training alone and is written as it came. What was
    stored as float32 stays so, such as corrections of a router's choice, whose differences bfloat16
    does not hold.
    """
    checkpoint = opened.checkpoint
    scheme = Scheme.parse(rounding.scheme if rounding else "none")
    trained = opened.tensors()

    def tensor(spec: TensorSpec) -> NDArray[np.float32]:
        return checkpoint.float32(spec.name) if scheme.packing(spec) else trained(spec)

    exact = {name: kind for name, kind in checkpoint.dtypes.items() if kind == "F32"}
    with progress.task("write the student", len(checkpoint.specs)) as task:
        write_checkpoint(out, checkpoint.config, tensor, checkpoint.dtype, task.advance, exact)
    copy_tokenizer(checkpoint.path, out)
