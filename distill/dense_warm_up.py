"""Let every dense feed-forward learn what the mixture in its place says, before all learn together.

Layer by layer and teacher forced: a feed-forward reads what the mixture reads, and is to say what
the mixture says (:mod:`edgekit.distill.dense_layer`). A layer of each model is in memory, beside
the hidden states of the text; the student is written as its layers become ready, opened again, and
every layer must say what it said when it was trained.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from edgekit.architecture import TensorSpec
from edgekit.atomic import write_json
from edgekit.checkpoint import Checkpoint, copy_tokenizer, write_checkpoint
from edgekit.distill.chunks import Text
from edgekit.distill.dense_families import module_of
from edgekit.distill.dense_layer import (
    DenseModule,
    Lesson,
    WarmUpOptions,
    relative_error,
    solve_down,
    train_layer,
)
from edgekit.distill.dense_moments import shared_expert
from edgekit.distill.dense_pass import text_batches
from edgekit.distill.layerwise import Layerwise
from edgekit.distill.merge_tensors import PRECISIONS
from edgekit.distill.open_model import OpenModel, open_model
from edgekit.distill.pass_memory import pass_needs
from edgekit.distill.proof import TOLERANCE
from edgekit.distill.slice_importance import find_module
from edgekit.errors import BadInputError, EdgekitError
from edgekit.memory import require_disk, require_memory
from edgekit.progress import Progress, Task
from edgekit.sequences import TokenSequence

REPORT = "warm-up.json"
UNSEEN = 5  # every fifth sequence is not learnt from
PROBE_ROWS = 64  # of the embedding, which a student has from its teacher
TRAINED_BYTES = (
    24  # of a weight: itself, the best so far, its gradient, two moments, a rounded copy
)
SOLVED_BYTES = 32  # of a pair of neurons: the normal equations, shifted and factored, in float64
PROBE_TOKENS = 64  # of each layer, by which what was written is proven
PROBE_TOLERANCE = 0.02  # of the largest value: it may be rounded otherwise


class WarmUpReport(BaseModel):
    """Squared error of each layer's output, relative to the squared output, on text that was not
    learnt from: as it came, with down solved for, and trained."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    before: dict[int, float]
    solved: dict[int, float]
    after: dict[int, float]
    tokens: int
    seed: int

    @property
    def sentence(self) -> str:
        """What was gained, for a person."""
        before, after = (np.median(list(e.values())) for e in (self.before, self.after))
        return (
            f"warmed up on {self.tokens:,} tokens: the feed-forwards' outputs are off by "
            f"{after:.2f} of their square instead of {before:.2f} (the median layer, on text that "
            "was not learnt from)"
        )


def warm_up(
    teacher: Path,
    student: Path,
    sequences: Sequence[TokenSequence],
    options: WarmUpOptions,
    out: Path,
    progress: Progress,
) -> WarmUpReport:
    """Write ``student``, which was made of ``teacher``, into the existing, empty ``out``, with its
    feed-forwards trained layer by layer on the text that is not held out.

    Raises:
        BadInputError: the two do not belong together, there is too little text, or the teacher's
            outputs are not finite.
        OutOfResourcesError: memory or disk are too small.
        EdgekitError: what was written is not what was trained.
    """
    text = text_to_learn_from(sequences)
    if options.steps < 0:
        raise BadInputError(f"{options.steps} steps cannot be made; choose 0 or more")
    with open_model(teacher, load=False) as opened, Checkpoint(student) as checkpoint:
        _require_pair(opened.checkpoint, checkpoint)
        _require_resources(opened, checkpoint, text, out, options.force)
        with progress.task("warm up the feed-forwards", len(opened.layers)) as task:
            walk = _Walk(opened, checkpoint, text, options, task)
            write_checkpoint(
                out,
                checkpoint.config,
                walk.tensor,
                checkpoint.dtype,
                stored_as=checkpoint.dtypes,
            )
        copy_tokenizer(student, out)
        check_warmed(out, checkpoint, walk.probes)
    report = WarmUpReport(
        before=walk.before,
        solved=walk.solved,
        after=walk.after,
        tokens=sum(len(s.tokens) for s in text),
        seed=options.seed,
    )
    write_json(out / REPORT, report.model_dump(mode="json"))
    return report


