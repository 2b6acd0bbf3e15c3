"""A teacher behind an HTTP server: its most probable tokens at each position of a sequence.

Servers score prompts: for each token of a prompt they say which tokens were the most probable in
its place. Prompts are sent as token ids and what comes back are ids, so no text is tokenized on the
way. Of a sequence x_1 … x_T a prompt's answer tells what was expected as x_2 … x_T; what follows
x_T is told by one more token after it, whichever it is, since no token changes what was expected in
its place. That is why the generated token, which servers may filter and scale, is not needed.

vLLM, ``POST /v1/completions`` with ``prompt_logprobs: K``: ``choices[0].prompt_logprobs`` has an
entry for each prompt token, null for the first, else ``{"ID": {"logprob", "rank",
"decoded_token"}, …}`` of the K most probable tokens and, where it is none of them, the prompt's own
token as well. -inf comes as -9999. K is at most the server's ``--max-logprobs``, 20 by default;
more is refused (400).

SGLang, whose ``/v1/completions`` does not do this, ``POST /generate`` with ``return_logprob``,
``logprob_start_len: 0`` and ``top_logprobs_num: K``: ``meta_info`` has ``input_token_logprobs``,
``[logprob, ID, text]`` of each prompt token, and ``input_top_logprobs``, null for the first, else a
list of K such entries.

Both name their models, and how many tokens these take, in ``GET /v1/models`` (``max_model_len``),
and turn ids into text in ``POST /detokenize``.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from edgekit.distill.same_tokenizer import PROBES
from edgekit.distill.served_http import Answer, Requests
from edgekit.distill.targets import LOWEST, TopTargets
from edgekit.errors import BadInputError
from edgekit.sequences import TokenSequence
from edgekit.text import ChatTokenizer

EXTRA_TOKENS = 2  # beside a sequence: one after it, and the one that servers must generate
MASS_TOLERANCE = 1e-2  # by which rounded probabilities may add up to more than 1

Row = Sequence[tuple[int, float | None]]  # of one position: ids and log-probabilities


@dataclass(frozen=True)
class Dialect:
    """How a kind of server is asked. ``rows`` gives the positions after the first of an answer to a
    prompt; None where the server left log-probabilities of the prompt out."""

    path: str
    body: Callable[[str, Sequence[int], int], dict[str, Any]]
    rows: Callable[[Any, Sequence[int]], list[Row] | None]


def _vllm_body(model: str, prompt: Sequence[int], top_k: int) -> dict[str, Any]:
    # old versions apply these to the prompt's distributions too, and take defaults from the model
    plain = {"temperature": 1.0, "top_p": 1.0, "top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0}
    return {"model": model, "prompt": prompt, "max_tokens": 1, "prompt_logprobs": top_k, **plain}


def _vllm_rows(answer: Any, prompt: Sequence[int]) -> list[Row] | None:
    given = answer["choices"][0].get("prompt_logprobs")
    if given is None:
        return None
    own = [str(token) in row for token, row in zip(prompt[1:], given[1:], strict=True)]
    if not all(own):
        raise ValueError("it answers for other tokens than were sent")
    return [[(int(i), entry["logprob"]) for i, entry in row.items()] for row in given[1:]]


def _sglang_body(model: str, prompt: Sequence[int], top_k: int) -> dict[str, Any]:
    del model  # a server has one
    return {
        "input_ids": prompt,
        "sampling_params": {"max_new_tokens": 1, "temperature": 1.0},
        "return_logprob": True,
        "logprob_start_len": 0,
        "top_logprobs_num": top_k,
    }


def _sglang_rows(answer: Any, prompt: Sequence[int]) -> list[Row] | None:
    given = answer["meta_info"].get("input_top_logprobs")
    if not given:
        return None
    own = [entry[1] for entry in answer["meta_info"]["input_token_logprobs"]]
    if own != list(prompt) or len(given) != len(prompt):
        raise ValueError("it answers for other tokens than were sent")
    return [[(entry[1], entry[0]) for entry in row] for row in given[1:]]


DIALECTS = (
    Dialect("/v1/completions", _vllm_body, _vllm_rows),
    Dialect("/generate", _sglang_body, _sglang_rows),
)


class ServedTeacher:
    """A served model as a teacher.

    Args:
        requests: to its server.
        model: the name under which it is served.
        directory: with its config and tokenizer.
        outputs: tokens that its head has; an id above is of another model.
        vocab_size: how many of them are tokens; distributions are over these.
        top_k: tokens kept of each position.
    """

    def __init__(
        self,
        requests: Requests,
        model: str,
        directory: Path,
        outputs: int,
        vocab_size: int,
        top_k: int,
    ) -> None:
        self._requests, self._model, self._directory = requests, model, directory
        self._outputs, self._vocab_size, self._top_k = outputs, vocab_size, top_k
        self._dialect = DIALECTS[0]

    async def probe(self) -> int | None:
        """Find out how the server is asked, and whether it serves the model that it should.

        Returns the longest sequence that it takes, or None where it does not say.

        Raises:
            BadInputError: it does not serve the model, gives no or too few log-probabilities of
                prompts, or has other tokens.
            MissingRuntimeError: it cannot be reached.
        """
        context = await self._context()
        tokenizer = ChatTokenizer(self._directory)
        await self._find_dialect(tokenizer.encode(PROBES[0]))
        await self._compare_tokens(tokenizer)
        return None if context is None else context - EXTRA_TOKENS

    async def targets(self, sequence: TokenSequence) -> TopTargets:
        """Targets [T, K] of the T positions of a sequence that count.

        Raises:
            BadInputError: the server refuses the sequence, or its answer cannot be used.
            MissingRuntimeError: the server is lost.
        """
        tokens = sequence.tokens
        prompt = [*tokens.tolist(), int(tokens[-1])]
        answer = await self._ask(self._dialect, prompt)
        if not answer.is_success:
            raise self._error(
                f"refuses a sequence of {len(tokens)} tokens ({self._requests.words(answer)}); "
                "if it is too long, lower [data] sequence_length"
            )
        rows = self._rows(self._dialect, answer, prompt)
        if rows is None:
            raise self._error("no longer gives log-probabilities of prompts; restart it as before")
        found = self._checked(rows)
        if sequence.counted is None:
            return found
        kept = torch.from_numpy(sequence.counted)
        return TopTargets(found.ids[kept], found.logprobs[kept], found.tail[kept])

    async def _context(self) -> int | None:
        answer = await self._requests.get("/v1/models")
        if not answer.is_success:
            raise self._error(
                f"does not list its models at /v1/models ({self._requests.words(answer)}); give "
                "the address of a vLLM or SGLang server"
            )
        try:
            lengths = {card["id"]: card.get("max_model_len") for card in answer.value["data"]}
        except (KeyError, TypeError, AttributeError) as error:
            raise self._unreadable("/v1/models", error) from error
        if self._model not in lengths:
            raise self._error(f"serves no {self._model!r} but {', '.join(map(repr, lengths))}")
        length = lengths[self._model]
        return length if isinstance(length, int) else None

    async def _find_dialect(self, prompt: Sequence[int]) -> None:
        refusals = []
        for dialect in DIALECTS:
            answer = await self._ask(dialect, prompt)
            if not answer.is_success:
                words = self._requests.words(answer)
                if limit := re.search(r"max allowed: (\d+)", words):
                    raise self._too_few(int(limit[1]))
                refusals.append(f"{dialect.path} {words}")
                continue
            rows = self._rows(dialect, answer, prompt)
            if rows is not None:
                self._dialect = dialect
                self._checked(rows)
                return
        told = f" ({'; '.join(refusals)})" if refusals else ""
        raise self._error(
            f"gives no log-probabilities of prompts{told}; serve the teacher with vLLM or SGLang"
        )

    async def _compare_tokens(self, tokenizer: ChatTokenizer) -> None:
        """Let the server spell some ids, if it does that: equal sizes do not make equal tokens."""
        ids = tokenizer.encode("\n".join(PROBES))
        body = {"model": self._model, "tokens": ids}
        answer = await self._requests.post("/detokenize", body)
        if not answer.is_success or not isinstance(answer.value, dict):
            return
        spelled = answer.value.get("prompt", answer.value.get("text"))
        # decoders differ in the spaces that they tidy up
        if isinstance(spelled, str) and _dense(spelled) != _dense(tokenizer.decode(ids)):
            raise self._error(
                f"reads other text in token ids than the tokenizer of {self._directory}; give the "
                "directory of the model that is served"
            )

    async def _ask(self, dialect: Dialect, prompt: Sequence[int]) -> Answer:
        return await self._requests.post(
            dialect.path, dialect.body(self._model, prompt, self._top_k)
        )

    def _rows(self, dialect: Dialect, answer: Answer, prompt: Sequence[int]) -> list[Row] | None:
        try:
            return dialect.rows(answer.value, prompt)
        except (KeyError, IndexError, TypeError, AttributeError, ValueError) as error:
            raise self._unreadable(dialect.path, error) from error

    def _checked(self, rows: Sequence[Row]) -> TopTargets:
        fewest = min(map(len, rows))
        if fewest < self._top_k:
            raise self._too_few(fewest)
        try:
            ids, logprobs = _arrays(rows)
        except (TypeError, ValueError) as error:
            raise self._unreadable(self._dialect.path, error) from error
        if ids.max() >= self._outputs:
            raise self._error(
                f"names token {ids.max()}, and the model of {self._directory} has {self._outputs}; "
                "give the directory of the model that is served"
            )
        mass = np.exp(logprobs).sum(-1).max()
        if not mass <= 1 + MASS_TOLERANCE:  # also NaN
            raise self._error(
                f"gives probabilities that add up to {mass:.3g}; let it give log-probabilities "
                "(vLLM: --logprobs-mode raw_logprobs)"
            )
        return top_targets(ids, logprobs, self._vocab_size, self._top_k)

    def _too_few(self, limit: int) -> BadInputError:
        return self._error(
            f"gives {limit} tokens of a position, not {self._top_k}; use --top-k {limit}, or start "
            f"it with more (vLLM: --max-logprobs {self._top_k})"
        )

    def _unreadable(self, path: str, error: Exception) -> BadInputError:
        return self._error(
            f"has an answer of another form at {path} ({type(error).__name__}: {error}); serve the "
            "teacher with vLLM or SGLang"
        )

    def _error(self, what: str) -> BadInputError:
        return BadInputError(f"{self._requests.address} {what}")


def top_targets(
    ids: NDArray[np.int64], logprobs: NDArray[np.float64], vocab_size: int, top_k: int
) -> TopTargets:
    """``top_k`` of the given tokens [T, N] of each position, and the mass of all others.

    ``ids`` < 0 are none; those from ``vocab_size`` on pad the head and are no outcome: as in a
    local capture the distribution is over the tokens that there are. Where that leaves too few, the
    first tokens that are not among the given ones take their share of the tail's mass, each as much
    as every other token of the tail, so the mass stays 1 and no token is said to be impossible.
    """
    real = (ids >= 0) & (ids < vocab_size)
    padding = np.where(ids >= vocab_size, np.exp(logprobs), 0.0).sum(-1, keepdims=True)
    logprobs = np.where(real, logprobs - np.log1p(-np.minimum(padding, 1 - 1e-9)), -np.inf)
    order = np.argsort(-logprobs, axis=-1, kind="stable")[:, :top_k]
    ids = np.take_along_axis(ids, order, -1)
    kept = np.take_along_axis(logprobs, order, -1)
    real = np.take_along_axis(real, order, -1)
    tail = np.maximum(1 - np.exp(kept).sum(-1), 0.0) * (top_k < vocab_size)
    for row in np.flatnonzero(~real.all(-1)):
        gaps = ~real[row]
        others = vocab_size - int(real[row].sum())
        ids[row, gaps] = np.setdiff1d(np.arange(vocab_size), ids[row, ~gaps])[: gaps.sum()]
        kept[row, gaps] = _log(tail[row] / others)
        tail[row] *= 1 - gaps.sum() / others
    return TopTargets(
        torch.from_numpy(ids),
        torch.from_numpy(np.maximum(kept, LOWEST).astype(np.float32)),
        torch.from_numpy(_log(tail).astype(np.float32)),
    )


def _arrays(rows: Sequence[Row]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Ids and log-probabilities [T, N], ids -1 where a row has fewer than others."""
    shape = len(rows), max(map(len, rows))
    ids, logprobs = np.full(shape, -1, np.int64), np.full(shape, -np.inf)
    for number, row in enumerate(rows):
        ids[number, : len(row)] = [token for token, _ in row]
        # JSON has no -inf: some write null
        logprobs[number, : len(row)] = [-math.inf if p is None else p for _, p in row]
    return ids, logprobs


def _dense(text: str) -> str:
    return "".join(text.split())


def _log(mass: Any) -> Any:
    return np.log(np.maximum(mass, math.exp(LOWEST)))
