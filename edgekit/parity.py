"""Parity: the compiled graphs against PyTorch on the same weights.

The reference is the quantized checkpoint's weights widened to float32 in transformers. Differences
left are those of arithmetic: int8 activations and bfloat16 in the runtimes' fast paths.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from pydantic import BaseModel, ConfigDict

from edgekit.evaluate import log_softmax
from edgekit.progress import Progress
from edgekit.runtimes.engine import load_engine

TEXT = "The capital of France is Paris. def add(a, b): return a + b. 你好，世界。"


class Parity(BaseModel):
    """Agreement of one target with the reference on a short text."""

    model_config = ConfigDict(frozen=True)

    target: str
    positions: int
    kl: float
    top1_agreement: float
    max_logit_difference: float


def check_parity(
    variant: Path, reference: Path, targets: Sequence[str], progress: Progress
) -> list[Parity]:
    """Compare each target of ``variant`` with ``reference``, a quantized checkpoint."""
    from edgekit.distill.teacher import teacher_logits
    from edgekit.quantize.reference import dequantized_checkpoint

    with tempfile.TemporaryDirectory() as scratch:
        dequantized_checkpoint(reference, Path(scratch), progress)
        model = teacher_logits(Path(scratch))
    results = []
    for target in targets:
        engine = load_engine(variant, target)
        tokens = np.array(engine.tokenizer.encode(TEXT), np.int32)
        expected, found = model(tokens), engine.logits(tokens.tolist())
        p, q = log_softmax(expected), log_softmax(found)
        results.append(
            Parity(
                target=target,
                positions=len(tokens),
                kl=float((np.exp(p) * (p - q)).sum(-1).mean()),
                top1_agreement=float((p.argmax(-1) == q.argmax(-1)).mean()),
                max_logit_difference=float(np.abs(expected - found).max()),
            )
        )
        engine.close()
    return results
