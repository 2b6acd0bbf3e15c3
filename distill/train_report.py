"""What a training did and what came of it."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict

from edgekit.distill.divergence import Divergence
from edgekit.distill.state import Evaluation
from edgekit.distill.trainer import Trainer
from edgekit.distill.working import Working


class Healed(BaseModel):
    """A student of ``experts`` per layer (0: dense) on held-out text, before and after training."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    experts: int
    before: Divergence
    after: Divergence


class TrainReport(BaseModel):
    """KL in nats per token on held-out text before and after; of every step the mean loss over its
    positions, the gradient's norm before it was clipped, and the learning rate.

    ``held_out_kl_*`` are those of the first of ``students``, None without held-out text. A step of
    nested training trains one prefix, so neighbours among ``losses`` may be of different ones.
    ``steps`` were done, fewer than asked for if the training was ``stopped_early``, and what was
    written is the student after ``written_step`` of them. ``missing_shards`` of the cache were left
    out. ``working`` is how gradients were computed. ``evaluations`` are of the weights in float32,
    before they were stored; where there were none between, the last is of what was written.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    steps: int
    written_step: int
    stopped_early: bool
    trained_parameters: int
    parameters: int
    tokens: int
    tokens_per_second: float
    missing_shards: int = 0
    processes: int
    working: Working | None
    held_out_kl_before: float | None
    held_out_kl_after: float | None
    students: list[Healed]
    evaluations: list[Evaluation]
    losses: list[float]
    gradient_norms: list[float]
    learning_rates: list[float]


def train_report(trainer: Trainer, nested: Sequence[int], after: Evaluation | None) -> TrainReport:
    """Of a finished training; ``nested`` are the sizes of the student, if it has several."""
    state, architecture = trainer.state, trainer.opened.architecture
    counts = list(nested) or [architecture.moe.num_experts if architecture.moe else 0]
    before = state.evaluations[0] if state.evaluations else None
    pairs = zip(before.students, after.students, strict=True) if before and after else ()
    measured = list(state.evaluations)
    if after and not trainer.params.evaluate_every:
        measured.append(after)
    return TrainReport(
        steps=state.step,
        written_step=trainer.written_step,
        stopped_early=state.stopped,
        trained_parameters=sum(p.numel() for p in trainer.parameters.values()),
        parameters=architecture.parameters(),
        tokens=state.tokens,
        tokens_per_second=round(state.tokens / state.seconds, 1) if state.seconds else 0.0,
        processes=trainer.processes.count,
        working=state.working,
        held_out_kl_before=before.students[0].all.value if before else None,
        held_out_kl_after=after.students[0].all.value if after else None,
        students=[
            Healed(experts=count, before=first, after=last)
            for count, (first, last) in zip(counts, pairs, strict=False)
        ],
        evaluations=measured,
        losses=[round(x, 5) for x in state.losses],
        gradient_norms=[round(x, 5) for x in state.norms],
        learning_rates=[float(f"{x:.5g}") for x in state.rates],
    )
