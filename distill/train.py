"""Heal a student: minimise the KL to the cached teacher, training only a part of the weights.

Interrupted training continues from the last saved state to the same weights, bit for bit: the
order of the sequences depends on the seed and the step alone, and the state holds the optimizer's
moments in full precision.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from edgekit.architecture import TensorSpec
from edgekit.checkpoint import (
    Checkpoint,
    copy_tokenizer,
    read_json,
    shard_names,
    write_checkpoint,
)
from edgekit.digests import json_digest
from edgekit.distill.cache import INDEX, LogitCache
from edgekit.distill.fake_quantize import fake_quantize
from edgekit.distill.loading import Model, load_model
from edgekit.distill.losses import top_k_kl
from edgekit.distill.state import TrainingState, restore_state, save_state
from edgekit.distill.trainable import named_weights, trainable_parameters
from edgekit.errors import BadInputError
from edgekit.progress import Progress
from edgekit.recipe import DistillSection, QuantizeSection
from edgekit.rules import require_unpacked
from edgekit.sequences import equal_length_runs, stacked

SAVE_EVERY = 25  # steps
WARMUP = 0.1  # of the steps
FINAL_RATE = 0.1  # of the learning rate, at the end of the cosine
CLIP_NORM = 1.0
FORWARD_TOKENS = 512  # of one forward pass; bounds the memory of the logits


@dataclass(frozen=True)
class TrainReport:
    """KL in nats per token: on held-out text before and after, and of every step."""

    steps: int
    trained_parameters: int
    parameters: int
    tokens: int
    held_out_kl_before: float
    held_out_kl_after: float
    losses: list[float]


def train(
    student: Path,
    cache: Path,
    params: DistillSection,
    out: Path,
    progress: Progress,
    scratch: Path | None = None,
    quantization: QuantizeSection | None = None,
) -> TrainReport:
    """Train ``student`` on ``cache`` and write the healed checkpoint into ``out``.

    With ``params.quantization_aware`` every matrix is, during training, what ``quantization`` will
    make of it, so router and norms learn to make up for the rounding (after Norm Tweaking, arXiv
    2309.02784). The matrices themselves are written as they were, and quantizing them gives the
    same codes again.

    Raises:
        BadInputError: the vocabularies differ, or the student diverged.
    """
    logits = LogitCache(cache)
    with Checkpoint(student) as checkpoint:
        architecture = checkpoint.architecture
        _check_vocabulary(student, architecture.vocab_size, logits)
    torch.manual_seed(params.seed)
    model = load_model(student)
    parameters = trainable_parameters(model, params.trainable)
    if params.quantization_aware and quantization:
        require_unpacked(params.trainable)
        fake_quantize(model, architecture, quantization, progress)
    optimizer = torch.optim.AdamW(
        parameters.values(), lr=params.learning_rate, betas=(0.9, 0.95), weight_decay=0.0
    )
    saved = scratch / "state" if scratch else None
    state = restore_state(saved, parameters, optimizer)
    if state is None:
        state = TrainingState(0, [], held_out_kl(model, logits, progress))
    tokens = _run(model, parameters, optimizer, logits, params, state, saved, progress)
    after = held_out_kl(model, logits, progress)
    _write(model, student, out, params.quantization_aware, progress)
    return TrainReport(
        steps=params.steps,
        trained_parameters=sum(p.numel() for p in parameters.values()),
        parameters=architecture.parameters(),
        tokens=tokens,
        held_out_kl_before=state.kl_before,
        held_out_kl_after=after,
        losses=[round(x, 5) for x in state.losses],
    )


def training_digest(student: Path, cache: Path, params: DistillSection) -> str:
    """Names what a saved state belongs to: these weights, this cache and these options."""
    files = [(student / name).stat() for name in shard_names(student)]
    return json_digest(
        {
            "student": [str(student.resolve()), *([f.st_size, f.st_mtime_ns] for f in files)],
            "cache": read_json(cache / INDEX),
            "params": params.model_dump(mode="json"),
        }
    )


def _check_vocabulary(student: Path, vocab_size: int, cache: LogitCache) -> None:
    if vocab_size != cache.index.vocab_size:
        raise BadInputError(
            f"{student}: the vocabulary has {vocab_size} tokens but the teacher's has "
            f"{cache.index.vocab_size}; choose a student with the teacher's tokenizer"
        )


def _run(
    model: Model,
    parameters: dict[str, torch.nn.Parameter],
    optimizer: torch.optim.Optimizer,
    cache: LogitCache,
    params: DistillSection,
    state: TrainingState,
    saved: Path | None,
    progress: Progress,
) -> int:
    """Train from ``state.step`` to the last step; returns the tokens seen over the whole run."""
    seen = 0
    with progress.task("distill", params.steps) as task:
        for step, batch in enumerate(batches(cache, params)):
            if step == params.steps:
                break
            seen += sum(len(cache.sequences[i].tokens) for i in batch)
            if step >= state.step:
                for group in optimizer.param_groups:
                    group["lr"] = params.learning_rate * schedule(step, params.steps)
                loss = _step(model, parameters, optimizer, cache, batch)
                state.losses.append(loss)
                state.step = step + 1
                if saved and state.step % SAVE_EVERY == 0:
                    save_state(saved, state, parameters, optimizer)
                task.note(f"KL {np.mean(state.losses[-10:]):.3f}")
            task.advance()
    return seen


def batches(cache: LogitCache, params: DistillSection) -> Iterator[list[int]]:
    """Sequence numbers of each step, endlessly: epochs shuffled by the seed, whole sequences."""
    numbers = [i for i, s in enumerate(cache.sequences) if not s.held_out]
    if not numbers:
        raise BadInputError(f"{cache.directory}: no sequences to train on; raise [data] tokens")
    batch: list[int] = []
    tokens = 0
    for epoch in range(1 << 31):
        order = np.random.default_rng((params.seed, epoch)).permutation(numbers)
        for number in order.tolist():
            batch.append(number)
            tokens += len(cache.sequences[number].tokens)
            if tokens >= params.batch_tokens:
                yield batch
                batch, tokens = [], 0


def schedule(step: int, steps: int) -> float:
    """Linear warm-up, then a cosine to ``FINAL_RATE``."""
    warmup = max(1, round(WARMUP * steps))
    if step < warmup:
        return (step + 1) / warmup
    turn = (step - warmup) / max(1, steps - warmup)
    return FINAL_RATE + (1 - FINAL_RATE) * 0.5 * (1 + math.cos(math.pi * turn))


def _step(
    model: Model,
    parameters: dict[str, torch.nn.Parameter],
    optimizer: torch.optim.Optimizer,
    cache: LogitCache,
    batch: list[int],
) -> float:
    total = sum(len(cache.sequences[i].tokens) for i in batch)
    loss_sum = 0.0
    for group in _groups(cache, batch):
        loss = _group_kl(model, cache, group).sum() / total
        loss.backward()
        loss_sum += loss.item()
    if not math.isfinite(loss_sum):
        raise BadInputError(
            "[distill] learning_rate: the loss became infinite or NaN; lower it and build again"
        )
    torch.nn.utils.clip_grad_norm_(parameters.values(), CLIP_NORM)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return loss_sum


def _groups(cache: LogitCache, numbers: list[int]) -> list[list[int]]:
    """Sequences of one length together: they need no padding."""
    chosen = [cache.sequences[n] for n in numbers]
    return [numbers[begin:end] for begin, end in equal_length_runs(chosen, FORWARD_TOKENS)]


def _group_kl(model: Model, cache: LogitCache, group: list[int]) -> torch.Tensor:
    """KL at every position of sequences of one length."""
    ids = torch.from_numpy(stacked([cache.sequences[n] for n in group]))
    logits = model(input_ids=ids, use_cache=False).logits
    return torch.cat([top_k_kl(rows, cache.targets(n)) for rows, n in zip(logits, group)])


@torch.inference_mode()
def held_out_kl(model: Model, cache: LogitCache, progress: Progress) -> float:
    """Mean KL over the held-out positions of the cache, nats per token."""
    groups = _groups(cache, [i for i, s in enumerate(cache.sequences) if s.held_out])
    total = positions = 0.0
    with progress.task("measure on held-out text", len(groups)) as task:
        for group in groups:
            values = _group_kl(model, cache, group)
            total, positions = total + float(values.sum()), positions + len(values)
            task.advance()
    return total / positions if positions else math.nan


def _write(model: Model, student: Path, out: Path, keep_matrices: bool, progress: Progress) -> None:
    with (
        Checkpoint(student) as checkpoint,
        progress.task("write the student", len(checkpoint.specs)) as task,
    ):
        weights = named_weights(model, checkpoint.architecture)

        def tensor(spec: TensorSpec) -> NDArray[np.float32]:
            if keep_matrices and spec.role not in ("norm", "router", "bias"):
                return checkpoint.float32(spec.name)
            return weights[spec.name].detach().float().numpy()

        write_checkpoint(out, checkpoint.config, tensor, checkpoint.dtype, task.advance)
    copy_tokenizer(student, out)
