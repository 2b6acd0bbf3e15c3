"""On-policy distillation: the teacher corrects what the student writes (arXiv 2306.13649).

A student that was taught on others' text meets, when it writes by itself, beginnings that it never
saw. So in each round it continues prompts, the teacher says at every token of the answers what it
would have expected, and the student takes some steps towards that: by reverse KL, which keeps it to
what the teacher finds probable, or by jsd between that and forward KL.

What a round writes depends on the seed, the prompts and the student's weights when it begins, and
the state is saved between rounds. So an interrupted training continues to the same weights.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict

from edgekit.checkpoint import read_config
from edgekit.describe import describe
from edgekit.distill.cache import LogitCache
from edgekit.distill.divergence import Divergence, RememberedTargets, measure
from edgekit.distill.generate import Sampling, generate
from edgekit.distill.head import Head
from edgekit.distill.losses import Loss
from edgekit.distill.masked import masked
from edgekit.distill.open_model import OpenModel, open_model
from edgekit.distill.pass_memory import weight_needs
from edgekit.distill.processes import Processes
from edgekit.distill.prompts import Prompt, rounds
from edgekit.distill.rows import counted, hidden_states, micro_batches, packs
from edgekit.distill.same_tokenizer import require_tokenizer, tokenizer_digest
from edgekit.distill.stage import Student, open_student, remembered
from edgekit.distill.targets import TopTargets, joined, top_k_targets
from edgekit.distill.train import require_fit
from edgekit.distill.train_report import TrainReport, train_report
from edgekit.distill.trainer import NEVER, Trainer
from edgekit.errors import BadInputError
from edgekit.progress import Progress
from edgekit.recipe import DistillSection, QuantizeSection
from edgekit.recipe_stages import OnPolicySection
from edgekit.sequences import TokenSequence
from edgekit.text import ChatTokenizer
from edgekit.writing import written_bytes

FORWARD_TOKENS = 512  # that the teacher reads at once
MEASURED = 64  # held-out prompts that are continued before and after
EPOCH_SEEDS = 1_000_003  # an epoch's answers have a seed of their own

# sequences to what the teacher says at the positions of each that count
Teacher = Callable[[Sequence[TokenSequence]], list[TopTargets]]


class OnPolicyReport(BaseModel):
    """``own_*`` is the divergence ``loss`` in nats per token on what the student itself writes for
    held-out prompts, None without such; ``training`` has the KL on the cache's held-out text.
    ``left_out`` prompts were too long to be answered within the context."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    rounds: int
    loss: str
    own_before: Divergence | None
    own_after: Divergence | None
    training: TrainReport
    left_out: int = 0


def on_policy(
    student: Path,
    teacher: Path | Teacher,
    prompts: Sequence[Prompt],
    params: OnPolicySection,
    base: DistillSection,
    out: Path,
    progress: Progress,
    scratch: Path | None = None,
    quantization: QuantizeSection | None = None,
    *,
    cache: Path | None = None,
    device: str = "auto",
    force: bool = False,
) -> OnPolicyReport:
    """Train ``student`` on its own text and write it into ``out``.

    ``teacher`` is a checkpoint, which is kept in memory, or a function such as one that asks a
    server. ``base`` says what ``params`` does not; on the held-out text of ``cache`` the KL is
    measured before and after. ``scratch`` keeps the state between two rounds; with ``force`` it
    goes on where memory seems too small.

    Raises:
        BadInputError: teacher, student and cache do not fit each other, the processes split the
            student, or it diverged.
        OutOfResourcesError: memory is too small for both.
    """
    processes = Processes.start(device)
    if processes.sharded:
        raise BadInputError(
            "accelerate's configuration asks for FSDP, but in on-policy training every process "
            "writes with the whole student; choose plain multi-CPU or multi-GPU"
        )
    stage = stage_section(base, params)
    held_out = _measured_on(student, cache, stage) if cache else None
    architecture = describe(read_config(student), str(student / "config.json"))
    beside, context = written_bytes(architecture), architecture.context_length
    with ExitStack() as stack:
        taught = None
        if isinstance(teacher, Path):
            taught = stack.enter_context(
                open_model(teacher, device=str(processes.device), load=False)
            )
            beside += weight_needs(taught).whole
            context = min(context, taught.architecture.context_length)
        asked = _that_fit(prompts, params.new_tokens, context)
        longest = max(len(prompt.tokens) for prompt in asked) + params.new_tokens
        learner = open_student(
            student, stage, quantization, device, progress,
            longest=longest, beside=beside, force=force,
        )  # fmt: skip
        opened = stack.enter_context(learner)
        score = local_teacher(taught, opened, params.top_k) if taught else teacher
        assert not isinstance(score, Path)
        report = _train(opened, score, asked, params, stage, out, progress, scratch, held_out)
    return report.model_copy(update={"left_out": len(prompts) - len(asked)})


