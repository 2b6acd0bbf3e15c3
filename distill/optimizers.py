"""The optimizer of a training and its learning rate."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import nn

from edgekit.distill.sharding import is_split
from edgekit.recipe import DistillSection

WARM_UP = 0.1  # of the steps
FINAL_RATE = 0.1  # of the learning rate, when it has decayed
BETAS = (0.9, 0.95)  # of AdamW


def make_optimizer(
    parameters: Mapping[str, nn.Parameter], params: DistillSection
) -> torch.optim.Optimizer:
    """As the recipe says. Only matrices decay: norms and biases, of which a mixture has one per
    expert, are no larger than they must be.

    AdamW keeps two moments of every weight. Adafactor (arXiv 1804.04235) keeps the sums of rows and
    columns of the second and none of the first; its steps are relative to the root mean square of a
    weight, so it wants a larger learning rate.
    """
    decays = {p: p.dim() > 1 and not name.endswith("bias") for name, p in parameters.items()}
    groups = [  # what is split over processes and what is not cannot be computed in one
        {
            "params": [p for p in decays if decays[p] == decaying and is_split(p) == split],
            "weight_decay": params.weight_decay if decaying else 0.0,
        }
        for decaying in (True, False)
        for split in (True, False)
    ]
    kept = [group for group in groups if group["params"]]
    if params.optimizer == "adafactor":
        return torch.optim.Adafactor(kept, lr=params.learning_rate)
    # one pass over a weight and its moments: half the time on a CPU; elsewhere as torch has it
    fused = all(p.device.type == "cpu" and not is_split(p) for p in decays) or None
    return torch.optim.AdamW(kept, lr=params.learning_rate, betas=BETAS, fused=fused)


def schedule(step: int, steps: int, warm_up: float = WARM_UP, decay: str = "cosine") -> float:
    """Factor of the learning rate at a step: it rises over a share ``warm_up`` of the steps, then
    falls to ``FINAL_RATE`` at the end, or stays if ``decay`` is "constant"."""
    rising = max(1, round(warm_up * steps))
    if step < rising:
        return (step + 1) / rising
    if decay == "constant":
        return 1.0
    turn = (step - rising) / max(1, steps - rising)
    left = 1 - turn if decay == "linear" else 0.5 * (1 + math.cos(math.pi * turn))
    return FINAL_RATE + (1 - FINAL_RATE) * left
