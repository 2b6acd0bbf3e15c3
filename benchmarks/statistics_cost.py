"""What measuring experts costs on top of running the model.

    python benchmarks/statistics_cost.py [--model DIR] [--tokens 4096] [--length 256] [--rounds 5]
                                         [--threads 1] [--json FILE]

Without ``--model`` the model has two layers of the shapes of Qwen3-30B-A3B (128 experts, 8 per
token) with random weights, 5 GB in float32. In every round, in shuffled order, the same tokens run
through the calibration pass as ``collect`` runs it, its files written and added up; through
edgekit's mixtures without observers; and through transformers' own eager experts. Ratios are of the
same round: median and range.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from any_size import CONFIG
from rich.console import Console
from rich.table import Table

from edgekit.checkpoint import read_config, write_checkpoint
from edgekit.distill.chunks import BATCH_TOKENS
from edgekit.distill.collect import chunk_bounds, run_chunk
from edgekit.distill.loading import load_model
from edgekit.distill.open_model import OpenModel, open_model
from edgekit.distill.statistics import Statistics, add_up, save_whole
from edgekit.sequences import TokenSequence, equal_length_runs, stacked

SHAPE = {**CONFIG, "num_hidden_layers": 2, "vocab_size": 2048}
DOMAINS = ("chat", "code", "prose", "chinese")


def make_model(directory: Path) -> None:
    """Random weights of a real shape."""
    rng = np.random.default_rng(0)

    def tensor(spec: object) -> np.ndarray:
        shape = spec.shape  # type: ignore[attr-defined]
        values = rng.standard_normal(shape, np.float32)
        values *= 0.02
        return values + 1 if len(shape) == 1 else values

    write_checkpoint(directory, SHAPE, tensor)


def measuring(opened: OpenModel, text: list[TokenSequence]) -> Callable[[], None]:
    """The pass, files included."""

    def run() -> None:
        chunks = chunk_bounds(text)
        with tempfile.TemporaryDirectory() as scratch:
            files = [Path(scratch) / f"{n}.safetensors" for n in range(len(chunks))]
            for number, file in enumerate(files):
                save_whole(run_chunk(opened, "", text, chunks, number), file)
            add_up(Statistics.load(file) for file in files)

    return run


def running(decoder: Callable[..., object], text: list[TokenSequence]) -> Callable[[], None]:
    """The forward alone."""

    @torch.inference_mode()
    def run() -> None:
        for begin, end in equal_length_runs(text, BATCH_TOKENS):
            ids = torch.from_numpy(stacked(text[begin:end]))
            decoder(input_ids=ids, use_cache=False)

    return run


def main() -> None:
    """Measure in turn, print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as directory:
        model = arguments.model or Path(directory)
        if not arguments.model:
            make_model(model)
        vocabulary = read_config(model)["vocab_size"]
        rng = np.random.default_rng(1)
        text = [
            TokenSequence(
                rng.integers(3, vocabulary, arguments.length).astype(np.int32),
                DOMAINS[i % 4],
                False,
            )
            for i in range(-(-arguments.tokens // arguments.length))
        ]
        seconds: dict[str, list[float]] = {}
        with open_model(model) as opened:
            loaded = load_model(model)
            ways = {
                "measuring": measuring(opened, text),
                "edgekit's mixtures": running(opened.decoder, text),
                "transformers, eager": running(loaded.model, text),
            }
            for run in ways.values():
                run()  # what is made once
            for _ in range(arguments.rounds):
                for name in random.sample(list(ways), len(ways)):
                    begin = time.perf_counter()
                    ways[name]()
                    seconds.setdefault(name, []).append(time.perf_counter() - begin)
    show(seconds, len(text) * arguments.length, arguments.threads)
    if arguments.json:
        arguments.json.write_text(json.dumps(seconds, indent=1) + "\n", encoding="utf-8")


def show(seconds: dict[str, list[float]], tokens: int, threads: int) -> None:
    """The table."""
    table = Table(title=f"{tokens} tokens, {threads} threads, {len(seconds['measuring'])} rounds")
    for column in ("", "seconds", "measuring is"):
        table.add_column(column)
    for name, values in seconds.items():
        ratios = [m / v for m, v in zip(seconds["measuring"], values, strict=True)]
        spread = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}) times"
        table.add_row(name, f"{statistics.median(values):.2f}", spread)
    Console(width=100).print(table)


if __name__ == "__main__":
    main()
