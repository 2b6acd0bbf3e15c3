"""The tensors of a model with merged experts, one at a time from the original's checkpoint.

Router rows, biases, corrections and factors are those of the groups' centres. Averages are rounded
to the precision that they are stored in, so that what is measured in memory is what is written.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from edgekit.architecture import TensorSpec
from edgekit.checkpoint import Checkpoint
from edgekit.distill.keep import Kept
from edgekit.distill.merge_alignment import MergedExpert, merged_tensor
from edgekit.distill.prune import pruned_tensors

PRECISIONS = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}


def centres(plan: Mapping[int, Sequence[MergedExpert]]) -> Kept:
    """The experts whose router rows stay, by layer."""
    return {layer: [e.group.centre for e in experts] for layer, experts in plan.items()}


def merged_tensors(
    checkpoint: Checkpoint, plan: Mapping[int, Sequence[MergedExpert]]
) -> Callable[[TensorSpec], NDArray[np.float32]]:
    """Gives the tensors of the smaller model; those of layers that ``plan`` has."""
    pruned = pruned_tensors(checkpoint, centres(plan))
    stored = checkpoint.dtypes

    def tensor(spec: TensorSpec) -> NDArray[np.float32]:
        if spec.expert < 0:
            return pruned(spec)

        def member(expert: int) -> NDArray[np.float32]:
            module = checkpoint.architecture.expert(spec.layer, expert, spec.projection)
            return checkpoint.float32(module + "." + spec.name.rpartition(".")[2])

        values = merged_tensor(spec, plan[spec.layer][spec.expert], member)
        precision = PRECISIONS[stored.get(spec.source.tensor, checkpoint.dtype)]
        rounded = torch.from_numpy(np.array(values)).to(precision)
        result: NDArray[np.float32] = rounded.float().numpy()
        return result

    return tensor
