"""Which sequences stand for a text."""

from collections import Counter

import numpy as np
import pytest

from edgekit.distill.densify import calibration_text
from edgekit.sequences import TokenSequence, evenly_spaced


def text(domains, length=8):
    """A sequence per domain; its tokens are its number."""
    return [
        TokenSequence(np.full(length, number, np.int32), domain, False)
        for number, domain in enumerate(domains)
    ]


def numbers(sequences):
    return [int(s.tokens[0]) for s in sequences]


def test_a_part_of_a_text_that_alternates_has_every_domain():
    some = evenly_spaced(text("abcd" * 10), 0.25)
    assert Counter(s.domain for s in some) == {"a": 3, "b": 3, "c": 3, "d": 3}
    assert numbers(some) == sorted(numbers(some))
    assert numbers(s for s in some if s.domain == "b") == [1, 13, 25]  # from all over it


def test_a_part_of_a_text_is_in_proportion_and_leaves_no_domain_out():
    some = evenly_spaced(text("a" * 30 + "b" * 10 + "c"), 0.2)
    assert Counter(s.domain for s in some) == {"a": 6, "b": 2, "c": 1}
    assert numbers(some)[:6] == [0, 5, 10, 15, 20, 25]


@pytest.mark.parametrize("share", [1.0, 7.0])
def test_all_of_a_text_is_all_of_it(share):
    assert numbers(evenly_spaced(text("aabab"), share)) == [0, 1, 2, 3, 4]


def test_the_text_of_a_dense_model_has_every_domain():
    some = calibration_text(text("abcd" * 50), 400)  # every fourth would be of one domain
    assert Counter(s.domain for s in some) == {"a": 13, "b": 13, "c": 13, "d": 13}
