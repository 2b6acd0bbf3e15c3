"""Prompts on which a graph must say what the reference says, and how a graph is run on them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgekit.architecture import Architecture
from edgekit.evaluate import log_softmax
from edgekit.runtimes.graph_sessions import GraphSession

LONGEST = 1024  # tokens of a case: float32 references take long on more
Float = NDArray[np.float32]


@dataclass(frozen=True)
class Case:
    """Rows of tokens, given as a padded batch of prompts, then a chunk, then one by one.

    Row ``i`` has ``prefill[i] + chunk + decode`` tokens.
    """

    name: str
    rows: tuple[tuple[int, ...], ...]
    prefill: tuple[int, ...]
    chunk: int = 0
    decode: int = 0


def make_cases(
    architecture: Architecture, longest: int = LONGEST, padding: int | None = None
) -> list[Case]:
    """The cases that fit a model: windows and half contexts beyond ``longest`` are left out.

    The ``padding`` token is not used: its embedding is often zero, for which all experts of a
    router tie.
    """
    random = np.random.default_rng(0)
    vocabulary = np.delete(np.arange(architecture.vocab_size), [] if padding is None else padding)
    context = min(architecture.context_length, longest)

    def case(name: str, prefill: tuple[int, ...], chunk: int = 0, decode: int = 0) -> Case:
        rows = tuple(
            tuple(random.choice(vocabulary, count + chunk + decode).tolist()) for count in prefill
        )
        return Case(name, rows, prefill, chunk, decode)

    cases = [
        case("prefill", (min(64, context - 1),)),
        case("decode", (24,), decode=12),
        case("batch with padding", (33, 17, 9), decode=4),
        case("cache reuse", (20,), chunk=13, decode=3),
    ]
    windows = {getattr(layer.attention, "window", 0) for layer in architecture.layers} - {0}
    for window in sorted(windows):
        if window + 24 <= context:
            cases.append(case(f"past the window of {window}", (window + 8,), decode=16))
    half = architecture.context_length // 2
    if half + 16 <= context:
        cases.append(case("past half the context", (half + 8,), decode=4))
    return cases


def run_case(session: GraphSession, case: Case) -> list[Float]:
    """Logits [tokens, vocab_size] of every row, from an empty cache."""
    session.reset()
    rows = [np.array(row, np.int64) for row in case.rows]
    width = max(case.prefill)
    tokens = np.zeros((len(rows), width), np.int64)
    mask = np.zeros_like(tokens)
    places = []
    for i, count in enumerate(case.prefill):
        place = slice(width - count, width) if session.padding_side == "left" else slice(0, count)
        tokens[i, place], mask[i, place] = rows[i][:count], 1
        places.append(place)
    logits = session.run(tokens, mask)
    found = [[logits[i, place]] for i, place in enumerate(places)]
    for start, count in _steps(case):
        following = np.stack(
            [row[p + start : p + start + count] for row, p in zip(rows, case.prefill, strict=True)]
        )
        mask = np.concatenate([mask, np.ones_like(following)], axis=1)
        logits = session.run(following, mask)
        for i, parts in enumerate(found):
            parts.append(logits[i])
    return [np.concatenate(parts) for parts in found]


def _steps(case: Case) -> list[tuple[int, int]]:
    """Offset behind the prompt and length of everything that follows it."""
    steps = [(0, case.chunk)] if case.chunk else []
    return steps + [(case.chunk + i, 1) for i in range(case.decode)]


@dataclass(frozen=True)
class Difference:
    """A graph's logits against the reference's, position by position.

    Attributes:
        kl: KL(reference || graph) in nats, float64 [positions].
        agrees: whether both name the same token, or the reference's best two are a tie.
        relative_error: the largest difference over the largest logit.
    """

    kl: NDArray[np.float64]
    agrees: NDArray[np.bool_]
    relative_error: float


def compare(reference: list[Float], found: list[Float]) -> Difference:
    """The difference over all rows of one or more cases.

    Two tokens tie when their logits are closer than twice the largest difference, since then
    rounding alone decides.
    """
    expected, given = np.concatenate(reference), np.concatenate(found)
    error = np.abs(expected - given).max()
    p, q = log_softmax(expected), log_softmax(given)
    best_two = np.sort(np.partition(expected, -2, axis=-1)[:, -2:], axis=-1)
    ties = best_two[:, 1] - best_two[:, 0] <= 2 * error
    return Difference(
        kl=np.sum(np.exp(p) * (p - q), axis=-1),
        agrees=(expected.argmax(-1) == given.argmax(-1)) | (ties & (error < TIE)),
        relative_error=float(error / np.abs(expected).max()),
    )


TIE = 0.01  # of a logit: beyond it a difference is no rounding
