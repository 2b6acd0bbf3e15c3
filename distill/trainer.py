"""The training loop: an opened student learns what any :class:`Targets` say, by any loss.

Its shape, for text that is there from the beginning and for text that comes in rounds::

    trainer = Trainer(opened, params, vocab_size, loss=..., held_out=cache, saved=scratch)
    trainer.begin(progress)                        # or continue what was interrupted
    trainer.train(targets, 0, 100, progress)       # optimizer steps 0 to 99 on these targets
    trainer.train(others, 100, 200, progress)      # and the next hundred on others
    trainer.finish(progress)                       # the best weights, as they will be stored

A call of ``train`` does the steps of its range that are not done, so whoever continues makes the
same calls again; where ``trainer.state.step`` is past a round, its text need not be made again.
``params.steps`` are those of all rounds: the learning rate falls over all of them. Everything that
a step does depends on the seed, the step and its range alone.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from edgekit.distill.batches import Batch, Lesson, LossFunction, batches, dealt
from edgekit.distill.divergence import Targets
from edgekit.distill.evaluation import BestWeights, divergence, note_evaluation
from edgekit.distill.head import Head
from edgekit.distill.losses import Loss
from edgekit.distill.masked import Mask, masked
from edgekit.distill.open_model import OpenModel
from edgekit.distill.optimizers import make_optimizer, schedule
from edgekit.distill.processes import Processes
from edgekit.distill.rows import (
    PACKED_TOKENS,
    counted,
    hidden_states,
    micro_batches,
    next_tokens,
    packs,
)
from edgekit.distill.state import Evaluation, TrainingState, restore_state, save_state
from edgekit.distill.targets import joined
from edgekit.distill.trainable import is_norm, trainable_parameters
from edgekit.errors import BadInputError
from edgekit.progress import Progress, Silent, Task
from edgekit.recipe import DistillSection

FLOATS = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}
RECENT = 10  # steps whose mean loss is shown


class Trainer:
    """Trains parts of ``opened``; each step under one of ``masks``, which are as many students.

    Args:
        opened: the student, loaded, in float32.
        params: what is trained and how.
        vocab_size: the tokens that targets are over.
        loss: of each position; forward KL by default.
        masks: the students; None is all of it.
        held_out: its held-out sequences are measured on, if it has any.
        saved: directory for what an interrupted training continues from, and for the best weights;
            without one neither is kept.
        processes: those that train together.

    Attributes:
        state: what was done.
        parameters: what is trained, by name.
    """

    def __init__(
        self,
        opened: OpenModel,
        params: DistillSection,
        vocab_size: int,
        *,
        loss: LossFunction | None = None,
        masks: Sequence[Mask | None] = (None,),
        held_out: Targets | None = None,
        saved: Path | None = None,
        processes: Processes | None = None,
    ) -> None:
        self.opened, self.params = opened, params
        self.loss: LossFunction = loss or Loss()
        self.head = Head(opened, vocab_size)
        self.masks, self.held_out = masks, held_out
        self.processes = processes or Processes(device=opened.device)
        self.state = TrainingState()
        self.parameters: dict[str, nn.Parameter] = trainable_parameters(opened, params.trainable)
        self.optimizer = make_optimizer(self.parameters.values(), params)
        self._packed = packs(opened.architecture)
        self._saved = saved / "state" if saved else None
        self._best = BestWeights(saved) if saved and params.evaluate_every else None

    def begin(self, progress: Progress) -> None:
        """Continue from the saved state; without one, measure the student as it is."""
        if self._saved:
            found = restore_state(self._saved, self.parameters, self.optimizer)
            if found:
                self.state = found
                return
        self._evaluate(progress)

    def train(self, targets: Targets, begin: int, end: int, progress: Progress) -> None:
        """Do the steps from ``begin`` up to ``end`` on the sequences of ``targets`` that are not
        held out, except those that are done.

        Raises:
            BadInputError: there is no text, or the loss is not finite any more.
        """
        self.train_lessons([Lesson(targets, self.loss)], begin, end, progress)

    def train_lessons(
        self, lessons: Sequence[Lesson], begin: int, end: int, progress: Progress
    ) -> None:
        """The same with a batch of every lesson in each step."""
        orders = [batches(lesson.targets.sequences, self.params, begin) for lesson in lessons]
        with progress.task("distill", end - begin) as task:
            for step, *chosen in zip(range(begin, end), *orders, strict=False):
                if self.state.stopped:
                    break
                if step >= self.state.step:
                    pairs = zip(lessons, chosen, strict=True)
                    self._one(step, [Batch(lesson, numbers) for lesson, numbers in pairs], task)
                task.advance()

    def measure(self, progress: Progress) -> Evaluation | None:
        """KL of every student on held-out text; None where there is no such text."""
        held_out = self.held_out
        if held_out is None or not any(s.held_out for s in held_out.sequences):
            return None
        students = tuple(
            divergence(self.opened, mask, held_out, self.processes, progress) for mask in self.masks
        )
        return Evaluation(step=self.state.step, students=students)

    def finish(self, progress: Progress) -> Evaluation | None:
        """Give the student its best weights, as they will be stored, and measure it."""
        evaluations = self.state.evaluations
        if self._best and evaluations:
            if evaluations[-1].step != self.state.step:
                self._evaluate(progress)
            if self.state.best != self.state.step:
                if self.processes.is_main:
                    self._best.restore(self.state.best, self.parameters)
                self.processes.copy_main(self.parameters.values())
        self._round_as_stored()
        return self.measure(progress)

    def save(self) -> None:
        """Save the state now, if there is a directory for it."""
        if self._saved and self.processes.is_main:
            save_state(self._saved, self.state, self.parameters, self.optimizer)

    def _one(self, step: int, parts: Sequence[Batch], task: Task) -> None:
        """A step and what is to be done after it."""
        state, params, start = self.state, self.params, time.perf_counter()
        state.losses.append(self._step(step, parts))
        state.step, state.tokens = step + 1, state.tokens + sum(part.tokens for part in parts)
        state.seconds += time.perf_counter() - start
        evaluates = params.evaluate_every and state.step % params.evaluate_every == 0
        if evaluates:
            self._evaluate(Silent())
        elif state.step % params.save_every == 0:
            self.save()
        loss, speed = np.mean(state.losses[-RECENT:]), state.tokens / state.seconds
        task.note(f"loss {loss:.3f}, {speed:,.0f} tokens/s")

    def _step(self, step: int, parts: Sequence[Batch]) -> float:
        """Take a step; returns its loss."""
        params, state = self.params, self.state
        rate = params.learning_rate * schedule(step, params.steps, params.warm_up, params.decay)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        with masked(self.opened, self.masks[student_of(step, len(self.masks), params.seed)]):
            loss = self._accumulate(parts)
        limit = params.clip_norm or math.inf
        norm = float(nn.utils.clip_grad_norm_(self.parameters.values(), limit))
        if not (math.isfinite(loss) and math.isfinite(norm)):
            self.save()
            raise BadInputError(
                f"[distill] learning_rate: at step {step + 1} the loss became infinite or NaN; "
                f"lower it (it is {params.learning_rate:g}) and train again"
            )
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        state.rates.append(rate)
        state.norms.append(norm)
        return loss

    def _accumulate(self, parts: Sequence[Batch]) -> float:
        """Add up the gradients of the loss, a mean over the positions of each part; returns it."""
        limit = min(self.params.micro_batch_tokens, PACKED_TOKENS)
        loss_sum = 0.0
        for whole in parts:
            mine = dealt(whole, self.processes.rank, self.processes.count)
            share = whole.lesson.weight / whole.positions
            for group in micro_batches(mine.sequences, mine.numbers, limit, self._packed):
                loss = self._of_group(whole.lesson, group) * share
                loss.backward()  # type: ignore[no-untyped-call]
                loss_sum += loss.item()
        for parameter in self.parameters.values():
            if parameter.grad is None:  # unused by this step; its moments must exist all the same
                parameter.grad = torch.zeros_like(parameter)
        total = torch.tensor([loss_sum], dtype=torch.float64, device=self.opened.device)
        self.processes.add_up([total])
        self.processes.add_up([p.grad for p in self.parameters.values() if p.grad is not None])
        return float(total)

    def _of_group(self, lesson: Lesson, group: Sequence[int]) -> Tensor:
        """Σ of the loss over the positions of the sequences ``group``."""
        sequences = [lesson.targets.sequences[n] for n in group]
        rows = counted(sequences)
        taught = joined([lesson.targets.targets(n) for n in group]).to(self.opened.device)
        labels = next_tokens(sequences)[rows].to(self.opened.device)
        hidden = hidden_states(self.opened, sequences)[rows.to(self.opened.device)]
        return self.head.summed(
            hidden, lambda logits, part: lesson.loss(logits, taught[part], labels[part])
        )

    def _evaluate(self, progress: Progress) -> None:
        """Measure, keep the weights if they are the best, and save the state."""
        found = self.measure(progress)
        if found is None:
            return
        state = self.state
        state.evaluations.append(found)
        better = note_evaluation(state, self.params.patience)
        if self._best and self.processes.is_main:
            if better:
                self._best.write(state.step, self.parameters)
            self.save()
            self._best.forget_others(state.best)

    @torch.no_grad()
    def _round_as_stored(self) -> None:
        """Give trained weights the precision that they will be stored in, so that what is measured
        is what is written; norms are stored as float32."""
        dtype = FLOATS[self.opened.checkpoint.dtype]
        norms = (m for m in self.opened.model.modules() if is_norm(m))
        exact = {id(parameter) for norm in norms for parameter in norm.parameters()}
        for parameter in self.parameters.values():
            if id(parameter) not in exact:
                parameter.copy_(parameter.to(dtype))


def student_of(step: int, students: int, seed: int) -> int:
    """Which student a step trains: each round trains every one once, in an order of its own.

    So the largest and the smallest, between which the others lie (the sandwich rule of arXiv
    1903.05134), are never long absent, at the cost of one student per step.
    """
    number, place = divmod(step, students)
    return int(np.random.default_rng((seed, number, students)).permutation(students)[place])
