"""Memory, disk and time of shrinking a checkpoint that is larger than one would load.

    python benchmarks/shrink_memory.py [--gigabytes 8] [--tokens 4096] [--work DIR] [--json FILE]

Writes a sharded bfloat16 sparse checkpoint of random weights (32 experts of 2048 x 768, as many
layers as it takes), then runs ``edgekit shrink stats`` and ``edgekit shrink --keep 0.5``, both with
``--streamed``, each as a process of its own over a cold page cache. Reports the peak of the
resident set, file pages included, against the checkpoint, and the most disk in use at once. The
text is drawn from the tokenizer's letters: nothing here is about quality. Needs disk for twice the
checkpoint.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import tempfile
from dataclasses import asdict
from pathlib import Path

from any_size import CONFIG, Step, measure, write_random_checkpoint
from rich.console import Console
from rich.table import Table

SHAPE = {**CONFIG, "num_experts": 32, "num_experts_per_tok": 4, "vocab_size": 32_000}
LENGTH = 256  # tokens of a sequence


def write_text(path: Path, tokens: int) -> None:
    """Documents of one sequence each, a token a letter."""
    draw = random.Random(0)
    with path.open("w", encoding="utf-8") as file:
        for _ in range(2 * tokens // LENGTH):
            letters = "".join(draw.choices("abcdefghijklmnopqrstuvwxyz", k=LENGTH))
            file.write(json.dumps({"text": letters}) + "\n")


def run(model: Path, tokens: int, root: Path) -> list[Step]:
    """Measure the experts, then write half of them."""
    text, outputs = root / "letters.jsonl", root / "outputs"
    outputs.mkdir()
    write_text(text, tokens)
    statistics = outputs / "statistics"
    options = ["--data", str(text), "--tokens", str(tokens), "--held-out-tokens", str(LENGTH),
               "--sequence-length", str(LENGTH)]  # fmt: skip
    first = measure("shrink stats", [*options, "--streamed", "--out", str(statistics)], model,
                    outputs)  # fmt: skip
    keep = [
        "--statistics",
        str(statistics),
        "--keep",
        "0.5",
        "--streamed",
        "--out",
        str(outputs / "half"),
    ]
    return [first, measure("shrink", keep, model, outputs)]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else "")
    parser.add_argument("--gigabytes", type=float, default=8)
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--work", type=Path, help="a directory on the disk to measure")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    arguments = parser.parse_args()
    if arguments.work:
        Path(arguments.work).mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=arguments.work) as directory:
        root = Path(directory)
        model = root / "checkpoint"
        model.mkdir()
        write_random_checkpoint(model, arguments.gigabytes, SHAPE)
        size = sum(p.stat().st_size for p in model.glob("*.safetensors"))
        steps = run(model, arguments.tokens, root)
    title = f"{size / 1e9:.1f} GB, {arguments.tokens} tokens, {os.cpu_count()} cores"
    table = Table(title=title, title_justify="left")
    table.add_column("")
    for column in ("seconds", "peak MB", "of it not files", "peak / checkpoint", "disk MB"):
        table.add_column(column, justify="right")
    for step in steps:
        table.add_row(
            step.name, f"{step.seconds:.1f}", f"{step.peak_memory_bytes / 1e6:.0f}",
            f"{step.anonymous_bytes / 1e6:.0f}", f"{step.peak_memory_bytes / size:.3f}",
            f"{step.peak_disk_bytes / 1e6:.0f}",
        )  # fmt: skip
    Console(width=100).print(table)
    if arguments.json:
        values = {"checkpoint_bytes": size, "steps": [asdict(step) for step in steps]}
        arguments.json.write_text(json.dumps(values, indent=2) + "\n")


if __name__ == "__main__":
    main()