def text_to_learn_from(sequences: Sequence[TokenSequence]) -> list[TokenSequence]:
    """The sequences that are not held out.

    Raises:
        BadInputError: they are too few.
    """
    text = [s for s in sequences if not s.held_out]
    if len(text) < UNSEEN:
        raise BadInputError(
            f"{len(text)} sequences are too few to learn from, as every {UNSEEN}th is kept to "
            "measure; raise [data] tokens"
        )
    return text


def _require_resources(
    opened: OpenModel,
    student: Checkpoint,
    text: Sequence[TokenSequence],
    out: Path,
    force: bool,
) -> None:
    """Refuse what will not fit: a layer of the teacher beside the states of all text, what its
    mixture read and said, and a feed-forward in training."""
    if force:
        return
    needs = pass_needs(opened, Text.of(text, [(0, len(text))]))
    dense = student.architecture
    trained = TRAINED_BYTES * 3 * dense.hidden_size * dense.intermediate_size
    solved = SOLVED_BYTES * dense.intermediate_size**2
    memory = needs.streamed + 2 * needs.states_disk + max(trained, solved)
    require_memory(memory, f"{student.path}: warming up")
    width = PRECISIONS[student.dtype].itemsize
    require_disk(out, dense.parameters() * width, f"{student.path}: warming up")


@torch.inference_mode()
def check_warmed(out: Path, student: Checkpoint, probes: Mapping[int, Lesson]) -> None:
    """Open what was written: its feed-forwards have to say what the trained ones said (``probes``,
    by layer), and every other tensor has to be the student's.

    Raises:
        EdgekitError: they are not; a defect of edgekit, and nothing is kept.
    """
    trained = set()
    with open_model(out, load=False) as opened:
        for layer, probe in probes.items():
            part = opened.architecture.layers[layer].dense
            assert part is not None
            trained |= {part.gate, part.up, part.down}
            opened.load_layer(layer)
            found = find_module(opened, part.down.rpartition(".")[0], layer)(probe.x[None])[0]
            opened.drop_layer(layer)
            error = float((found - probe.y).abs().max() / (probe.y.abs().max() or 1.0))
            if not error <= TOLERANCE:
                raise EdgekitError(
                    f"{out}: the feed-forward of layer {layer} is {error:.1e} of its largest value "
                    "away from what was trained; please report this family"
                )
        for spec in opened.checkpoint.specs:
            if module_of(spec) not in trained and not np.array_equal(
                opened.checkpoint.float32(spec.name), student.float32(spec.name)
            ):
                raise EdgekitError(
                    f"{out}: {spec.name} is not what it was in {student.path}; please report this "
                    "family"
                )


