"""Saying that a question may be too hard for the small model, from what can be measured.

Nothing follows from it but a quiet line: a message goes to a cloud model by a person's act alone.

The signals, in the order in which one is named:

``repeats_itself``
    The answer ends in a loop: the last characters, numbers aside, repeat with one period at least
    four times.
``context_nearly_full``
    The prompt takes most of the context, so that the beginning may be compacted away and little
    room is left for an answer. A rule, not a measurement.
``cut_by_length``
    The answer reached its longest length.
``low_confidence``
    The mean log-probability of the answer's tokens, under the raw softmax, is low.

Confidence is a weak signal, and its threshold is set for few false alarms. Measured with the
default sampling (temperature 0.7, repetition penalty 1.1), 64 tokens, two seeds, on 16 questions
of common knowledge and 16 that ask for proofs, obscure facts, made-up words or Chinese from an
English model; shares of answers below the threshold:

==========================  =====  =============  =============  =============
model                       AUC    -2.0           -2.2           -2.4
==========================  =====  =============  =============  =============
dense, 135 M, instruct      0.69   22 % / 47 %    12 % / 38 %    6 % / 22 %
sparse, 274 M (128 active)  0.63    9 % / 22 %     3 % / 16 %    0 % / 9 %
==========================  =====  =============  =============  =============

(easy / hard). Lower temperatures raise the mean of both, by about 1 at temperature 0 without a
penalty, and the signal then falls silent rather than wrong. A fluent wrong answer is not noticed.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

AnswerState = Literal["complete", "length", "stopped", "failed", "partial"]


@dataclass(frozen=True)
class Thresholds:
    """Where a signal counts.

    Attributes:
        mean_logprob: nats a token; see :data:`THRESHOLDS`.
        context_share: of the context, taken by the prompt.
        repetitions: of one period at the end.
        shortest_loop: characters that the repetitions cover at least.
        longest_period: characters.
    """

    mean_logprob: float
    context_share: float = 0.8
    repetitions: int = 4
    shortest_loop: int = 48
    longest_period: int = 200


THRESHOLDS = Thresholds(mean_logprob=-2.4)


def hard_for_small_model(
    mean_logprob: float | None,
    prompt_tokens: int,
    context_length: int,
    answer_state: AnswerState,
    answer: str = "",
    thresholds: Thresholds = THRESHOLDS,
) -> str | None:
    """The code of the first signal that counts, or ``None``.

    ``mean_logprob`` is ``None`` where it was not measured; ``context_length`` 0 is unknown. An
    answer that a person stopped, or that failed, says nothing about its question.
    """
    if answer_state not in ("complete", "length"):
        return None
    if repeats_itself(answer, thresholds):
        return "repeats_itself"
    if context_length and prompt_tokens >= thresholds.context_share * context_length:
        return "context_nearly_full"
    if answer_state == "length":
        return "cut_by_length"
    if mean_logprob is not None and mean_logprob < thresholds.mean_logprob:
        return "low_confidence"
    return None


def repeats_itself(answer: str, thresholds: Thresholds = THRESHOLDS) -> bool:
    """Whether an answer ends in a loop of words, counters in it aside.

    A line of dashes or a row of a table is no loop: the period must hold a letter or a digit.
    """
    times = thresholds.repetitions
    tail = answer.rstrip()[-2 * times * thresholds.longest_period :]
    tail = re.sub(r"\d+", "0", tail)
    for period in range(1, min(thresholds.longest_period, len(tail) // times) + 1):
        size = max(period * times, thresholds.shortest_loop)
        looping = tail[-size:]
        if len(looping) == size and looping[period:] == looping[:-period]:
            return any(character.isalpha() for character in looping[:period])
    return False
