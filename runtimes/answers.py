"""From a runtime's token ids to the events of an answer; the same for every engine."""

from __future__ import annotations

import time
from collections.abc import Iterator

from edgekit.errors import BadInputError
from edgekit.memory import peak_memory
from edgekit.runtimes.engine import Sampling, Stats, TokenEvent
from edgekit.runtimes.streaming import TokenStream
from edgekit.text import ChatTokenizer


def token_events(
    tokens: Iterator[int], prompt_tokens: int, tokenizer: ChatTokenizer, sampling: Sampling
) -> Iterator[TokenEvent]:
    """Turn the token ids of one answer into events with text, the last one with statistics.

    The time to first token is measured from the first ``next`` on, so begin iterating when the
    question is asked.
    """
    ends = frozenset[int]() if sampling.ignore_end else tokenizer.end_tokens
    stream = TokenStream(tokenizer, ends, sampling.stop)
    stats = Stats(prompt_tokens=prompt_tokens)
    start = time.perf_counter()
    first = last = 0.0
    for token in tokens:
        last = time.perf_counter()
        first = first or last
        stats.generated_tokens += 1
        text = stream.push(token)
        if stream.finished or stats.generated_tokens == sampling.max_tokens:
            break
        yield TokenEvent(text, token)
    else:
        text, token = "", -1
    stats.time_to_first_token = first - start if first else 0.0
    stats.decode_seconds = last - first
    stats.peak_memory_bytes = peak_memory()
    if stream.finished:
        yield TokenEvent(text, token, "stop", stats)
    else:
        yield TokenEvent(text + stream.flush(), token, "length", stats)


def bounded_tokens(prompt_tokens: int, sampling: Sampling, context_length: int) -> int:
    """How many tokens the answer may have.

    Raises:
        BadInputError: the prompt is empty or leaves no room for an answer.
    """
    if prompt_tokens == 0:
        raise BadInputError("the prompt is empty; ask something")
    room = context_length - prompt_tokens
    if room < 1:
        raise BadInputError(
            f"the prompt has {prompt_tokens} tokens but the model's context is {context_length}; "
            "shorten it or begin a new conversation"
        )
    return min(sampling.max_tokens, room)
