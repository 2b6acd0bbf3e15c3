"""The training loop in memory: an opened student, the teacher's targets and an optimizer."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from edgekit.distill.divergence import (
    Divergence,
    Targets,
    equal_length_groups,
)
from edgekit.distill.head import Head
from edgekit.distill.losses import IGNORED, Loss
from edgekit.distill.masked import Mask, masked, measure_masked
from edgekit.distill.open_model import OpenModel
from edgekit.distill.state import TrainingState, save_state
from edgekit.distill.targets import joined
from edgekit.distill.trainable import trainable_parameters
from edgekit.errors import BadInputError
from edgekit.progress import Progress
from edgekit.recipe import DistillSection
from edgekit.sequences import TokenSequence, stacked

SAVE_EVERY = 25  # steps
WARMUP = 0.1  # of the steps
FINAL_RATE = 0.1  # of the learning rate, at the end of the cosine
CLIP_NORM = 1.0


class Trainer:
    """Trains parts of ``opened``; each step under one of ``masks``, which are as many students.

    Attributes:
        parameters: what is trained, by name.
        optimizer: AdamW without weight decay.
    """

    def __init__(
        self,
        opened: OpenModel,
        targets: Targets,
        params: DistillSection,
        masks: Sequence[Mask | None] = (None,),
        loss: Loss | None = None,
    ) -> None:
        self.opened = opened
        self.loss = loss or Loss()
        self.head = Head(opened, targets.vocab_size)
        self.targets = targets
        self.params = params
        self.masks = masks
        self.parameters: dict[str, nn.Parameter] = trainable_parameters(opened, params.trainable)
        self.optimizer = torch.optim.AdamW(
            self.parameters.values(), lr=params.learning_rate, betas=(0.9, 0.95), weight_decay=0.0
        )

    def run(self, state: TrainingState, saved: Path | None, progress: Progress) -> int:
        """Train from ``state.step`` to the last step, saving into ``saved`` now and then.

        Returns the tokens seen over the whole run.
        """
        params, seen = self.params, 0
        with progress.task("distill", params.steps) as task:
            for step, batch in enumerate(batches(self.targets.sequences, params)):
                if step == params.steps:
                    break
                seen += sum(len(self.targets.sequences[i].tokens) for i in batch)
                if step >= state.step:
                    state.losses.append(self._step(step, batch))
                    state.step = step + 1
                    if saved and state.step % SAVE_EVERY == 0:
                        save_state(saved, state, self.parameters, self.optimizer)
                    task.note(f"KL {np.mean(state.losses[-10:]):.3f}")
                task.advance()
        return seen

    def divergences(self, progress: Progress) -> list[Divergence | None]:
        """KL of every student on held-out text; None where there is no such text."""
        if not any(s.held_out for s in self.targets.sequences):
            return [None] * len(self.masks)
        return [
            measure_masked(self.opened, mask, self.targets, progress, "the student").divergence()
            for mask in self.masks
        ]

    def _step(self, step: int, batch: list[int]) -> float:
        for group in self.optimizer.param_groups:
            group["lr"] = self.params.learning_rate * schedule(step, self.params.steps)
        with masked(self.opened, self.masks[student_of(step, len(self.masks), self.params.seed)]):
            loss = self._accumulate(batch)
        if not math.isfinite(loss):
            raise BadInputError(
                "[distill] learning_rate: the loss became infinite or NaN; lower it and build again"
            )
        for parameter in self.parameters.values():
            if parameter.grad is None:  # unused by this step; its moments must exist all the same
                parameter.grad = torch.zeros_like(parameter)
        nn.utils.clip_grad_norm_(self.parameters.values(), CLIP_NORM)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return loss

    def _accumulate(self, batch: list[int]) -> float:
        """Add up the gradients of the mean loss over the positions of ``batch``; returns it."""
        total = sum(self.targets.sequences[i].positions for i in batch)
        loss_sum = 0.0
        for group in equal_length_groups(self.targets, batch):
            loss = self._of_group(group) / total
            loss.backward()  # type: ignore[no-untyped-call]
            loss_sum += loss.item()
        return loss_sum

    def _of_group(self, group: Sequence[int]) -> torch.Tensor:
        """Σ of the loss over the positions of sequences of one length."""
        sequences = [self.targets.sequences[n] for n in group]
        ids = torch.from_numpy(stacked(sequences)).to(self.opened.device)
        hidden = self.opened.decoder(input_ids=ids, use_cache=False).last_hidden_state
        rows, taught, labels = [], [], []
        for number, sequence, states in zip(group, sequences, hidden, strict=True):
            counted = slice(None) if sequence.counted is None else sequence.counted
            rows.append(states[counted])
            taught.append(self.targets.targets(number))
            labels.append(torch.from_numpy(next_tokens(sequence)[counted]))
        targets = joined(taught).to(self.opened.device)
        next_ids = torch.cat(labels).to(self.opened.device)
        return self.head.summed(
            torch.cat(rows),
            lambda logits, part: self.loss(logits, targets[part], next_ids[part]),
        )


def batches(sequences: Sequence[TokenSequence], params: DistillSection) -> Iterator[list[int]]:
    """Sequence numbers of each step, endlessly: epochs shuffled by the seed, whole sequences.

    Raises:
        BadInputError: all text is held out.
    """
    numbers = [i for i, s in enumerate(sequences) if not s.held_out]
    if not numbers:
        raise BadInputError("[data] tokens: there are no sequences to train on; raise it")
    batch: list[int] = []
    tokens = 0
    for epoch in range(1 << 31):
        order = np.random.default_rng((params.seed, epoch)).permutation(numbers)
        for number in order.tolist():
            batch.append(number)
            tokens += len(sequences[number].tokens)
            if tokens >= params.batch_tokens:
                yield batch
                batch, tokens = [], 0


def next_tokens(sequence: TokenSequence) -> NDArray[np.int64]:
    """What each token is followed by, int64 [T]; the last by nothing that is known."""
    return np.append(sequence.tokens[1:].astype(np.int64), IGNORED)


def student_of(step: int, students: int, seed: int) -> int:
    """Which student a step trains: each round trains every one once, in an order of its own.

    So the largest and the smallest, between which the others lie (the sandwich rule of arXiv
    1903.05134), are never long absent, at the cost of one student per step.
    """
    number, place = divmod(step, students)
    return int(np.random.default_rng((seed, number, students)).permutation(students)[place])


def schedule(step: int, steps: int) -> float:
    """Linear warm-up, then a cosine to ``FINAL_RATE``."""
    warmup = max(1, round(WARMUP * steps))
    if step < warmup:
        return (step + 1) / warmup
    turn = (step - warmup) / max(1, steps - warmup)
    return FINAL_RATE + (1 - FINAL_RATE) * 0.5 * (1 + math.cos(math.pi * turn))
