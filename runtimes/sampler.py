"""Choose a token from logits, with the meaning that :class:`Sampling` has on every runtime.

In this order, which is OpenVINO GenAI's and that of transformers: tokens that a grammar forbids are
out; the repetition penalty divides positive logits and multiplies negative ones of tokens that
prompt or answer have; presence and frequency penalties are subtracted from the logits of tokens
that the answer has (as OpenAI defines them); the ``top_k`` largest stay; the temperature divides;
of what is left the fewest tokens with ``top_p`` of the probability stay; one is drawn.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from edgekit.evaluate import log_softmax
from edgekit.runtimes.batching import Produced
from edgekit.runtimes.engine import Sampling

Logits = NDArray[np.float32]


class Sampler:
    """The choices of one answer: its random numbers and what its penalties have seen."""

    def __init__(self, sampling: Sampling, prompt: Sequence[int], top_logprobs: int | None) -> None:
        self._sampling = sampling
        self._top_logprobs = top_logprobs
        self._random = np.random.default_rng(sampling.seed)
        self._prompt = np.unique(np.asarray(prompt, np.int64))
        self._counts: dict[int, int] = {}

    def choose(self, logits: Logits, allowed: NDArray[np.bool_] | None = None) -> Produced:
        """The next token of the answer from logits [V]; ``allowed`` [V] is a grammar's mask.

        Log-probabilities are those of the model itself: before masks, penalties and temperature.
        """
        weights = logits.astype(np.float64)
        if allowed is not None:
            weights[~allowed] = -np.inf
        self._penalize(weights)
        token = self._draw(weights) if self._sampling.temperature > 0 else int(weights.argmax())
        self._counts[token] = self._counts.get(token, 0) + 1
        return produced(token, logits, self._top_logprobs)

    def _penalize(self, weights: NDArray[np.float64]) -> None:
        s = self._sampling
        answer = np.fromiter(self._counts.keys(), np.int64, len(self._counts))
        if s.repetition_penalty != 1:
            seen = np.union1d(self._prompt, answer)
            values = weights[seen]
            penalty = s.repetition_penalty
            weights[seen] = np.where(values < 0, values * penalty, values / penalty)
        if s.presence_penalty or s.frequency_penalty:
            counts = np.fromiter(self._counts.values(), np.int64, len(self._counts))
            weights[answer] -= s.presence_penalty + s.frequency_penalty * counts

    def _draw(self, weights: NDArray[np.float64]) -> int:
        s = self._sampling
        tokens = np.arange(len(weights))
        if 0 < s.top_k < len(weights):
            tokens = np.argpartition(weights, -s.top_k)[-s.top_k :]
        scaled = weights[tokens] / s.temperature
        probabilities = np.exp(scaled - scaled.max())
        probabilities /= probabilities.sum()
        if s.top_p < 1:
            order = np.argsort(-probabilities, kind="stable")
            kept = int(np.searchsorted(np.cumsum(probabilities[order]), s.top_p)) + 1
            tokens, probabilities = tokens[order[:kept]], probabilities[order[:kept]]
        edges = np.cumsum(probabilities)
        chosen = np.searchsorted(edges, self._random.random() * edges[-1], side="right")
        return int(tokens[min(int(chosen), len(tokens) - 1)])


def produced(token: int, logits: Logits, top_logprobs: int | None) -> Produced:
    """A token with its log-probability and those of the most probable tokens, as asked for."""
    if top_logprobs is None:
        return Produced(token)
    values = log_softmax(logits)
    top: tuple[tuple[int, float], ...] = ()
    if top_logprobs:
        best = np.argpartition(-values, min(top_logprobs, len(values)) - 1)[:top_logprobs]
        best = best[np.argsort(-values[best], kind="stable")]
        top = tuple((int(i), float(values[i])) for i in best)
    return Produced(token, float(values[token]), top)
