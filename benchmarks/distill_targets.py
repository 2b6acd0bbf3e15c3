"""What a student learns from sampled targets, top-k targets and whole distributions.

    python benchmarks/distill_targets.py [--teacher DIR] [--steps 300] [--seeds 3] [--json FILE]

Trains one dense student per row on the miniature (``miniature_teacher.py``, made unless
``--teacher`` gives one): a byte-level model with feed-forwards as wide as one expert, from random
weights, with the same text in the same order in every row of a seed. Only what is kept of the
teacher differs, or the loss. KL(teacher || student) in nats per byte over whole distributions of
held-out text; the mean over seeds of weights and order, with the range: the draws are those of one
cache, with a number of their own at every position. Beside it how far the
student is surer than it is right, and how likely the teacher finds what the student writes. About
four minutes a seed on one thread.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from miniature_corpus import read_corpus
from miniature_teacher import CONFIG, WIDTH, train_teacher, write_byte_tokenizer
from rich.console import Console
from rich.table import Table

from edgekit.distill.cache_write import id_bytes
from edgekit.distill.capture import FIXED_BYTES, HALF_BYTES, SHARE_BYTES
from edgekit.distill.divergence import measure
from edgekit.distill.losses import Loss
from edgekit.distill.open_model import OpenModel, open_model
from edgekit.distill.targets import (
    LOWEST,
    Room,
    SampledTargets,
    TeacherTargets,
    TopTargets,
    sampled_targets,
    top_k_targets,
    uniform_numbers,
)
from edgekit.distill.trainer import Trainer
from edgekit.progress import Silent, default_progress
from edgekit.recipe import DistillSection
from edgekit.sequences import TokenSequence, sequences_digest

TAUGHT, HELD_OUT = 400, 18  # sequences per domain
STEP_TOKENS, RATE = 1280, 3e-3
WRITTEN, WRITTEN_TOKENS = 32, 96  # what a student writes, for the teacher to judge
FORWARD = Loss()
Keep = Callable[[torch.Tensor, TokenSequence], TeacherTargets]


class Naive(Loss):
    """Cross-entropy with the kept tokens' probabilities, as if there were no others."""

    def of_targets(self, logits: torch.Tensor, targets: TeacherTargets) -> torch.Tensor:
        """float32 [T]."""
        assert isinstance(targets, TopTargets)
        chosen = logits.float().log_softmax(-1).gather(-1, targets.ids)
        return -(targets.logprobs.exp() * chosen).sum(-1)


@dataclass(frozen=True)
class Way:
    """What is kept of a distribution, and the loss."""

    name: str
    keep: Keep
    loss: Loss = FORWARD


@dataclass(frozen=True)
class Kept:
    """Targets of every sequence in memory."""

    sequences: list[TokenSequence]
    held: list[TeacherTargets]
    vocab_size: int

    def targets(self, number: int) -> TeacherTargets:
        """Those of one sequence."""
        return self.held[number]


def whole(logits: torch.Tensor, _: TokenSequence) -> TopTargets:
    """Every token."""
    return top_k_targets(logits, logits.shape[-1])


def top(count: int, renormalised: bool = False) -> Keep:
    """The ``count`` most probable tokens, and their tail unless it is shared out among them."""

    def keep(logits: torch.Tensor, _: TokenSequence) -> TopTargets:
        found = top_k_targets(logits, count)
        if not renormalised:
            return found
        return TopTargets(
            found.ids, found.logprobs.log_softmax(-1), torch.full_like(found.tail, LOWEST)
        )

    return keep


def drawn(size: int) -> Keep:
    """Draws as a cache of ``size`` bytes per token keeps them."""

    def keep(logits: torch.Tensor, sequence: TokenSequence) -> SampledTargets:
        width = id_bytes(logits.shape[-1])
        uniform = uniform_numbers(0, sequences_digest([sequence]), len(logits), 2)
        return sampled_targets(
            logits, Room(size - FIXED_BYTES, width + SHARE_BYTES, width), uniform
        )

    return keep