def stage_section(base: DistillSection, params: OnPolicySection) -> DistillSection:
    """``base`` for the steps of this stage, whose state is saved between rounds only."""
    return base.model_copy(
        update={
            "steps": params.steps,
            "learning_rate": params.learning_rate,
            "loss": params.loss,
            "beta": params.beta,
            "cross_entropy": 0.0,
            "temperature": 1.0,
            "evaluate_every": 0,
            "patience": 0,
            "save_every": NEVER,
            "seed": params.seed,
        }
    )


def _measured_on(student: Path, cache: Path, stage: DistillSection) -> LogitCache:
    """A cache on whose held-out text the student can be measured.

    Raises:
        BadInputError: it is of another tokenizer or vocabulary.
    """
    found = LogitCache(cache)
    # held-out targets are the top ones at temperature 1, whatever is kept of the training text
    drawn = found.index.targets == "sampled"
    measured = {"loss": "forward_kl", "temperature": found.index.temperature if drawn else 1.0}
    require_fit(student, found, stage.model_copy(update=measured))
    return found


def _that_fit(prompts: Sequence[Prompt], new_tokens: int, context: int) -> list[Prompt]:
    """Those that leave room for an answer.

    Raises:
        BadInputError: none of those to train on does.
    """
    found = [prompt for prompt in prompts if len(prompt.tokens) + new_tokens <= context]
    if all(prompt.held_out for prompt in found):
        raise BadInputError(
            f"[distill.on_policy]: no prompt to train on leaves room for {new_tokens} new_tokens "
            f"in a context of {context}; lower new_tokens, or prompt_tokens for texts"
        )
    return found


def local_teacher(opened: OpenModel, student: Student, top_k: int) -> Teacher:
    """A checkpoint that was opened on the student's device; its weights are loaded.

    Raises:
        BadInputError: it writes with other tokens than the student.
    """
    digest = tokenizer_digest(opened.path)
    if digest and tokenizer_digest(student.opened.path):
        require_tokenizer(student.opened.path, digest, opened.path)
    if opened.architecture.vocab_size < student.vocab_size:
        raise BadInputError(
            f"{opened.path}: the vocabulary has {opened.architecture.vocab_size} tokens but the "
            f"student's has {student.vocab_size}; choose a student with the teacher's tokenizer"
        )
    opened.load()
    head = Head(opened, student.vocab_size)
    return lambda sequences: _scored(opened, head, sequences, top_k)


@torch.no_grad()
def _scored(
    opened: OpenModel, head: Head, sequences: Sequence[TokenSequence], top_k: int
) -> list[TopTargets]:
    found: dict[int, TopTargets] = {}
    packed = packs(opened.architecture)
    for group in micro_batches(sequences, range(len(sequences)), FORWARD_TOKENS, packed):
        chosen = [sequences[number] for number in group]
        hidden = hidden_states(opened, chosen)[counted(chosen).to(opened.device)]
        parts = [
            top_k_targets(head.logits(hidden[rows]), top_k) for rows in head.chunks(len(hidden))
        ]
        whole = joined(parts).to(torch.device("cpu"))
        assert isinstance(whole, TopTargets)
        begin = 0
        for number, sequence in zip(group, chosen, strict=True):
            found[number] = whole[begin : begin + sequence.positions]
            begin += sequence.positions
    return [found[number] for number in range(len(sequences))]


