"""Continue prompts with an opened model: sampling in batches, with a cache of keys and values.

Every prompt has uniform numbers of its own, one for each new token, which depend on the seed and
the prompt alone. A token is the one in whose part of the cumulated distribution its number lies. So
a continuation does not depend on what else is in the batch, except where a number lies so close to
an edge that the rounding of a larger or smaller matrix product decides.

Prompts of different lengths need no padding. As many tokens as the shortest has are read of all at
once; then longer ones are still being read while shorter ones are answered already. So every row
has the same number of tokens at any time, and positions and masks are those of a row alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edgekit.distill.head import Head
from edgekit.distill.open_model import OpenModel
from edgekit.distill.targets import uniform_numbers
from edgekit.errors import BadInputError
from edgekit.progress import Task
from edgekit.writing import WRITTEN_ROWS, WRITTEN_TOKENS

SPREAD = 32  # longest less shortest prompt of a batch; tokens that are read one at a time
LIKELIEST = 256  # tokens in which a nucleus is looked for first

LastLogits = Callable[[Tensor, Any], tuple[Tensor, Any]]  # ids [B, T], state: [B, V], new state
Choose = Callable[[Tensor], Tensor | None]  # of logits [B, V]: the next tokens [B], None to end


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn; a ``temperature`` of 0 takes the most probable one, a ``top_p`` below 1
    the fewest likely tokens that have that much of the mass (arXiv 1904.09751)."""

    new_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    seed: int = 0


def generate(
    opened: OpenModel,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    end_tokens: frozenset[int],
    task: Task,
    vocab_size: int = 0,
) -> list[NDArray[np.int32]]:
    """Continuations of ``prompts``: int32 [1 .. ``new_tokens``] each, an end token included.

    Equal prompts get equal continuations; another seed gives another. Only the first ``vocab_size``
    tokens are drawn (0: all). ``task`` advances by one for each prompt.

    Raises:
        BadInputError: a prompt is empty or does not fit the context, or the model's logits are not
            finite.
    """
    context = opened.architecture.context_length
    lengths = [len(prompt) for prompt in prompts]
    if prompts and (min(lengths) == 0 or max(lengths) + sampling.new_tokens > context):
        raise BadInputError(
            f"{opened.path}: prompts must have 1 to {context - sampling.new_tokens} tokens, which "
            f"leaves {sampling.new_tokens} for the answer; shorten them or lower new_tokens"
        )
    read = _reader(opened, vocab_size)
    found: dict[int, NDArray[np.int32]] = {}
    for batch in _batches(lengths, sampling.new_tokens):
        chosen = [list(prompts[number]) for number in batch]
        try:
            answers = _answers(read, chosen, sampling, end_tokens, opened.device)
        except FloatingPointError as error:
            raise BadInputError(
                f"{opened.path}: {error}, so nothing can be sampled; the weights are damaged or "
                "training diverged, use another checkpoint or lower the learning rate"
            ) from error
        found.update(zip(batch, answers, strict=True))
        task.advance(len(batch))
    return [found[number] for number in range(len(prompts))]


@torch.no_grad()
def decode(read: LastLogits, ids: Tensor, choose: Choose) -> None:
    """Read ``ids`` int64 [B, T], then one token of every row at a time until ``choose`` ends it."""
    state = None
    while True:
        logits, state = read(ids, state)
        column = choose(logits)
        if column is None:
            return
        ids = column[:, None]


def draw(logits: Tensor, uniform: Tensor, sampling: Sampling) -> Tensor:
    """int64 [B] tokens from logits [B, V] by numbers float64 [B] in [0, 1).

    The distribution is cumulated in the order of the ids, so that rounding moves its edges a little
    and never swaps two tokens.

    Raises:
        FloatingPointError: the logits are not finite.
    """
    if not logits.isfinite().all():
        raise FloatingPointError("the model's logits are not finite")
    if sampling.temperature == 0:
        return logits.argmax(-1)
    probabilities = (logits.float() / sampling.temperature).softmax(-1).double()
    if sampling.top_p < 1:
        probabilities = probabilities * _in_nucleus(probabilities, sampling.top_p)
    edges = probabilities.cumsum(-1)
    whole = edges[:, -1]
    # below the last edge even where the product rounds up to it
    points = torch.minimum(uniform * whole, torch.nextafter(whole, torch.zeros_like(whole)))
    return torch.searchsorted(edges, points[:, None], right=True)[:, 0]


def _in_nucleus(probabilities: Tensor, top_p: float) -> Tensor:
    """bool [B, V]: the fewest likely tokens with a mass of ``top_p``, and equals of the last."""
    values = probabilities.topk(min(LIKELIEST, probabilities.shape[-1])).values
    if (values.sum(-1) < top_p).any():
        values = probabilities.sort(-1, descending=True).values
    before = values.cumsum(-1) - values
    least = values.masked_fill(before >= top_p, torch.inf).amin(-1, keepdim=True)
    return probabilities >= least


def _reader(opened: OpenModel, vocab_size: int) -> LastLogits:
    head = Head(opened, vocab_size)

    def read(ids: Tensor, state: Any) -> tuple[Tensor, Any]:
        result = opened.decoder(input_ids=ids, past_key_values=state, use_cache=True)
        return head.logits(result.last_hidden_state[:, -1]), result.past_key_values

    return read


def _batches(lengths: Sequence[int], new_tokens: int) -> Iterator[list[int]]:
    """Numbers of prompts of similar lengths, shortest first."""
    batch: list[int] = []
    for number in np.argsort(lengths, kind="stable").tolist():
        full = len(batch) == WRITTEN_ROWS
        full |= (len(batch) + 1) * (lengths[number] + new_tokens) > WRITTEN_TOKENS
        if batch and (full or lengths[number] - lengths[batch[0]] > SPREAD):
            yield batch
            batch = []
        batch.append(number)
    if batch:
        yield batch


def _answers(
    read: LastLogits,
    prompts: Sequence[list[int]],
    sampling: Sampling,
    end_tokens: frozenset[int],
    device: torch.device,
) -> list[NDArray[np.int32]]:
    shortest = min(map(len, prompts))
    numbers = torch.stack([_numbers(prompt, sampling) for prompt in prompts])
    rows = [prompt[:shortest] for prompt in prompts]
    done = [False] * len(rows)

    def choose(logits: Tensor) -> Tensor | None:
        made = torch.tensor([len(r) - len(p) for r, p in zip(rows, prompts, strict=True)])
        place = made.clamp(0, sampling.new_tokens - 1)
        uniform = numbers.gather(1, place[:, None])[:, 0]
        drawn = draw(logits, uniform.to(logits.device), sampling).tolist()
        for number, (row, prompt, token) in enumerate(zip(rows, prompts, drawn, strict=True)):
            if len(row) < len(prompt):
                row.append(prompt[len(row)])
            elif not done[number]:
                row.append(token)
                full = len(row) == len(prompt) + sampling.new_tokens
                done[number] = full or token in end_tokens
        if all(done):
            return None
        return torch.tensor([row[-1] for row in rows], device=device)

    decode(read, torch.tensor(rows, device=device), choose)
    return [
        np.array(row[len(prompt) :], np.int32) for row, prompt in zip(rows, prompts, strict=True)
    ]


def _numbers(prompt: Sequence[int], sampling: Sampling) -> Tensor:
    key = hashlib.sha256(np.array(prompt, np.int32).tobytes()).hexdigest()
    return uniform_numbers(sampling.seed, key, sampling.new_tokens)