def independent(count: int) -> Keep:
    """``count`` independent draws at every position, as in arXiv 2503.16870."""

    def keep(logits: torch.Tensor, sequence: TokenSequence) -> SampledTargets:
        key = int(sequences_digest([sequence])[:8], 16)
        generator = torch.Generator().manual_seed(key)
        ids = torch.multinomial(logits.softmax(-1), count, replacement=True, generator=generator)
        logprobs = logits.log_softmax(-1)
        entropy = -(logprobs.exp() * logprobs).sum(-1)
        return SampledTargets.equal(ids, entropy)

    return keep


WAYS = (
    Way("whole distribution", whole),
    Way("sampled", drawn(50)),
    Way("sampled", drawn(24)),
    Way("independent draws, 50", independent(50)),
    Way("independent draws, 12", independent(12)),
    Way("top 12 and tail", top(12)),
    Way("top 12, renormalised", top(12, renormalised=True)),
    Way("top 12, naive", top(12), Naive()),
    Way("top 4 and tail", top(4)),
    Way("top 4, naive", top(4), Naive()),
    Way("the text alone", top(1), Loss(cross_entropy=1.0)),
    Way("reverse KL", whole, Loss("reverse_kl")),
    Way("Jensen-Shannon", whole, Loss("jsd")),
    Way("skewed forward", whole, Loss("skew_forward")),
    Way("skewed reverse", whole, Loss("skew_reverse")),
    Way("total variation", whole, Loss("total_variation")),
)


@torch.inference_mode()
def teachers_logits(opened: OpenModel, sequences: Sequence[TokenSequence]) -> list[torch.Tensor]:
    """[T, V] of each sequence; all have one length."""
    ids = torch.from_numpy(np.stack([s.tokens for s in sequences]).astype(np.int64))
    return [rows for part in ids.split(64) for rows in opened.model(part, use_cache=False).logits]


def size_of(targets: Sequence[TeacherTargets], vocab_size: int) -> float:
    """Bytes a token on disk."""
    width = id_bytes(vocab_size)
    first = targets[0]
    if isinstance(first, TopTargets):
        return first.ids.shape[1] * (width + HALF_BYTES) + HALF_BYTES
    drawn = [t for t in targets[:40] if isinstance(t, SampledTargets)]
    if not first.kept.any():  # independent draws: the different ones, and how often each came
        unique = [len(torch.unique(row)) for t in drawn for row in t.ids]
        return FIXED_BYTES + statistics.mean(unique) * (width + SHARE_BYTES)
    sizes = [
        row_sizes.item()
        for t in drawn
        for row_sizes in (width * (t.shares > 0) + SHARE_BYTES * t.kept).sum(-1)
    ]
    return FIXED_BYTES + statistics.mean(sizes)


def new_student(directory: Path, seed: int) -> Path:
    """Random weights."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(seed)
    shape = {k: v for k, v in CONFIG.items() if "expert" not in k and "moe" not in k}
    config = Qwen3Config(**{**shape, "intermediate_size": WIDTH, "norm_topk_prob": None})
    Qwen3ForCausalLM(config).save_pretrained(directory)
    write_byte_tokenizer(directory)
    return directory


def taught(student: Path, targets: Kept, loss: Loss, steps: int, seed: int) -> OpenModel:
    """The student after training."""
    params = DistillSection(
        steps=steps, batch_tokens=STEP_TOKENS, learning_rate=RATE, trainable=("all",), seed=seed,
        precision="float32",
    )  # fmt: skip
    with open_model(student) as opened:
        Trainer(opened, params, 256, loss=loss).train(targets, 0, steps, Silent())
        opened.model.requires_grad_(False)
        return opened


@torch.inference_mode()
def overconfidence(opened: OpenModel, sequences: Sequence[TokenSequence]) -> float:
    """Mean probability of the likeliest token less how often it is the next one."""
    gaps = []
    for logits, sequence in zip(teachers_logits(opened, sequences), sequences, strict=True):
        surest = logits[:-1].softmax(-1).max(-1)
        right = surest.indices == torch.from_numpy(sequence.tokens[1:].astype(np.int64))
        gaps.append(float(surest.values.mean() - right.float().mean()))
    return statistics.mean(gaps)


@torch.inference_mode()
def judged(student: OpenModel, teacher: OpenModel, starts: Sequence[TokenSequence]) -> float:
    """Nats per byte of the teacher for what the student writes after eight bytes."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.from_numpy(np.stack([s.tokens[:8] for s in starts[:WRITTEN]]).astype(np.int64))
    for _ in range(WRITTEN_TOKENS):
        chances = student.model(ids, use_cache=False).logits[:, -1].softmax(-1)
        ids = torch.cat([ids, torch.multinomial(chances, 1, generator=generator)], -1)
    logprobs = teacher.model(ids, use_cache=False).logits[:, 7:-1].log_softmax(-1)
    return float(-logprobs.gather(-1, ids[:, 8:, None]).mean())


