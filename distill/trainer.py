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
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn

from edgekit.distill.batches import Batch, Lesson, LossFunction, batches
from edgekit.distill.divergence import Targets
from edgekit.distill.evaluation import BestWeights, divergence, note_evaluation
from edgekit.distill.gradients import Gradients
from edgekit.distill.head import Head
from edgekit.distill.lora import Adapters
from edgekit.distill.losses import Loss
from edgekit.distill.masked import Mask, masked
from edgekit.distill.open_model import OpenModel
from edgekit.distill.optimizers import make_optimizer, schedule
from edgekit.distill.processes import Processes
from edgekit.distill.sharding import clip
from edgekit.distill.state import Evaluation, TrainingState, restore_state, save_state
from edgekit.distill.trackers import Trackers
from edgekit.distill.trainable import is_norm, trainable_parameters
from edgekit.distill.trial import LARGEST, working_of
from edgekit.distill.working import Working, using_threads
from edgekit.errors import BadInputError
from edgekit.progress import Progress, Silent, Task
from edgekit.recipe import DistillSection

FLOATS = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}
NEVER = 10**7  # steps: whoever calls in rounds saves between them
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
        trackers: are shown every step.
        largest: tokens of the largest micro-batch that a trial may choose.
        notify: is told what a trial chose.

    Attributes:
        state: what was done.
        parameters: what is trained, by name; with ``params.lora_rank`` the adapters.
        trained: the weights that change by it, by their names in the model.
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
        trackers: Trackers | None = None,
        largest: int = LARGEST,
        notify: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.opened, self.params = opened, params
        self.loss: LossFunction = loss or Loss()
        self.masks, self.held_out = masks, held_out
        self.processes = processes or Processes(device=opened.device)
        self.state = TrainingState()
        self.trained: dict[str, nn.Parameter] = trainable_parameters(opened, params.trainable)
        self._adapters: Adapters | None = None
        if params.lora_rank:
            self._adapters = Adapters(
                opened, self.trained, params.lora_rank, params.lora_alpha, params.seed
            )
        self.parameters = self._adapters.parameters if self._adapters else self.trained
        self.optimizer = make_optimizer(self.parameters, params)
        self.gradients = Gradients(
            opened, Head(opened, vocab_size), self.parameters, self.processes,
            params.activation_checkpointing,
        )  # fmt: skip
        self._saved = saved / "state" if saved else None
        self._best = BestWeights(saved) if saved and params.evaluate_every else None
        self._trackers = trackers
        self._largest, self._notify = largest, notify

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
            OutOfResourcesError: a micro-batch does not fit in memory.
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
                    parts = [Batch(lesson, numbers) for lesson, numbers in pairs]
                    with using_threads(self._working(parts).threads):
                        self._one(step, parts, task)
                task.advance()

    def measure(self, progress: Progress) -> Evaluation | None:
        """KL of every student on held-out text; None where there is no such text.

        Raises:
            BadInputError: it is not finite.
        """
        held_out = self.held_out
        if held_out is None or not any(s.held_out for s in held_out.sequences):
            return None
        students = tuple(
            divergence(self.opened, mask, held_out, self.processes, progress) for mask in self.masks
        )
        found = Evaluation(step=self.state.step, students=students)
        if not math.isfinite(found.kl):
            raise BadInputError(
                f"{self.opened.path}: after {self.state.step} steps its KL on held-out text is not "
                "finite; lower [distill] learning_rate, or after 0 steps use another student"
            )
        return found

    def finish(self, progress: Progress) -> Evaluation | None:
        """Give the student its best weights, as they will be stored, and measure it. Adapters are
        merged, so there is no more training."""
        evaluations = self.state.evaluations
        if self._best and evaluations:
            if evaluations[-1].step != self.state.step:
                self._evaluate(progress)
            if self.written_step != self.state.step:
                self.processes.wait()  # the main one may be writing them
                self._best.restore(self.written_step, self.parameters)
        if self._adapters:
            self._adapters.merge()
        self._round_as_stored()
        return self.measure(progress)

    @property
    def written_step(self) -> int:
        """After how many steps the student was as :meth:`finish` leaves it."""
        return self.state.best if self._best and self.state.evaluations else self.state.step

    def save(self) -> None:
        """Save the state now, if there is a directory for it."""
        if self._saved:
            save_state(
                self._saved, self.state, self.parameters, self.optimizer, self.processes.is_main
            )

    def _working(self, parts: Sequence[Batch]) -> Working:
        """How gradients are computed; what was tried for is tried once."""
        params, working = self.params, self.state.working
        if working is None:
            device = self.opened.device
            working = working_of(params, self.gradients, parts[0], self._largest, device)
            if working.tokens_per_second:
                speed = f"{working.tokens_per_second:,.0f} tokens/s"
                self._notify(f"a trial chose {working.sentence}: {speed}")
        elif params.micro_batch_tokens:  # a state goes on with a smaller one, if that is asked for
            tokens = {"micro_batch_tokens": params.micro_batch_tokens}
            working = working.model_copy(update=tokens)
        self.state.working = working
        return working

    def _one(self, step: int, parts: Sequence[Batch], task: Task) -> None:
        """A step and what is to be done after it."""
        state, params, start = self.state, self.params, time.perf_counter()
        state.losses.append(self._step(step, parts))
        state.step, state.tokens = step + 1, state.tokens + sum(part.tokens for part in parts)
        state.seconds += time.perf_counter() - start
        due = params.evaluate_every and state.step % params.evaluate_every == 0
        saved = due and self._evaluate(Silent())
        if not saved and state.step % params.save_every == 0:
            self.save()
        loss, speed = float(np.mean(state.losses[-RECENT:])), state.tokens / state.seconds
        task.note(f"loss {loss:.3f}, {speed:,.0f} tokens/s")
        if self._trackers:
            shown = {"loss": state.losses[-1], "gradient norm": state.norms[-1]}
            shown |= {"learning rate": state.rates[-1], "tokens per second": speed}
            self._trackers.log(state.step, shown)

    def _step(self, step: int, parts: Sequence[Batch]) -> float:
        """Take a step; returns its loss."""
        params, state = self.params, self.state
        rate = params.learning_rate * schedule(step, params.steps, params.warm_up, params.decay)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        with masked(self.opened, self.masks[student_of(step, len(self.masks), params.seed)]):
            loss = self.gradients.add(parts, self._working(parts))
        limit = params.clip_norm or math.inf
        norm = self._clip(limit)
        if not (math.isfinite(loss) and math.isfinite(norm)):
            kept = self._saved if params.save_every < NEVER else None
            if kept:  # of the midst of a round nothing is kept: it would begin with other weights
                self.save()
            raise BadInputError(
                f"[distill] learning_rate: in step {step + 1} the loss or its gradient became "
                f"infinite or NaN; lower it (it is {params.learning_rate:g}) and train again from "
                "the beginning" + (f"; the state after step {step} is in {kept}" if kept else "")
            )
        self.optimizer.step()
        self.gradients.clear()
        state.rates.append(rate)
        state.norms.append(norm)
        return loss

    def _clip(self, limit: float) -> float:
        parameters = self.parameters.values()
        if self.processes.sharded:
            gradients = [p.grad for p in parameters if p.grad is not None]
            return clip(gradients, limit, self.processes)
        return float(nn.utils.clip_grad_norm_(parameters, limit))

    def _evaluate(self, progress: Progress) -> bool:
        """Measure, keep the weights if they are the best, and save the state; returns whether it
        was saved."""
        found = self.measure(progress)
        if found is None:
            return False
        state = self.state
        state.evaluations.append(found)
        better = note_evaluation(state, self.params.patience)
        if self._trackers:
            shown = {f"KL, {name}": d.value for name, d in found.students[0].domains.items()}
            self._trackers.log(state.step, {"KL": found.kl, **shown})
        if self._best:
            if better:
                self._best.write(state.step, self.parameters, self.processes.is_main)
            self.save()
            if self.processes.is_main:
                self._best.forget_others(state.best)
        return self._best is not None

    @torch.no_grad()
    def _round_as_stored(self) -> None:
        """Give trained weights the precision that they will be stored in, so that what is measured
        is what is written; norms are stored as float32."""
        dtype = FLOATS[self.opened.checkpoint.dtype]
        norms = (m for m in self.opened.model.modules() if is_norm(m))
        exact = {id(parameter) for norm in norms for parameter in norm.parameters()}
        for parameter in self.trained.values():
            if id(parameter) not in exact:
                parameter.copy_(parameter.to(dtype))


def student_of(step: int, students: int, seed: int) -> int:
    """Which student a step trains: each round trains every one once, in an order of its own.

    So the largest and the smallest, between which the others lie (the sandwich rule of arXiv
    1903.05134), are never long absent, at the cost of one student per step.
    """
    number, place = divmod(step, students)
    return int(np.random.default_rng((seed, number, students)).permutation(students)[place])
