"""Token sequences for calibration, distillation and evaluation.

Without files of the user's, the prompts shipped with edgekit are continued by the teacher itself:
text from the distribution that the student must imitate, with no data set to license. Every fifth
prompt of a domain is kept for evaluation, so held-out text never shares a prompt with training.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import numpy as np
import torch

from edgekit.distill.documents import read_documents
from edgekit.distill.loading import Model, load_model
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
BATCH = 24
TEMPERATURE = 0.8  # close to the teacher's own distribution, with fewer derailments than 1
TOP_P = 0.95


@dataclass(frozen=True)
class DataReport:
    """How many tokens there are, per domain and split."""

    sequences: int
    calibration_tokens: dict[str, int]
    held_out_tokens: dict[str, int]
    source: str
    digest: str


@dataclass(frozen=True)
class _Prompt:
    tokens: list[int]
    domain: str
    held_out: bool


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
            tokenizer or chat template.
    """
    tokenizer = ChatTokenizer(teacher)
    if params.files:
        sequences = read_documents(tokenizer, params)
        source = ", ".join(Path(f).name for f in params.files)
    else:
        sequences = _generate(teacher, tokenizer, params, progress, scratch)
        source = "prompts of edgekit continued by the teacher"
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


def _count(sequences: Sequence[TokenSequence], held_out: bool) -> dict[str, int]:
    counts: dict[str, int] = {}
    for sequence in sequences:
        if sequence.held_out == held_out:
            counts[sequence.domain] = counts.get(sequence.domain, 0) + len(sequence.tokens)
    return counts


def encode_prompts(tokenizer: ChatTokenizer, params: DataSection) -> list[_Prompt]:
    """The prompts of the chosen domains as token ids, domains interleaved."""
    prompts = load_prompts()
    result: list[_Prompt] = []
    for index in range(max(len(prompts[d]) for d in params.domains)):
        for domain in params.domains:
            text = prompts[domain][index]
            if domain in RAW_DOMAINS:
                tokens = tokenizer.encode(text)
            else:
                tokens = tokenizer.encode_chat([{"role": "user", "content": text}])
            held_out = index % HELD_OUT_EVERY == HELD_OUT_EVERY - 1
            result.append(_Prompt(tokens[: params.sequence_length // 2], domain, held_out))
    return result


def _generate(
    teacher: Path,
    tokenizer: ChatTokenizer,
    params: DataSection,
    progress: Progress,
    scratch: Path | None,
) -> list[TokenSequence]:
    prompts = encode_prompts(tokenizer, params)
    model: Model | None = None
    done: list[TokenSequence] = []
    goals = {False: params.tokens, True: params.held_out_tokens}
    with progress.task("sample from the teacher", sum(goals.values())) as task:
        for number, (held_out, batch) in enumerate(_batches(prompts, params, goals, done)):
            saved = scratch / f"batch-{number:05d}.safetensors" if scratch else None
            if saved and saved.is_file():
                sequences = read_sequences(saved)
            else:
                model = model or load_model(teacher)
                seed = params.seed * 1_000_003 + number
                sequences = sample(model, batch, tokenizer.end_tokens, params, seed, task)
                if saved:
                    partial = saved.with_suffix(".partial")
                    write_sequences(partial, sequences)
                    partial.replace(saved)
            done += _fit(sequences, goals[held_out] - _total(done, held_out))
    return done


def _batches(
    prompts: list[_Prompt],
    params: DataSection,
    goals: dict[bool, int],
    done: list[TokenSequence],
) -> Iterator[tuple[bool, list[_Prompt]]]:
    """Batches of prompts of one split until ``done``, which the caller fills, has enough."""
    for held_out, goal in goals.items():
        pool = [p for p in prompts if p.held_out == held_out]
        position = 0
        while (missing := goal - _total(done, held_out)) > 0:
            # answers end early; assume they fill half of the length
            size = min(BATCH, -(-2 * missing // params.sequence_length))
            size = max(size, min(len(params.domains), BATCH))
            batch = [pool[(position + i) % len(pool)] for i in range(size)]
            position += size
            yield held_out, batch


def _total(sequences: Sequence[TokenSequence], held_out: bool) -> int:
    return sum(len(s.tokens) for s in sequences if s.held_out == held_out)


def _fit(sequences: list[TokenSequence], room: int) -> list[TokenSequence]:
    """Shorten a batch to ``room`` tokens, evenly, so that no domain is cut off."""
    total = sum(len(s.tokens) for s in sequences)
    if total <= room:
        return sequences
    limit = max(len(s.tokens) for s in sequences)
    while sum(min(len(s.tokens), limit) for s in sequences) > room and limit > 2:
        limit -= 1
    return [TokenSequence(s.tokens[:limit], s.domain, s.held_out) for s in sequences]


@torch.inference_mode()
def sample(
    model: Model,
    batch: Sequence[_Prompt],
    end_tokens: frozenset[int],
    params: DataSection,
    seed: int,
    task: Task,
) -> list[TokenSequence]:
    """Continue a batch of prompts up to ``sequence_length`` or an end token (kept)."""
    generator = torch.Generator().manual_seed(seed)
    width = max(len(p.tokens) for p in batch)
    ids = torch.zeros(len(batch), width, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(batch):  # left padding: all continue at the same column
        ids[row, width - len(prompt.tokens) :] = torch.tensor(prompt.tokens)
        mask[row, width - len(prompt.tokens) :] = 1
    sequences = [list(p.tokens) for p in batch]
    alive = [len(s) < params.sequence_length for s in sequences]
    cache = None
    step = ids
    while any(alive):
        positions = (mask.cumsum(-1) - 1).clamp(min=0)[:, -step.shape[1] :]
        result = model(
            input_ids=step, attention_mask=mask, position_ids=positions,
            past_key_values=cache, use_cache=True, logits_to_keep=1,
        )  # fmt: skip
        cache = result.past_key_values
        tokens = _nucleus(result.logits[:, -1].float(), generator)
        for row, token in enumerate(tokens.tolist()):
            if alive[row]:
                sequences[row].append(token)
                ended = token in end_tokens or len(sequences[row]) >= params.sequence_length
                alive[row] = not ended
                task.advance()
        step = tokens[:, None]
        mask = torch.cat([mask, torch.ones(len(batch), 1, dtype=torch.long)], dim=1)
    return [
        TokenSequence(np.array(tokens, np.int32), prompt.domain, prompt.held_out)
        for tokens, prompt in zip(sequences, batch, strict=True)
    ]


def _nucleus(logits: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Sample [B] from logits [B, V] with temperature and top-p (arXiv 1904.09751)."""
    candidates, order = (logits / TEMPERATURE).topk(min(256, logits.shape[-1]), dim=-1)
    probabilities = candidates.softmax(-1)
    before = probabilities.cumsum(-1) - probabilities
    probabilities = probabilities.masked_fill(before >= TOP_P, 0.0)
    chosen = torch.multinomial(probabilities, 1, generator=generator)
    return order.gather(-1, chosen)[:, 0]