def main() -> None:
    """Train and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--teacher", type=Path, help="of miniature_teacher.py")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    corpus = read_corpus()
    figures: dict[str, dict[str, list[float]]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        teacher = arguments.teacher or Path(scratch) / "teacher"
        if not arguments.teacher:
            teacher.mkdir()
            train_teacher(teacher, corpus, 3000, 0, default_progress())
        with open_model(teacher) as opened:
            text, held_out = corpus.windows(TAUGHT, 5), corpus.windows(HELD_OUT, 1, held_out=True)
            logits = teachers_logits(opened, [*text, *held_out])
            exact = [whole(r, s) for r, s in zip(logits[len(text) :], held_out, strict=True)]
            judge = Kept([*held_out], [*exact], 256)
            total = arguments.seeds * len(WAYS)
            with default_progress().task("train the students", total) as task:
                for way in WAYS:
                    held = [way.keep(r, s) for r, s in zip(logits[: len(text)], text, strict=True)]
                    size = size_of(held, 256)
                    name = f"{way.name}, {size:.0f} B" if way.name == "sampled" else way.name
                    row = figures.setdefault(name, {"size": [size]})
                    for seed in range(arguments.seeds):
                        blank = new_student(Path(scratch) / f"{name}-{seed}", seed)
                        student = taught(blank, Kept(text, held, 256), way.loss, arguments.steps,
                                         seed)  # fmt: skip
                        kl = measure(student.model, judge, Silent()).divergence().all.value
                        row.setdefault("kl", []).append(kl)
                        row.setdefault("gap", []).append(overconfidence(student, held_out))
                        row.setdefault("judged", []).append(judged(student, opened, held_out))
                        task.advance()
    show(figures, f"{arguments.steps} steps of {STEP_TOKENS} bytes, {arguments.seeds} seeds")
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


def show(figures: dict[str, dict[str, list[float]]], title: str) -> None:
    """The table; ratios are to the whole distribution with the same seed."""
    table = Table(title=title)
    heads = ["learned from", "bytes", "KL", "KL / whole"]
    more = {"gap": ("surer than right", "+.3f"), "judged": ("teacher's nats", ".2f")}
    shown = [name for name in more if all(name in row for row in figures.values())]
    for head in heads + [more[name][0] for name in shown]:
        table.add_column(head)
    best = figures["whole distribution"]["kl"]
    for name, row in figures.items():
        ratios = [kl / reference for kl, reference in zip(row["kl"], best, strict=True)]
        table.add_row(
            name, f"{row['size'][0]:.0f}", _spread(row["kl"], 4), _spread(ratios, 3),
            *(format(statistics.mean(row[other]), more[other][1]) for other in shown),
        )  # fmt: skip
    Console(width=120).print(table)


def _spread(values: Sequence[float], digits: int) -> str:
    low, high = min(values), max(values)
    return f"{statistics.mean(values):.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


if __name__ == "__main__":
    main()
