"""What a student is asked to write on: edgekit's prompts, or the beginnings of the user's text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from edgekit.distill.calibration import encode_prompts
from edgekit.distill.documents import Document, split_documents
from edgekit.errors import BadInputError
from edgekit.recipe import DataSection
from edgekit.recipe_stages import OnPolicySection
from edgekit.text import ChatTokenizer

MOST_PROMPTS = 20_000  # that are read of files


@dataclass(frozen=True)
class Prompt:
    """Tokens to be continued; ``held_out`` ones only measure."""

    tokens: tuple[int, ...]
    domain: str
    held_out: bool


def read_prompts(
    tokenizer: ChatTokenizer, params: OnPolicySection, data: DataSection
) -> list[Prompt]:
    """The prompts of ``params``, or those that lie where ``data`` has its text; each once.

    Of a conversation it is all up to the last words of the user, of a text the first
    ``prompt_tokens``. A prompt is held out if ``data`` holds out the first document that begins
    with it: others that go on otherwise would put one prompt into both splits.

    Raises:
        BadInputError: a file cannot be read or holds no prompt to train on.
    """
    found: list[Prompt] = []
    if params.prompts or data.files:
        found += _of_files(tokenizer, params, data, params.prompts or data.files, "")
    else:
        for (domain, held_out), pool in encode_prompts(tokenizer, data).items():
            found += [Prompt(tuple(tokens), domain, held_out) for tokens in pool]
        for name, domain_section in data.domains.items():
            if domain_section.files:
                found += _of_files(tokenizer, params, data, domain_section.files, name)
    first: dict[tuple[int, ...], Prompt] = {}
    for prompt in found:
        first.setdefault(prompt.tokens, prompt)
    found = list(first.values())
    if all(prompt.held_out for prompt in found):
        raise BadInputError(
            "[distill.on_policy] prompts: there is none to train on; name files with more documents"
        )
    return found


def rounds(
    prompts: Sequence[Prompt], new_tokens: int, tokens: int, seed: int
) -> Iterator[list[tuple[int, Prompt]]]:
    """What to ask in each round, endlessly: of about ``tokens`` with answers of ``new_tokens``.

    They come in epochs, shuffled by the seed. With each prompt comes the number of its epoch.
    Held-out prompts are left out.
    """
    chosen = [prompt for prompt in prompts if not prompt.held_out]
    asked: list[tuple[int, Prompt]] = []
    size = 0
    for epoch in range(1 << 31):
        for number in np.random.default_rng((seed, epoch)).permutation(len(chosen)).tolist():
            asked.append((epoch, chosen[number]))
            size += len(chosen[number].tokens) + new_tokens
            if size >= tokens:
                yield asked
                asked, size = [], 0


def _of_files(
    tokenizer: ChatTokenizer,
    params: OnPolicySection,
    data: DataSection,
    files: tuple[str, ...],
    domain: str,
) -> list[Prompt]:
    found: list[Prompt] = []
    for document, held_out in split_documents(tokenizer, data.model_copy(update={"files": files})):
        tokens = _beginning(tokenizer, document, params.prompt_tokens)
        if tokens:
            found.append(Prompt(tuple(tokens), domain or document.path.stem, held_out))
        if len(found) == MOST_PROMPTS:
            break
    return found


def _beginning(tokenizer: ChatTokenizer, document: Document, prompt_tokens: int) -> list[int]:
    """Empty for a conversation in which the user says nothing."""
    if document.messages is None:
        return tokenizer.encode(document.text)[:prompt_tokens]
    asked = [number for number, m in enumerate(document.messages) if m["role"] == "user"]
    return tokenizer.encode_chat(document.messages[: asked[-1] + 1]) if asked else []
