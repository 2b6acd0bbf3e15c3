"""Which tokens of a conversation an assistant wrote.

A chat template is a program, and what it makes of a message depends on the others: it may trim the
words, add a system turn, or leave out the reasoning of all answers but the last. So nothing is
looked for in the text. An answer begins where the conversation before it, rendered as a prompt,
ends: what the model is given before it writes that answer. It ends with the token that ends the
turn, which is found by rendering the conversation up to the answer; or, where the template shows an
earlier answer otherwise than the last, by putting a mark in place of its words and seeing what
follows the mark. Where the whole conversation does not begin with such a prompt, the model would
never write that answer there, and it is refused.
"""

from __future__ import annotations

import itertools
import re
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from edgekit.errors import BadInputError

Messages = Sequence[Mapping[str, Any]]
ASSISTANT = "assistant"


@dataclass(frozen=True)
class TurnFinder:
    """Finds an assistant's turns in rendered conversations.

    Attributes:
        source: what the template belongs to, for errors.
        render: messages, and whether to add the beginning of an answer, to text.
        encode: text to token ids.
        special: matches the special tokens in a text; messages hold none.
        ends: the texts of the tokens at which an answer stops.
    """

    source: str
    render: Callable[[Messages, bool], str]
    encode: Callable[[str], list[int]]
    special: re.Pattern[str]
    ends: frozenset[str]

    def encoded(self, messages: Messages) -> tuple[list[int], list[bool]]:
        """Token ids of ``messages``, and for each whether an assistant wrote it.

        A token that reaches over the beginning or the end of an answer is not the assistant's.

        Raises:
            BadInputError: the template does not show an answer as it asks for it.
        """
        whole = self.render(messages, False)
        spans = self.spans(messages, whole)
        cuts = [0, *(cut for span in spans for cut in span), len(whole)]
        pieces = [self.encode(whole[a:b]) for a, b in itertools.pairwise(cuts)]
        tokens = self.encode(whole)
        if [token for piece in pieces for token in piece] == tokens:
            mine = [number % 2 == 1 for number, piece in enumerate(pieces) for _ in piece]
            return tokens, mine
        mine = [False] * len(tokens)
        for begin, end in spans:
            first, last = self._inside(whole, tokens, begin, end)
            mine[first:last] = [True] * max(last - first, 0)
        return tokens, mine

    def spans(self, messages: Messages, whole: str) -> list[tuple[int, int]]:
        """[begin, end) of each assistant's turn in the text ``whole`` of ``messages``."""
        found: list[tuple[int, int]] = []
        for number, message in enumerate(messages):
            if message.get("role") != ASSISTANT:
                continue
            prompt = self.render(messages[:number], True)
            if not whole.startswith(prompt):
                raise self._refusal(number)
            found.append((len(prompt), self._end(messages, number, whole, len(prompt))))
        return found

    def _end(self, messages: Messages, number: int, whole: str, begin: int) -> int:
        alone = self.render(messages[: number + 1], False)
        end, by_token = self._end_of_last(alone, begin)
        if whole.startswith(alone[:end]):
            if not by_token:  # the next turn's first token may be what ends this one
                following = self.special.match(whole, end)
                if following and following.group() in self.ends:
                    return following.end()
            return end
        mark = secrets.token_hex(16)
        marked = [*messages]
        marked[number] = {**messages[number], "content": mark}
        rest = self.render(marked, False).partition(mark)[2]
        closing = self.special.search(rest)
        if by_token and closing and whole.endswith(rest):
            end = len(whole) - len(rest) + closing.end()
            if end > begin:
                return end
        raise self._refusal(number)

    def _end_of_last(self, text: str, begin: int) -> tuple[int, bool]:
        """Where the last turn of ``text`` ends, and whether a special token ends it."""
        closing = None
        for match in self.special.finditer(text, begin):
            closing = match
        if closing and not text[closing.end() :].strip():
            return closing.end(), True
        return max(begin, len(text.rstrip())), False

    def _inside(self, whole: str, tokens: list[int], begin: int, end: int) -> tuple[int, int]:
        """The tokens [first, last) that lie in the characters [begin, end) with all their text."""
        before = self.encode(whole[:begin])
        if tokens[: len(before)] == before:
            first = len(before)
        else:
            first = len(tokens) - _shared(tokens[::-1], self.encode(whole[begin:])[::-1])
        return first, _shared(tokens, self.encode(whole[:end]))

    def _refusal(self, number: int) -> BadInputError:
        return BadInputError(
            f"{self.source}: the chat template does not show message {number + 1} of a conversation"
            " as the answer that it asks for, so what the assistant wrote there cannot be told; "
            'leave the conversation out, or count all positions ([data] count = "all")'
        )


def _shared(one: list[int], other: list[int]) -> int:
    """How many tokens both begin with."""
    count = 0
    for a, b in zip(one, other, strict=False):
        if a != b:
            break
        count += 1
    return count
