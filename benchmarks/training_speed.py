"""Tokens per second and memory of training students of 0.1 to 3 billion weights on this machine.

    python benchmarks/training_speed.py [--sizes 0.1,0.5,1,3] [--threads N] [--work DIR]
        [--json FILE]

Random weights of the shapes of SmolLM2-135M, Qwen2.5-0.5B, Llama-3.2-1B and Qwen2.5-3B learn random
draws on random text: nothing here is about quality. Five ways each: all weights with AdamW, with
matrix products in float32 and in bfloat16; adapters of rank 16 beside attention and feed-forwards,
in both; and in bfloat16 with layers computed twice (``activation_checkpointing``). A way is a
process of its own; its first step is not timed, and the others are what ``edgekit distill train``
does, 512 tokens a step in sequences of 256: the median and the range. What edgekit's own estimate
says does not fit is not run, and the estimate is shown. Memory is the peak of the resident set.
Linux only; needs disk for the largest of the checkpoints (2 bytes a weight).
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from any_size import write_random_checkpoint
from reap_peer import memory
from rich.console import Console
from rich.table import Table

from edgekit.describe import describe
from edgekit.distill.open_model import open_model
from edgekit.distill.pass_memory import free_memory
from edgekit.distill.targets import SampledTargets
from edgekit.distill.trainer import Trainer
from edgekit.distill.training_memory import training_needs
from edgekit.progress import Silent
from edgekit.recipe import DistillSection
from edgekit.sequences import TokenSequence

COMMON: dict[str, Any] = {"tie_word_embeddings": True, "dtype": "bfloat16", "rms_norm_eps": 1e-5,
                          "max_position_embeddings": 4096, "rope_theta": 10_000.0}  # fmt: skip
LLAMA = {**COMMON, "model_type": "llama", "architectures": ["LlamaForCausalLM"]}
QWEN = {**COMMON, "model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"]}
NAMES = ("hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
         "intermediate_size", "vocab_size")  # fmt: skip
SHAPES: dict[str, dict[str, Any]] = {
    "0.1": {**LLAMA, **dict(zip(NAMES, (576, 30, 9, 3, 1536, 49_152), strict=True))},
    "0.5": {**QWEN, **dict(zip(NAMES, (896, 24, 14, 2, 4864, 151_936), strict=True))},
    "1": {**LLAMA, **dict(zip(NAMES, (2048, 16, 32, 8, 8192, 128_256), strict=True))},
    "3": {**QWEN, **dict(zip(NAMES, (2048, 36, 16, 2, 11_008, 151_936), strict=True))},
}
LENGTH, SEQUENCES, DRAWN = 256, 64, 12
STEP_TOKENS = 512
STEPS = 4  # the first of which is not timed
ADAPTERS: dict[str, Any] = {"trainable": ("attention", "mlp"), "lora_rank": 16}
EXACT, HALF = {"precision": "float32"}, {"precision": "bfloat16"}
WAYS: dict[str, dict[str, Any]] = {
    "all weights": {"trainable": ("all",), **EXACT},
    "all weights, bfloat16": {"trainable": ("all",), **HALF},
    "adapters": {**ADAPTERS, **EXACT},
    "adapters, bfloat16": {**ADAPTERS, **HALF},
    "adapters, bfloat16, layers twice": {**ADAPTERS, **HALF, "activation_checkpointing": True},
}


@dataclass(frozen=True)
class RandomTargets:
    """Random text, and random draws at every position of it."""

    sequences: list[TokenSequence]
    vocab_size: int

    def targets(self, number: int) -> SampledTargets:
        """Draws for sequence ``number``."""
        draw = torch.Generator().manual_seed(number)
        ids = torch.randint(self.vocab_size, (LENGTH, DRAWN), generator=draw)
        return SampledTargets.equal(ids, torch.zeros(LENGTH))


def measured(model: Path, way: str, threads: int) -> dict[str, Any]:
    """Train in this process: tokens per second and bytes, or the bytes that it would take."""
    torch.set_num_threads(threads)
    params = DistillSection(steps=STEPS, batch_tokens=STEP_TOKENS, **WAYS[way])
    with open_model(model, load=False) as opened:
        needs = training_needs(opened, params, LENGTH).total(params.micro_batch_tokens)
        if needs > free_memory(opened.device):
            return {"needs": needs}
        opened.load()
        vocabulary = opened.architecture.vocab_size
        draw = np.random.default_rng(0)
        text = [
            TokenSequence(draw.integers(vocabulary, size=LENGTH).astype(np.int32), "random", False)
            for _ in range(SEQUENCES)
        ]
        targets = RandomTargets(text, vocabulary)
        trainer = Trainer(opened, params, vocabulary)
        seconds = []
        for step in range(STEPS):
            before = trainer.state.seconds
            trainer.train(targets, step, step + 1, Silent())
            seconds.append(trainer.state.seconds - before)
    speeds = [STEP_TOKENS / spent for spent in seconds[1:]]
    return {"needs": needs, "speeds": speeds, "peak": memory("VmHWM")}


def in_process(model: Path, way: str, threads: int) -> dict[str, Any]:
    """The same in a process of its own."""
    command = [sys.executable, __file__, "--measure", way, "--work", str(model)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
    run = subprocess.run(
        [*command, "--threads", str(threads)], capture_output=True, text=True, env=environment
    )
    if run.returncode:
        raise SystemExit(f"{way} failed:\n{run.stderr[-3000:]}")
    found: dict[str, Any] = json.loads(run.stdout)
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", default=",".join(SHAPES))
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--work", type=Path)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--measure", choices=WAYS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measured(arguments.work, arguments.measure, arguments.threads)))
        return
    table = Table(title=f"{arguments.threads} threads, {os.cpu_count()} cores")
    for head in ("weights", "trained", "tokens/s", "a million tokens", "GB", "GB, estimated"):
        table.add_column(head)
    figures = []
    for size in arguments.sizes.split(","):
        shape = SHAPES[size]
        weights = describe(shape).parameters()
        with tempfile.TemporaryDirectory(dir=arguments.work) as directory:
            model = Path(directory) / "student"
            model.mkdir()
            # a little less, or rounding would add a layer
            write_random_checkpoint(model, 2e-9 * weights * (1 - 1e-9), shape)
            for way in WAYS:
                found = in_process(model, way, arguments.threads)
                figures.append({"weights": weights, "way": way, **found})
                table.add_row(f"{weights / 1e9:.2f} B", way, *_shown(found))
            shutil.rmtree(model)
    Console(width=100).print(table)
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


def _shown(found: dict[str, Any]) -> tuple[str, ...]:
    needs = f"{found['needs'] / 1e9:.1f}"
    if "speeds" not in found:
        return "does not fit", "", "", needs
    speeds = found["speeds"]
    speed = statistics.median(speeds)
    shown = f"{speed:.3g} ({min(speeds):.3g} to {max(speeds):.3g})"
    return shown, f"{1e6 / speed / 3600:.1f} h", f"{found['peak'] / 1e9:.1f}", needs


if __name__ == "__main__":
    main()
