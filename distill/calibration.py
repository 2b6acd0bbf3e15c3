"""Token sequences for calibration, distillation and evaluation.

Without files of the user's, the prompts shipped with edgekit are continued by the teacher itself:
text from the distribution that the student must imitate, with no data set to license. Every fifth
prompt of a domain is kept for evaluation, so held-out text never shares a prompt with training.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from edgekit.checkpoint import read_config
from edgekit.describe import describe
from edgekit.distill.documents import predicting, read_documents, read_domains, require_goal
from edgekit.distill.generate import decode
from edgekit.distill.loading import Model, load_model
from edgekit.errors import BadInputError
from edgekit.progress import Progress, Task
from edgekit.recipe import DataSection
from edgekit.sequences import (
    FILE_NAME,
    TokenSequence,
    read_sequences,
    sequences_digest,
    write_sequences,
)
from edgekit.text import ChatTokenizer

RAW_DOMAINS = frozenset({"prose", "code"})  # continued as text; the others are user messages
HELD_OUT_EVERY = 5
BATCH = 64
TEMPERATURE = 0.6  # below 1: calibration wants what the model would answer, not its derailments
TOP_P = 0.9


@dataclass(frozen=True)
class DataReport:
    """How many tokens there are, per domain and split."""

    sequences: int
    calibration_tokens: dict[str, int]
    held_out_tokens: dict[str, int]
    source: str
    digest: str


def make_sequences(
    teacher: Path,
    params: DataSection,
    out: Path,
    progress: Progress,
    scratch: Path | None = None,
) -> DataReport:
    """Write ``out/sequences.safetensors``.

    ``scratch`` keeps finished batches of an interrupted run, which are then not generated again.

    Raises:
        BadInputError: a file cannot be read, holds too little text, or the teacher has no
            tokenizer or chat template, another model's tokenizer, or too short a context.
    """
    require_goal(params)
    architecture = describe(read_config(teacher), str(teacher / "config.json"))
    if params.sequence_length > architecture.context_length:
        raise BadInputError(
            f"[data] sequence_length {params.sequence_length} is more than the "
            f"{architecture.context_length} positions of {teacher}; lower it"
        )
    tokenizer = ChatTokenizer(teacher)
    if params.files:
        sequences = read_documents(tokenizer, params)
        _check_tokens(teacher, architecture.vocab_size, [s.tokens for s in sequences])
        source = ", ".join(Path(f).name for f in params.files)
    else:
        sequences = read_domains(tokenizer, params)
        _check_tokens(teacher, architecture.vocab_size, [s.tokens for s in sequences])
        rows = plan_rows(tokenizer, params)
        pools = {(row.domain, row.held_out): row.prompts for row in rows}  # the same in all rows
        _check_tokens(teacher, architecture.vocab_size, [*itertools.chain(*pools.values())])
        sampled = _generate(teacher, tokenizer, params, rows, progress, scratch)
        if params.count == "assistant":
            sampled = _continuations(sampled, rows, tokenizer.end_tokens)
        sequences += sampled
        source = "prompts of edgekit continued by the teacher" if rows else "files"
    write_sequences(out / FILE_NAME, sequences)
    return DataReport(
        sequences=len(sequences),
        calibration_tokens=_count(sequences, held_out=False),
        held_out_tokens=_count(sequences, held_out=True),
        source=source,
        digest=sequences_digest(sequences),
    )


def load_prompts() -> dict[str, list[str]]:
    """The prompts of edgekit, by domain."""
    file = resources.files("edgekit.distill") / "data" / "prompts.json"
    return json.loads(file.read_text(encoding="utf-8"))


def _check_tokens(
    teacher: Path, vocab_size: int, encoded: Sequence[Sequence[int] | NDArray[np.int32]]
) -> None:
    if not all(len(tokens) for tokens in encoded):
        raise BadInputError(
            f"{teacher}: the tokenizer and its chat template make no token of a prompt; copy the "
            "tokenizer files of the original model there"
        )
    highest = max((int(np.max(tokens)) for tokens in encoded), default=0)
    if highest >= vocab_size:
        raise BadInputError(
            f"{teacher}: the tokenizer gives token {highest} but the model has {vocab_size}; they "
            "do not belong together, copy the tokenizer files of the original model there"
        )


def _count(sequences: Sequence[TokenSequence], held_out: bool) -> dict[str, int]:
    counts: dict[str, int] = {}
    for sequence in sequences:
        if sequence.held_out == held_out:
            counts[sequence.domain] = counts.get(sequence.domain, 0) + len(sequence.tokens)
    return counts


@dataclass(frozen=True)
class Row:
    """One sequence to sample: the prompts of one domain and split, asked one after the other."""

    domain: str
    held_out: bool
    prompts: list[list[int]]


def plan_rows(tokenizer: ChatTokenizer, params: DataSection) -> list[Row]:
    """Rows of ``sequence_length`` for both splits of the domains without files, each as often as
    its weight says, prompts rotated."""
    pools = encode_prompts(tokenizer, params)
    shares = params.shares()
    prompted = {name: shares[name] for name in shares if not params.domains[name].files}
    total = sum(prompted.values())
    rows: list[Row] = []
    for held_out, goal in ((False, params.tokens), (True, params.held_out_tokens)):
        count = -(-round(goal * total) // params.sequence_length)
        taken = dict.fromkeys(prompted, 0)
        for number in range(count):
            # the domain that is furthest behind its share; equal ones in turn
            due = {d: w / total * (number + 1) - taken[d] for d, w in prompted.items()}
            domain = max(due, key=lambda d: round(due[d], 9))
            pool = pools[domain, held_out]
            # a stride that shares no factor with the pool starts each row at another prompt
            start = taken[domain] * 3 % len(pool)
            rows.append(Row(domain, held_out, pool[start:] + pool[:start]))
            taken[domain] += 1
    return rows


def encode_prompts(
    tokenizer: ChatTokenizer, params: DataSection
) -> dict[tuple[str, bool], list[list[int]]]:
    """edgekit's prompts of the domains without files, by domain and whether they are held out."""
    pools: dict[tuple[str, bool], list[list[int]]] = {}
    prompts = load_prompts()
    for domain, section in params.domains.items():
        for index, text in enumerate([] if section.files else prompts[domain]):
            if domain in RAW_DOMAINS:
                tokens = tokenizer.encode(text)
            else:
                tokens = tokenizer.encode_chat([{"role": "user", "content": text}])
            held_out = index % HELD_OUT_EVERY == HELD_OUT_EVERY - 1
            pools.setdefault((domain, held_out), []).append(tokens)
    return pools


