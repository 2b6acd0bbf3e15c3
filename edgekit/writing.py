"""How much a student writes at once in on-policy distillation, and the memory that it takes."""

from __future__ import annotations

from edgekit.architecture import Architecture
from edgekit.plan import FLOAT32_BYTES

WRITTEN_TOKENS = 4096  # of prompts and answers together
WRITTEN_ROWS = 32  # answers
PROBABILITY_BYTES = 24  # of a token: logit and probability, that and its sum in float64


def written_bytes(architecture: Architecture) -> int:
    """Keys, values and states of answers that are being written, and the next tokens' chances."""
    keys = WRITTEN_TOKENS * architecture.kv_bytes_per_token(FLOAT32_BYTES)
    each = architecture.state_bytes(FLOAT32_BYTES) + PROBABILITY_BYTES * architecture.vocab_size
    return keys + WRITTEN_ROWS * each
