"""Shrinking in miniature: what pruning, merging, quantizing and densifying cost, in minutes.

    python benchmarks/miniature.py [--steps 3000] [--seeds 3] [--only E1 E2 E5 E6] [--json FILE]

Trains a byte-level sparse model of a million parameters per seed (``miniature_teacher.py``) and
shrinks it with edgekit's own functions (``miniature_experiments.py``). Every figure is KL to the
teacher in nats per byte on held-out text, the mean over the seeds with their range: on one thread,
about ten minutes a seed. ``--teachers DIR`` keeps the teachers for another run.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import tempfile
from dataclasses import asdict
from pathlib import Path

import torch
from miniature_corpus import Corpus, read_corpus
from miniature_experiments import EXPERIMENTS, Row, miniature
from miniature_teacher import train_teacher

from edgekit.atomic import atomic_directory
from edgekit.progress import default_progress

Results = dict[tuple[str, str, str], list[float]]  # experiment, setting, method -> KL by seed
TITLES = {
    "prune or merge": "Prune or merge (of 16 experts)",
    "heal": "Heal a student of 8 experts",
    "quantize or prune": "Quantize or prune (groups of 32)",
    "sparse to dense": "Sparse to dense",
}


def teacher(directory: Path, corpus: Corpus, steps: int, seed: int) -> Path:
    """The teacher of a seed, trained unless it is there."""
    path = directory / f"{steps}-steps-seed-{seed}"
    if not path.is_dir():
        with atomic_directory(path) as made:
            entropy = train_teacher(made, corpus, steps, seed, default_progress())
        print(f"seed {seed}: held-out cross-entropy {entropy:.3f} nats per byte", flush=True)
    return path


def table(results: Results, experiment: str) -> str:
    """Markdown: methods in rows, settings in columns."""
    mine = {key[1:]: values for key, values in results.items() if key[0] == experiment}
    settings = list(dict.fromkeys(setting for setting, _ in mine))
    methods = list(dict.fromkeys(method for _, method in mine))
    lines = [f"| {TITLES[experiment]} | {' | '.join(settings)} |"]
    lines.append("|---" * (len(settings) + 1) + "|")
    for method in methods:
        cells = [_cell(mine.get((setting, method))) for setting in settings]
        lines.append(f"| {method} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(values: list[float] | None) -> str:
    if not values:
        return ""
    mean = f"{statistics.mean(values):.3f}"
    if len(values) == 1:
        return mean
    return f"{mean} ({min(values):.3f} to {max(values):.3f})"


def main() -> None:
    """Train, shrink, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=3000, help="of the teachers' training")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", nargs="+", choices=EXPERIMENTS, default=list(EXPERIMENTS))
    parser.add_argument("--teachers", type=Path)
    parser.add_argument("--json", type=Path, help="write every figure of every seed there")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    corpus = read_corpus()
    rows: list[tuple[int, Row]] = []
    with (
        tempfile.TemporaryDirectory() as scratch,
        default_progress().task(
            "shrink the miniatures", arguments.seeds * len(arguments.only)
        ) as task,
    ):
        for seed in range(arguments.seeds):
            directory = arguments.teachers or Path(scratch)
            made = teacher(directory, corpus, arguments.steps, seed)
            with miniature(made, corpus) as opened:
                for name in arguments.only:
                    rows += [(seed, row) for row in EXPERIMENTS[name](opened)]
                    task.advance()
    results: Results = {}
    for _, row in rows:
        results.setdefault((row.experiment, row.setting, row.method), []).append(row.kl)
    print(f"\nteachers of {arguments.steps} steps, {arguments.seeds} seeds, "
          f"{platform.machine()}, torch {torch.__version__}, one thread")  # fmt: skip
    for experiment in dict.fromkeys(row.experiment for _, row in rows):
        print("\n" + table(results, experiment))
    if arguments.json:
        values = [{"seed": seed, **asdict(row)} for seed, row in rows]
        arguments.json.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
