"""What was written has to say what the model that it was made of says, changed in memory alike."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from edgekit.distill.divergence import Divergence
from edgekit.distill.open_model import OpenModel
from edgekit.errors import BadInputError, EdgekitError
from edgekit.sequences import TokenSequence

PROOF_TOKENS = 128  # of a sequence of every domain
TOLERANCE = 1e-3  # of the largest logit: the order of sums differs


@torch.inference_mode()
def proof_logits(opened: OpenModel, text: Sequence[TokenSequence]) -> torch.Tensor:
    """What a model says of the beginning of every domain's longest sequence: float32 [D, T, V].

    They are one batch, so a model that is read while it runs is read once.
    """
    longest: dict[str, TokenSequence] = {}
    for sequence in text:
        best = longest.setdefault(sequence.domain, sequence)
        if len(sequence.tokens) > len(best.tokens):
            longest[sequence.domain] = sequence
    length = min(PROOF_TOKENS, *(len(s.tokens) for s in longest.values()))
    ids = np.stack([longest[domain].tokens[:length] for domain in sorted(longest)])
    batch = torch.from_numpy(ids.astype(np.int64)).to(opened.device)
    logits: torch.Tensor = opened.model(input_ids=batch, use_cache=False).logits
    return logits.float().cpu()


def require_same(
    found: torch.Tensor, expected: torch.Tensor, out: Path, source: Path, chosen: str
) -> float:
    """How far ``out``, which said ``found``, is from ``chosen``, which ``source`` was changed to
    and which said ``expected``: of the largest logit.

    Raises:
        EdgekitError: too far; a defect of edgekit, and nothing is kept.
        BadInputError: ``source`` gives no numbers.
    """
    if not expected.isfinite().all():
        raise BadInputError(
            f"{source}: gives logits that are not finite; the weights are damaged, download them "
            "again"
        )
    error = float((found - expected).abs().max() / expected.abs().max())
    if not error <= TOLERANCE:
        raise EdgekitError(
            f"{out}: the written model differs from {chosen} by {error:.1e} of the largest logit; "
            "please report this family"
        )
    return error


def require_finite_divergence(divergence: Divergence, source: Path) -> None:
    """Refuse what no number came of.

    Raises:
        BadInputError: the KL to ``source`` is not finite.
    """
    if not math.isfinite(divergence.all.value):
        raise BadInputError(
            f"{source}: the KL to it on held-out text is not finite; check its weights and the text"
        )
