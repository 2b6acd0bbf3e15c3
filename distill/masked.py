"""Leave experts out of an opened model without writing a smaller one.

``MixtureBlock.allowed`` makes a router choose exactly as if the other experts had been sliced away,
so a mask over the teacher says what the pruned checkpoint would say: many choices can be measured
against each other while the model is opened once.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch

from edgekit.distill.divergence import Measured, Targets, measure
from edgekit.distill.mixture import MixtureBlock
from edgekit.distill.open_model import OpenModel
from edgekit.errors import BadInputError
from edgekit.progress import Progress

Mask = Mapping[int, Sequence[int]]  # sparse layer -> the experts that stay; other layers keep all


def set_mask(mixtures: Mapping[int, MixtureBlock], mask: Mask | None) -> None:
    """Let the routers choose among the experts of ``mask`` only; None lifts every mask.

    Raises:
        BadInputError: fewer experts would stay in a layer than every token uses.
    """
    for layer, block in mixtures.items():
        if mask is None or layer not in mask:
            block.allowed = None
            continue
        used = max(1, block.mixture.num_experts_per_tok - block.mixture.num_identities)
        if len(mask[layer]) < used:
            raise BadInputError(
                f"layer {layer}: {len(mask[layer])} experts would stay, fewer than the {used} that "
                "every token uses; keep more"
            )
        allowed = torch.zeros(block.mixture.num_experts, dtype=torch.bool)
        allowed[list(mask[layer])] = True
        block.allowed = allowed


@contextmanager
def masked(opened: OpenModel, mask: Mask | None) -> Iterator[None]:
    """Have ``mask`` in place for a while; afterwards there is none."""
    set_mask(opened.mixtures, mask)
    try:
        yield
    finally:
        set_mask(opened.mixtures, None)


def measure_masked(
    opened: OpenModel, mask: Mask | None, targets: Targets, progress: Progress, name: str
) -> Measured:
    """KL of the model under ``mask`` on the held-out sequences of ``targets``."""
    with masked(opened, mask):
        return measure(opened, targets, progress, name)


def prefix_mask(mixtures: Mapping[int, MixtureBlock], count: int) -> Mask | None:
    """The first ``count`` experts of every layer; None for all of them."""
    if all(count >= block.mixture.num_experts for block in mixtures.values()):
        return None
    return {layer: range(count) for layer in mixtures}
