"""How far a teacher moved between two checkpoints, from what two caches keep of held-out text.

At a position the new cache keeps the probabilities n of some tokens N, the old one o of tokens O,
and each the mass of all its other tokens. So what both say is known for the tokens in N and O, and
for everything else together: with the rests r(n) = 1 - Σ n and r(o) = 1 - Σ o, sums over N ∩ O,

    Σ n log(n / o) + r(n) log(r(n) / r(o))        over the tokens of N ∩ O

A token kept in one cache only is part of the rest in both: its mass in the cache that keeps it is
added there, and that of the other cache is in its tail already. By the log-sum inequality this is
at most KL(new || old), and equal to it when both keep the whole vocabulary, or where the rest
changed in proportion. No upper bound follows from what is kept: a token in the old tail may have
had any small probability. ``compared_mass`` says how much of the new teacher was compared token by
token; what may be missing lies in the rest of its mass.

Drawn targets of training text say nothing here: they lack the other teacher's probabilities.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from edgekit.distill.cache import CacheIndex, LogitCache
from edgekit.distill.divergence import Divergence, Measured
from edgekit.distill.targets import TopTargets
from edgekit.errors import BadInputError
from edgekit.sequences import sequences_digest


class Moved(BaseModel):
    """``kl``: KL(new teacher || old) in nats per token, a lower bound; ``compared_mass``: the new
    teacher's mass on tokens that both caches keep, mean over ``positions``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kl: Divergence
    compared_mass: float
    positions: int


def compare(old: LogitCache, new: LogitCache) -> Moved:
    """How far the teacher of ``new`` is from that of ``old`` on held-out text.

    Raises:
        BadInputError: the caches are of different text, tokenizers or temperatures, or have no
            held-out text.
    """
    require_comparable(old.directory, old.index, new.directory, new.index)
    ours, theirs = _held_out(old), _held_out(new)
    texts = [[c.sequences[n] for n in numbers] for c, numbers in ((old, ours), (new, theirs))]
    if sequences_digest(texts[0]) != sequences_digest(texts[1]):
        raise BadInputError(
            f"{new.directory}: its held-out text is not that of {old.directory}; capture it with "
            "--sequences and the old cache"
        )
    require_held_out(old)
    values, masses = [], []
    for one, other in zip(ours, theirs, strict=True):
        before, after = old.targets(one), new.targets(other)
        assert isinstance(before, TopTargets) and isinstance(after, TopTargets)
        kl, mass = moved_kl(after, before)
        values.append(kl)
        masses.append(mass)
    measured = Measured(tuple(s.domain for s in texts[0]), tuple(values))
    every = np.concatenate(masses)
    return Moved(kl=measured.divergence(), compared_mass=float(every.mean()), positions=len(every))


def require_comparable(old_name: str, old: CacheIndex, new_name: str, new: CacheIndex) -> None:
    """Refuse caches whose distributions are not of the same tokens, or not kept alike.

    Raises:
        BadInputError: the tokenizers, vocabularies or temperatures differ.
    """
    same = {
        "tokenizer": old.tokenizer == new.tokenizer,
        f"vocabulary ({old.vocab_size} and {new.vocab_size} tokens)":
            old.vocab_size == new.vocab_size,
        f"temperature ({old.temperature:g} and {new.temperature:g})":
            old.temperature == new.temperature,
    }  # fmt: skip
    for what, equal in same.items():
        if not equal:
            raise BadInputError(
                f"{new_name}: not comparable with {old_name}, their {what} differ; capture the new "
                "teacher as the old one was, or begin again with a student of the new one"
            )


def require_held_out(cache: LogitCache) -> None:
    """Refuse a cache without held-out text.

    Raises:
        BadInputError: it has none.
    """
    if not _held_out(cache):
        raise BadInputError(
            f"{cache.directory}: there is no held-out text to compare on; capture with "
            "[data] held_out_tokens"
        )


def moved_kl(new: TopTargets, old: TopTargets) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The bound of KL(new || old) in nats, and the mass of ``new`` on tokens that both keep:
    float64 [T] each, from targets of the same T positions."""
    rows = len(new)
    after, after_rest = _probabilities(new)
    before, before_rest = _probabilities(old)
    place = 1 + max(int(new.ids.max()), int(old.ids.max()))  # tokens get a number in all rows
    _, here, there = np.intersect1d(
        _keys(new.ids, place), _keys(old.ids, place), assume_unique=True, return_indices=True
    )
    n, o = after.flat[here], before.flat[there]
    row = here // after.shape[1]
    kl = np.bincount(row, n * np.log(n / o), rows)
    after.flat[here] = before.flat[there] = 0.0  # what is left is the rest of each
    after_rest, before_rest = after_rest + after.sum(-1), before_rest + before.sum(-1)
    kl += after_rest * np.log(after_rest / before_rest)
    return np.maximum(kl, 0.0), np.bincount(row, n, rows).astype(np.float64)


def _held_out(cache: LogitCache) -> list[int]:
    return [number for number, s in enumerate(cache.sequences) if s.held_out]


def _probabilities(targets: TopTargets) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Of the kept tokens [T, K] and of the others together [T]; they add up to 1, which float16
    rounding left a little off."""
    kept, rest = (np.exp(v.double().numpy()) for v in (targets.logprobs, targets.tail))
    mass = kept.sum(-1) + rest
    return kept / mass[:, None], rest / mass


def _keys(ids: torch.Tensor, place: int) -> NDArray[np.int64]:
    return (ids.numpy() + place * np.arange(len(ids))[:, None]).ravel()
