"""Sequences as the input of a forward pass: stacked, or packed into one row.

Sequences of one length are stacked. Others are packed one after another, with positions that begin
anew at 0; from these transformers makes a mask in which no sequence sees another. A layer that
carries a state from token to token knows no such mask, and some families do not make it: their
sequences are only ever stacked, the longest first, so that those of one length are neighbours.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from edgekit.architecture import Architecture, Attention, LatentAttention
from edgekit.distill.losses import IGNORED
from edgekit.distill.open_model import OpenModel
from edgekit.family_table import FAMILIES
from edgekit.sequences import TokenSequence

PACKED_TOKENS = 4096  # of a row: every token is scored against all others of it


def packs(architecture: Architecture) -> bool:
    """Whether sequences packed into one row of ``architecture`` do not see each other, and cost no
    more memory than apart, as they would where attention keeps the scores of a row."""
    family = FAMILIES[architecture.model_type]
    return (
        family.packs
        and not family.eager
        and all(
            isinstance(layer.attention, Attention | LatentAttention)
            # which of LongRoPE's frequencies apply depends on the longest of the row
            and not (layer.attention.rope and layer.attention.rope.long_inv_freq)
            for layer in architecture.layers
        )
    )


def micro_batches(
    sequences: Sequence[TokenSequence], numbers: Sequence[int], max_tokens: int, packed: bool
) -> list[list[int]]:
    """``numbers`` in groups of at most ``max_tokens``, or of one sequence that is longer; without
    ``packed`` all of a group have one length."""
    groups: list[list[int]] = []
    held, lengths = 0, {n: len(sequences[n].tokens) for n in numbers}
    for number in sorted(numbers, key=lambda n: -lengths[n]):
        length, group = lengths[number], groups[-1] if groups else []
        limit = max_tokens
        if group and lengths[group[0]] != length:
            limit = min(max_tokens, PACKED_TOKENS) if packed else 0
        if group and held + length <= limit:
            group.append(number)
            held += length
        else:
            groups.append([number])
            held = length
    return groups


def hidden_states(opened: OpenModel, sequences: Sequence[TokenSequence]) -> Tensor:
    """What the head reads at every token of ``sequences``, one after another: [tokens, H]."""
    lengths = [len(s.tokens) for s in sequences]
    ids = torch.from_numpy(np.concatenate([s.tokens for s in sequences]).astype(np.int64))
    ids = ids.to(opened.device)
    if len(set(lengths)) == 1:
        states = opened.decoder(input_ids=ids.view(len(lengths), -1), use_cache=False)
    else:
        positions = torch.cat([torch.arange(length) for length in lengths]).to(opened.device)
        states = opened.decoder(input_ids=ids[None], position_ids=positions[None], use_cache=False)
    hidden: Tensor = states.last_hidden_state
    return hidden.reshape(-1, hidden.shape[-1])


def counted(sequences: Sequence[TokenSequence]) -> Tensor:
    """Which tokens of ``sequences``, one after another, count: int64 [positions]."""
    marks = [np.ones(len(s.tokens), np.bool_) if s.counted is None else s.counted
             for s in sequences]  # fmt: skip
    return torch.from_numpy(np.flatnonzero(np.concatenate(marks)))


def next_tokens(sequences: Sequence[TokenSequence]) -> Tensor:
    """What each token of ``sequences`` is followed by in its own: int64 [tokens]; the last one by
    IGNORED, for that is not known."""
    following = [np.append(s.tokens[1:].astype(np.int64), IGNORED) for s in sequences]
    return torch.from_numpy(np.concatenate(following))