def _train(
    student: Student,
    teacher: Teacher,
    prompts: Sequence[Prompt],
    params: OnPolicySection,
    stage: DistillSection,
    out: Path,
    progress: Progress,
    scratch: Path | None,
    cache: LogitCache | None,
) -> OnPolicyReport:
    writer = _Writer(student, teacher, params, progress)
    trainer = Trainer(
        student.opened, stage, student.vocab_size, loss=Loss.of(stage), masks=student.masks,
        held_out=cache, saved=scratch, processes=student.processes,
        largest=student.largest,
    )  # fmt: skip
    trainer.begin(progress)
    held_out = [(0, prompt) for prompt in prompts if prompt.held_out][:MEASURED]
    before = remembered(
        scratch, "own.json", student.processes, lambda: writer.measure(held_out, stage)
    )
    size = params.round_steps * stage.batch_tokens
    asked = rounds(prompts, params.new_tokens, size, params.seed)
    count = -(-params.steps // params.round_steps)
    for number, questions in zip(range(count), asked, strict=False):
        begin = number * params.round_steps
        end = min(begin + params.round_steps, params.steps)
        if trainer.state.step < end:
            mask = student.masks[number % len(student.masks)]  # sizes take turns in writing
            with masked(student.opened, mask):
                text = writer.write(questions)
            trainer.train(text, begin, end, progress)
            trainer.save()
    after = trainer.finish(progress)
    own = writer.measure(held_out, stage)
    student.write(out, progress)
    return OnPolicyReport(
        rounds=count,
        loss=params.loss,
        own_before=before,
        own_after=own,
        training=train_report(trainer, student.nested, after),
    )


class _Writer:
    """Lets the student answer and the teacher correct the answers; every process does a share."""

    def __init__(
        self, student: Student, teacher: Teacher, params: OnPolicySection, progress: Progress
    ) -> None:
        self._student, self._teacher = student, teacher
        self._params, self._progress = params, progress
        self._end_tokens = ChatTokenizer(student.opened.path).end_tokens

    def write(self, questions: Sequence[tuple[int, Prompt]]) -> RememberedTargets:
        """Answers to prompts of epochs, and what the teacher expected in them."""
        processes = self._student.processes
        mine = questions[processes.rank :: processes.count]
        written = self._answers(mine)
        parts = processes.gathered((written, self._teacher(written)))
        # dealt out in turn, and put back in that order
        order = [
            (place, rank) for rank, (part, _) in enumerate(parts) for place in range(len(part))
        ]
        order.sort()
        return RememberedTargets(
            [parts[rank][0][place] for place, rank in order],
            [parts[rank][1][place] for place, rank in order],
            self._params.top_k,
            self._student.vocab_size,
        )

    def measure(
        self, questions: Sequence[tuple[int, Prompt]], stage: DistillSection
    ) -> Divergence | None:
        """The loss on what the student writes now; None for no prompts."""
        if not questions:
            return None
        with masked(self._student.opened, self._student.masks[0]):
            text = self.write(questions)
            numbers = range(len(text.sequences))
            found = measure(
                self._student.opened.model, text, self._progress, "the student's own text",
                numbers, Loss.of(stage),
            )  # fmt: skip
        return found.divergence()

    def _answers(self, questions: Sequence[tuple[int, Prompt]]) -> list[TokenSequence]:
        params = self._params
        found: dict[int, TokenSequence] = {}
        with self._progress.task("let the student write", len(questions)) as task:
            for epoch in sorted({epoch for epoch, _ in questions}):
                numbers = [n for n, (asked, _) in enumerate(questions) if asked == epoch]
                prompts = [questions[n][1] for n in numbers]
                seed = params.seed * EPOCH_SEEDS + epoch
                sampling = Sampling(params.new_tokens, params.sampling_temperature, seed=seed)
                answers = generate(
                    self._student.opened, [prompt.tokens for prompt in prompts], sampling,
                    self._end_tokens, task, self._student.vocab_size,
                )  # fmt: skip
                for number, prompt, answer in zip(numbers, prompts, answers, strict=True):
                    found[number] = answered(prompt, answer.tolist())
        return [found[number] for number in range(len(questions))]


def answered(prompt: Prompt, answer: Sequence[int]) -> TokenSequence:
    """A prompt and its answer, of which the positions count that predict the answer's tokens."""
    tokens = np.array([*prompt.tokens, *answer], np.int32)
    counts = np.zeros(len(tokens), np.bool_)
    counts[len(prompt.tokens) - 1 : -1] = True
    return TokenSequence(tokens, prompt.domain, prompt.held_out, counts)
