"""When the assistant says that a larger model may do better."""

from __future__ import annotations

import pytest

from edgekit.assistant.suggestion import THRESHOLDS, hard_for_small_model, repeats_itself

SURE, UNSURE = THRESHOLDS.mean_logprob + 0.5, THRESHOLDS.mean_logprob - 0.01
LOOP = "The answer is here: " + "El Salvador, Español, Español\n\n" * 8


@pytest.mark.parametrize(
    ("signals", "code"),
    [
        ((SURE, 100, 4096, "complete"), None),
        ((UNSURE, 100, 4096, "complete"), "low_confidence"),
        ((None, 100, 4096, "complete"), None),
        ((float("nan"), 100, 4096, "complete"), None),
        ((SURE, 3276, 4096, "complete"), None),
        ((SURE, 3277, 4096, "complete"), "context_nearly_full"),
        ((SURE, 5000, 0, "complete"), None),
        ((SURE, 100, 4096, "length"), "cut_by_length"),
        ((UNSURE, 4000, 4096, "length"), "context_nearly_full"),
        ((UNSURE, 4000, 4096, "stopped"), None),
        ((UNSURE, 4000, 4096, "failed"), None),
        ((UNSURE, 4000, 4096, "partial"), None),
    ],
)
def test_first_signal_that_counts_is_named(signals: tuple, code: str | None) -> None:
    assert hard_for_small_model(*signals) == code


def test_loop_is_named_before_the_length_that_cut_it() -> None:
    assert hard_for_small_model(SURE, 10, 4096, "length", LOOP) == "repeats_itself"


@pytest.mark.parametrize(
    "answer",
    [
        LOOP,
        "好的。" + "我不知道该怎么说，" * 8,
        "no " * 40,
        "".join(f"{n}. The capital of France is Paris.\n" for n in range(1, 30)),
        "x" + "ha" * 60,
        "Start. " + "The freezing point of water in this case is 100. " * 5 + "  \n",
    ],
)
def test_loop_at_the_end_is_seen(answer: str) -> None:
    assert repeats_itself(answer)


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "no no no",
        "A short answer.",
        "-" * 200,
        "| a | b |\n|---|---|\n" + "|   |   |\n" * 20,
        "no " * 40 + "but then the answer goes on as answers do, with other words.",
        "".join(f"{n}. {word} is a fruit.\n" for n, word in enumerate(("apple", "pear", "fig"))),
        "for i in range(10):\n    print(i)\n" * 2,
        "1010101010" * 20,
    ],
)
def test_what_repeats_for_a_reason_is_no_loop(answer: str) -> None:
    assert not repeats_itself(answer)


def test_very_long_answer_is_looked_at_from_its_end_alone() -> None:
    assert repeats_itself("x y z " * 500_000)