def _generate(
    teacher: Path,
    tokenizer: ChatTokenizer,
    params: DataSection,
    rows: Sequence[Row],
    progress: Progress,
    scratch: Path | None,
) -> list[TokenSequence]:
    model: Model | None = None
    done: list[TokenSequence] = []
    with progress.task("sample from the teacher", len(rows) * params.sequence_length) as task:
        for number, begin in enumerate(range(0, len(rows), BATCH)):
            batch = rows[begin : begin + BATCH]
            saved = scratch / f"batch-{number:05d}.safetensors" if scratch else None
            if saved and saved.is_file():
                done += read_sequences(saved)
                task.advance(len(batch) * params.sequence_length)
                continue
            model = model or load_model(teacher)
            seed = params.seed * 1_000_003 + number
            try:
                sequences = sample(
                    model, batch, tokenizer.end_tokens, params.sequence_length, seed, task
                )
            except FloatingPointError as error:
                raise BadInputError(
                    f"{teacher}: {error}, so nothing can be sampled; the weights are damaged, "
                    "download them again"
                ) from error
            if saved:
                partial = saved.with_suffix(".partial")
                write_sequences(partial, sequences)
                partial.replace(saved)
            done += sequences
    return done


def _continuations(
    sequences: Sequence[TokenSequence], rows: Sequence[Row], end_tokens: frozenset[int]
) -> list[TokenSequence]:
    """``sequences`` sampled from ``rows``, in which only what predicts sampled tokens counts;
    without those that a prompt fills.

    Raises:
        BadInputError: prompts fill all sequences of a split.
    """
    found = []
    for sequence, row in zip(sequences, rows, strict=True):
        counted = predicting(~prompt_tokens(sequence.tokens, row.prompts, end_tokens))
        if counted.any():
            found.append(dataclasses.replace(sequence, counted=counted))
    if {s.held_out for s in sequences} != {s.held_out for s in found}:
        raise BadInputError(
            f"[data] sequence_length {len(sequences[0].tokens)}: the prompts leave no room for an "
            "answer; raise it"
        )
    return found


