"""What a real student learns from sampled targets, top-k targets and whole distributions.

    python benchmarks/distill_real.py TEACHER STUDENT SEQUENCES [--steps 60] [--seeds 3]
        [--trainable router norms attention] [--learning-rate 3e-4] [--json FILE]

TEACHER and STUDENT are checkpoints with one tokenizer, such as the demo's teacher and its pruned
student; SEQUENCES has their text, as of a build's step "data". Every row trains the same parts of
the student with the same rate on the same text in the same order of a seed; only what is kept of
the teacher differs (``distill_targets.py`` says how each is kept, and measures more of them on a
miniature). KL(teacher || student) in nats per token over whole distributions of held-out text: the
mean over seeds of the order with the range: the draws are those of one cache. The whole
distributions are in memory: 4 bytes times vocabulary times tokens. About half an hour on one thread
for the demo's student.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from distill_targets import FORWARD, Naive, Way, drawn, show, size_of, top
from rich.console import Console

from edgekit.distill.divergence import held_out_sequences, measure
from edgekit.distill.losses import Loss
from edgekit.distill.open_model import open_model
from edgekit.distill.targets import LOWEST, TeacherTargets, TopTargets
from edgekit.distill.trainer import Trainer
from edgekit.progress import Silent, default_progress
from edgekit.recipe import DistillSection, checked
from edgekit.sequences import FILE_NAME, TokenSequence, read_sequences

BATCH_TOKENS = 256
PER_DOMAIN = 4  # held-out sequences


def whole(logits: torch.Tensor, _: TokenSequence) -> TopTargets:
    """Every token, in the order of the ids."""
    ids = torch.arange(logits.shape[-1]).expand(len(logits), -1)
    return TopTargets(ids, logits.log_softmax(-1), torch.full((len(logits),), LOWEST))


WAYS = (
    Way("whole distribution", whole),
    Way("sampled", drawn(50)),
    Way("top 12 and tail", top(12)),
    Way("top 12, naive", top(12), Naive()),
    Way("the text alone", top(1), Loss(cross_entropy=1.0)),
)


@dataclass(frozen=True)
class FromLogits:
    """Targets that are made of the teacher's logits [T, V] when they are asked for."""

    sequences: list[TokenSequence]
    logits: list[torch.Tensor]
    way: Way
    vocab_size: int

    def targets(self, number: int) -> TeacherTargets:
        """Those of one sequence."""
        return self.way.keep(self.logits[number], self.sequences[number])


@torch.inference_mode()
def teachers_logits(teacher: Path, sequences: Sequence[TokenSequence]) -> list[torch.Tensor]:
    """[T, V] of each sequence, in float32."""
    with open_model(teacher) as opened:
        return [
            opened.model(torch.from_numpy(s.tokens.astype("int64"))[None], use_cache=False).logits[
                0
            ]
            for s in sequences
        ]


def kl_after(student: Path, text: FromLogits, judge: FromLogits, params: DistillSection) -> float:
    """KL on held-out text of the student after training."""
    with open_model(student) as opened:
        trainer = Trainer(opened, params, text.vocab_size, loss=text.way.loss)
        trainer.train(text, 0, params.steps, Silent())
        return measure(opened.model, judge, Silent()).divergence().all.value


def main() -> None:
    """Train and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("teacher", type=Path)
    parser.add_argument("student", type=Path)
    parser.add_argument("sequences", type=Path)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--trainable", nargs="+", default=["router", "norms", "attention"])
    parser.add_argument("--learning-rate", type=float, default=3e-4)
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    every = read_sequences(arguments.sequences / FILE_NAME)
    text = [s for s in every if not s.held_out]
    held_out = held_out_sequences(every, PER_DOMAIN)
    logits = teachers_logits(arguments.teacher, [*text, *held_out])
    vocabulary = logits[0].shape[-1]
    exact = Way("whole distribution", whole, FORWARD)
    judge = FromLogits(held_out, logits[len(text) :], exact, vocabulary)
    params = checked(
        DistillSection, steps=arguments.steps, batch_tokens=BATCH_TOKENS,
        learning_rate=arguments.learning_rate, trainable=tuple(arguments.trainable),
        precision=arguments.precision,
    )  # fmt: skip
    none = params.model_copy(update={"steps": 0})
    before = kl_after(arguments.student, judge, judge, none)
    figures: dict[str, dict[str, list[float]]] = {}
    with default_progress().task("train the students", arguments.seeds * len(WAYS)) as task:
        for way in WAYS:
            kept = FromLogits(text, logits[: len(text)], way, vocabulary)
            size = size_of(
                [kept.targets(number) for number in range(min(8, len(text)))], vocabulary
            )
            row = figures.setdefault(way.name, {"size": [size], "kl": []})
            for seed in range(arguments.seeds):
                seeded = params.model_copy(update={"seed": seed})
                row["kl"].append(kl_after(arguments.student, kept, judge, seeded))
                task.advance()
    show(figures, f"{arguments.steps} steps of {BATCH_TOKENS} tokens, {arguments.seeds} seeds")
    tokens = sum(len(s.tokens) for s in held_out)
    Console(width=100).print(f"before training {before:.4f}; {tokens} held-out tokens")
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
