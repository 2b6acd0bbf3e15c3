"""Token ids to text as they come: whole characters only, stop strings held back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

REPLACEMENT = "\ufffd"
CONTEXT_TOKENS = 6  # kept from the previous piece, since a decoder may look at its neighbours


class Decoder(Protocol):
    """What turns token ids into text: a :class:`~edgekit.text.ChatTokenizer`."""

    def decode(self, tokens: Sequence[int]) -> str:
        """Text of token ids."""


class TokenStream:
    """Turns one answer's tokens into text that is safe to show.

    A character that spans tokens is shown when it is complete; the beginning of a stop string is
    held back until it is decided; the stop string itself is never shown.
    """

    def __init__(
        self, tokenizer: Decoder, end_tokens: frozenset[int], stop: tuple[str, ...] = ()
    ) -> None:
        self._tokenizer = tokenizer
        self._end_tokens = end_tokens
        self._stop = tuple(s for s in stop if s)
        self._tokens: list[int] = []  # from the context on
        self._shown = 0  # characters of their text that are past
        self._held = ""  # decoded, but perhaps the beginning of a stop string
        self.finished = False

    def push(self, token: int) -> str:
        """Add a token; returns what can be shown now."""
        if self.finished:
            return ""
        if token in self._end_tokens:
            self.finished = True
            return self.flush()
        self._tokens.append(token)
        text = self._tokenizer.decode(self._tokens)
        if text.endswith(REPLACEMENT):
            return ""  # an incomplete character, or a token that is no text by itself
        piece = text[self._shown :]
        self._tokens = self._tokens[-CONTEXT_TOKENS:]
        self._shown = len(self._tokenizer.decode(self._tokens))
        return self._release(piece)

    def flush(self) -> str:
        """The rest at the end of the answer."""
        piece = self._tokenizer.decode(self._tokens)[self._shown :]
        rest, self._held = self._held + piece, ""
        self._tokens, self._shown = [], 0
        return rest

    def _release(self, piece: str) -> str:
        text = self._held + piece
        found = [text.find(s) for s in self._stop if s in text]
        if found:
            self.finished = True
            self._held = ""
            self._tokens, self._shown = [], 0
            return text[: min(found)]
        keep = max((_overlap(text, s) for s in self._stop), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]


def _overlap(text: str, stop: str) -> int:
    """Length of the longest suffix of ``text`` that begins ``stop``."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if stop.startswith(text[-length:]):
            return length
    return 0
