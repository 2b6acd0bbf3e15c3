"""Token streams: whatever the tokens, the pieces are the text."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekit.runtimes.streaming import TokenStream
from edgekit.text import ChatTokenizer


@pytest.fixture(scope="module")
def tokenizer(tiny_llama):
    return ChatTokenizer(tiny_llama)


def stream_text(tokenizer, tokens, stop=()):
    stream = TokenStream(tokenizer, tokenizer.end_tokens, stop)
    pieces = [stream.push(t) for t in tokens if not stream.finished]
    return "".join(pieces) + ("" if stream.finished else stream.flush()), stream.finished


@settings(deadline=None, max_examples=60)
@given(text=st.text(max_size=40))
def test_pieces_add_up_to_any_text(tokenizer, text):
    tokens = tokenizer.encode(text)
    assert stream_text(tokenizer, tokens)[0] == text


def test_a_character_appears_only_when_it_is_whole(tokenizer):
    tokens = tokenizer.encode("🐦")
    assert len(tokens) > 1
    stream = TokenStream(tokenizer, frozenset())
    assert [stream.push(t) for t in tokens] == [""] * (len(tokens) - 1) + ["🐦"]


@settings(deadline=None, max_examples=60)
@given(before=st.text("ab", max_size=8), after=st.text("ab", max_size=8))
def test_a_stop_string_is_found_across_tokens(tokenizer, before, after):
    text = before + "xyz" + after
    shown, finished = stream_text(tokenizer, tokenizer.encode(text), stop=("xyz",))
    assert finished and shown == before


def test_the_beginning_of_a_stop_string_is_released_when_it_does_not_go_on(tokenizer):
    assert stream_text(tokenizer, tokenizer.encode("ab xy done"), stop=("xyz",)) == (
        "ab xy done", False
    )  # fmt: skip


def test_an_end_token_finishes(tokenizer):
    end = next(iter(tokenizer.end_tokens))
    shown, finished = stream_text(tokenizer, [*tokenizer.encode("hi"), end])
    assert shown == "hi" and finished