class _Walk:
    """Gives the tensors of the student in the order of its file, which is that of its layers; each
    layer is trained when the file has come to it."""

    def __init__(
        self,
        opened: OpenModel,
        checkpoint: Checkpoint,
        text: Sequence[TokenSequence],
        options: WarmUpOptions,
        task: Task,
    ) -> None:
        self.before: dict[int, float] = {}
        self.solved: dict[int, float] = {}
        self.after: dict[int, float] = {}
        self.probes: dict[int, Lesson] = {}  # what the trained layers say
        self._opened, self._checkpoint = opened, checkpoint
        self._options, self._task = options, task
        self._layerwise = Layerwise(opened)
        by_domain = sorted(text, key=lambda s: s.domain)  # so that every domain is measured
        parts = (
            [s for n, s in enumerate(by_domain) if (n + 1) % UNSEEN],
            by_domain[UNSEEN - 1 :: UNSEEN],
        )
        self._states = [
            [self._layerwise.embed(ids) for ids in text_batches(part, opened.device)]
            for part in parts
        ]
        self._next = 0
        self._trained: dict[str, Tensor] = {}

    def tensor(self, spec: TensorSpec) -> NDArray[np.float32]:
        """One tensor of the student."""
        while self._next <= spec.layer:
            self._advance(self._next)
            self._next += 1
            self._task.advance()
        trained = self._trained.get(spec.name)
        return self._checkpoint.float32(spec.name) if trained is None else trained.numpy()

    def _advance(self, number: int) -> None:
        """Run the teacher's layer over the text and train the student's."""
        self._opened.load_layer(number)
        lessons = []
        for part, states in enumerate(self._states):
            with _watched(self._opened, number) as seen:
                self._states[part] = [self._layerwise.run(number, x) for x in states]
            lessons.append(seen)
        self._trained = {}
        if number in self._opened.mixtures:
            learnt, unseen = (self._lesson(number, seen) for seen in lessons)
            self._trained = self._train(number, learnt, unseen)
        self._opened.drop_layer(number)

    def _lesson(self, number: int, seen: list[tuple[Tensor, Tensor]]) -> Lesson:
        """All tokens of what was seen, with the shared expert in what is to be said."""
        x = torch.cat([x for x, _ in seen]).float().cpu()
        y = torch.cat([y for _, y in seen]).float().cpu()
        shared = shared_expert(self._opened, number)
        if shared:
            y = y + shared.gates(x) * shared.output(x)
        if not y.isfinite().all():
            raise BadInputError(
                f"{self._opened.path}: layer {number} gives values that are not finite; the "
                "weights are damaged, download them again"
            )
        return Lesson(x, y)

    def _train(self, number: int, learnt: Lesson, unseen: Lesson) -> dict[str, Tensor]:
        part = self._checkpoint.architecture.layers[number].dense
        assert part is not None
        module = DenseModule(self._checkpoint, part)
        self.before[number] = relative_error(module, unseen)
        solve_down(module, learnt, unseen)
        self.solved[number] = relative_error(module, unseen)
        train_layer(module, learnt, unseen, self._options)
        module.round_as(self._checkpoint)
        self.after[number] = relative_error(module, unseen)
        probe = unseen.x[:PROBE_TOKENS]
        self.probes[number] = Lesson(probe, module(probe))
        return {name: module.weights[place] for name, place in module.names.items()}


@contextmanager
def _watched(opened: OpenModel, number: int) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """What the mixture of a layer reads and says, [T, H] each; nothing for a dense layer."""
    seen: list[tuple[Tensor, Tensor]] = []
    block = opened.mixtures.get(number)
    if block is None:
        yield seen
        return

    def hook(_: object, arguments: tuple[Tensor, ...], output: Tensor) -> None:
        seen.append((arguments[0].flatten(0, -2).clone(), output.flatten(0, -2).clone()))

    handle = block.register_forward_hook(hook)
    try:
        yield seen
    finally:
        handle.remove()


def _require_pair(teacher: Checkpoint, student: Checkpoint) -> None:
    sparse, dense = teacher.architecture, student.architecture
    if sparse.moe is None:
        raise BadInputError(f"{teacher.path}: a dense model has no mixtures to learn from")
    same = len(sparse.layers) == len(dense.layers) and sparse.hidden_size == dense.hidden_size
    if dense.moe is not None or not same or sparse.vocab_size != dense.vocab_size:
        raise _not_a_pair(teacher, student)
    rows = slice(0, min(PROBE_ROWS, sparse.vocab_size))
    one, other = (c.float32(c.architecture.embedding + ".weight", rows) for c in (teacher, student))
    if not np.allclose(one, other, rtol=0, atol=PROBE_TOLERANCE * np.abs(one).max()):
        raise _not_a_pair(teacher, student)


def _not_a_pair(teacher: Checkpoint, student: Checkpoint) -> BadInputError:
    return BadInputError(
        f"{student.path}: was not made of {teacher.path}; make it with `edgekit shrink dense`"
    )
