"""Texts to token ids for an embedding model: special tokens around them, cut where they are long.

Special tokens written in a text are text: a document cannot end its own passage with ``[SEP]``.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tokenizers import Encoding

from edgekit.errors import BadInputError
from edgekit.text import TOKENIZER, open_tokenizer, whole_characters


class PassageTokenizer:
    """The tokenizer of a checkpoint or variant directory; texts are cut to ``max_tokens``.

    What is cut is the end of the text: the special tokens after it stay. Thread safe.

    Raises:
        BadInputError: ``tokenizer.json`` is missing, cannot be read, or leaves no room for text.
    """

    def __init__(self, directory: Path, max_tokens: int) -> None:
        path = directory / TOKENIZER
        self._tokenizer = open_tokenizer(directory)
        self._tokenizer.encode_special_tokens = True
        self._max_tokens = max_tokens
        marks = self._tokenizer.encode("a").special_tokens_mask
        self._tail = next((i for i, special in enumerate(reversed(marks)) if not special), 0)
        if max_tokens <= sum(marks):
            raise BadInputError(
                f"{path}: {sum(marks)} special tokens leave no room in {max_tokens}; check "
                "max_seq_length of the model"
            )

    @property
    def vocab_size(self) -> int:
        """One more than the highest token id."""
        return max(self._tokenizer.get_vocab(with_added_tokens=True).values()) + 1

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text, at most ``max_tokens``."""
        whole = [whole_characters(text) for text in texts]
        return [self._cut(encoding) for encoding in self._tokenizer.encode_batch_fast(whole)]

    def count(self, text: str) -> int:
        """Tokens of a text before it is cut, special tokens included."""
        return len(self._tokenizer.encode(whole_characters(text)).ids)

    def _cut(self, encoding: Encoding) -> list[int]:
        ids: list[int] = encoding.ids
        if len(ids) <= self._max_tokens:
            return ids
        kept = self._max_tokens - self._tail
        return ids[:kept] + ids[len(ids) - self._tail :]