def prompt_tokens(
    tokens: NDArray[np.int32], prompts: Sequence[Sequence[int]], end_tokens: frozenset[int]
) -> NDArray[np.bool_]:
    """Which of a sampled sequence's tokens are the ``prompts``, asked one after another: the first
    at the beginning, the next after each end token of an answer. bool [T]."""
    asked = np.zeros(len(tokens), np.bool_)
    queue, begin = itertools.cycle(prompts), 0
    while begin < len(tokens):
        answer = begin + len(next(queue))
        asked[begin:answer] = True
        ends = (n for n in range(answer, len(tokens)) if int(tokens[n - 1]) in end_tokens)
        begin = next(ends, len(tokens))
    return asked


@torch.inference_mode()
def sample(
    model: Model,
    rows: Sequence[Row],
    end_tokens: frozenset[int],
    length: int,
    seed: int,
    task: Task,
) -> list[TokenSequence]:
    """Sample every row to exactly ``length`` tokens.

    Prompt tokens are forced, and after an end token the row's next prompt is asked, so all rows
    stay in step: no padding, and no row idles until the longest answer is done.

    Raises:
        FloatingPointError: the model's logits are not finite.
    """
    generator = torch.Generator().manual_seed(seed)
    queues = [itertools.cycle(row.prompts) for row in rows]
    forced = [list(reversed(next(queue))) for queue in queues]
    columns: list[list[int]] = [[stack.pop() for stack in forced]]

    def read(ids: torch.Tensor, state: Any) -> tuple[torch.Tensor, Any]:
        result = model(input_ids=ids, past_key_values=state, use_cache=True)
        return result.logits[:, -1].float(), result.past_key_values

    def choose(logits: torch.Tensor) -> torch.Tensor | None:
        column = _nucleus(logits, generator).tolist()
        for row, stack in enumerate(forced):
            if not stack and columns[-1][row] in end_tokens:
                stack.extend(reversed(next(queues[row])))
            if stack:
                column[row] = stack.pop()
        columns.append(column)
        task.advance(len(rows))
        return torch.tensor(column) if len(columns) < length else None

    decode(read, torch.tensor(columns[-1])[:, None], choose)
    task.advance(len(rows))
    tokens = np.array(columns, np.int32).T
    return [
        TokenSequence(np.ascontiguousarray(line), row.domain, row.held_out)
        for line, row in zip(tokens, rows, strict=True)
    ]


def _nucleus(logits: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Sample [B] from logits [B, V] with temperature and top-p (arXiv 1904.09751)."""
    if not logits.isfinite().all():
        raise FloatingPointError("the model's logits are not finite")
    candidates, order = (logits / TEMPERATURE).topk(min(256, logits.shape[-1]), dim=-1)
    probabilities = candidates.softmax(-1)
    before = probabilities.cumsum(-1) - probabilities
    probabilities = probabilities.masked_fill(before >= TOP_P, 0.0)
    chosen = torch.multinomial(probabilities, 1, generator=generator)
    return order.gather(-1, chosen)[:, 0]
