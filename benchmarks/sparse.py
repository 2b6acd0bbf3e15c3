"""Whether decode time of a sparse model follows its active parameters, on both runtimes.

    python benchmarks/sparse.py [--experts 32] [--rounds 7]

Two random Qwen3-MoE models of one shape (8 layers, width 1,024, experts of 512, top-4), one with 4
experts and one with many: a token costs both the same active parameters. int4 in groups of 128.
Each round measures every pair of model and runtime in shuffled order, each in a process of its own;
reported is the ratio many / few per round, median and range. 1 is ideal: total size costs nothing.
A third column runs the other tokens' way, a prompt of 256 tokens, where more experts are touched.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from edgekit.checkpoint import write_checkpoint
from edgekit.progress import Silent
from edgekit.quantize.write import quantize
from edgekit.runtimes.compile import compile_variant
from edgekit.scheme import Scheme

TARGETS = ("openvino-cpu", "onnx-cpu")
FEW, TOP_K, TOKENS, PROMPT = 4, 4, 48, 256


def config(experts: int) -> dict[str, object]:
    """A Qwen3-MoE of ``experts`` experts per layer."""
    return {
        "model_type": "qwen3_moe", "architectures": ["Qwen3MoeForCausalLM"], "vocab_size": 32768,
        "hidden_size": 1024, "intermediate_size": 2048, "moe_intermediate_size": 512,
        "num_hidden_layers": 8, "num_attention_heads": 16, "num_key_value_heads": 4,
        "head_dim": 64, "num_experts": experts, "num_experts_per_tok": TOP_K,
        "norm_topk_prob": True, "tie_word_embeddings": True, "max_position_embeddings": 4096,
        "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2,
    }  # fmt: skip


def build(directory: Path, experts: int) -> None:
    """A compiled variant with random weights and a tokenizer."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
    from tiny_models import write_tokenizer

    rng = np.random.default_rng(0)
    source, packed = directory / "source", directory / "packed"
    for made in (source, packed, directory / "variant"):
        made.mkdir(parents=True)
    write_checkpoint(
        source, config(experts),
        lambda spec: rng.normal(0, 0.02, spec.shape).astype(np.float32) + (spec.role == "norm"),
    )  # fmt: skip
    write_tokenizer(source)
    quantize(source, Scheme.parse("int4-g128"), packed, Silent(), "rtn")
    compile_variant(packed, TARGETS, directory / "variant", Silent())


def measure(variant: Path, target: str) -> dict[str, float]:
    """Decode tokens/s (median of three runs) and seconds of a long prompt, after a warm-up."""
    from edgekit.runtimes.engine import Sampling, load_engine

    engine = load_engine(variant, target)
    rng = np.random.default_rng(1)
    sampling = Sampling(max_tokens=TOKENS, temperature=0, repetition_penalty=1.0, ignore_end=True)
    rates, prompts = [], []
    for run in range(4):
        short, long = (rng.integers(3, 500, n).tolist() for n in (16, PROMPT))
        stats = list(engine.generate_tokens(short, sampling))[-1].stats
        begin = time.perf_counter()
        engine.logits(long)
        if run:
            rates.append(stats.tokens_per_second)
            prompts.append(time.perf_counter() - begin)
    return {"decode": statistics.median(rates), "prompt": statistics.median(prompts)}


def in_process(variant: Path, target: str) -> dict[str, float]:
    """:func:`measure` in a process of its own."""
    command = [sys.executable, __file__, "--measure", str(variant), target]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    run = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    return dict(json.loads(run.stdout.splitlines()[-1]))


def show(results: dict[tuple[str, str], list[dict[str, float]]], experts: int) -> None:
    """The table of speeds and ratios."""
    table = Table(title=f"{experts} experts beside {FEW}, top-{TOP_K}, int4-g128")
    for column in ("", f"{FEW} experts, tokens/s", f"{experts} experts, tokens/s",
                   "ratio per round", f"prompt of {PROMPT}, ms"):  # fmt: skip
        table.add_column(column)
    for target in TARGETS:
        few, many = results[target, "few"], results[target, "many"]
        ratios = [m["decode"] / f["decode"] for f, m in zip(few, many, strict=True)]
        medians = [statistics.median(r["decode"] for r in rows) for rows in (few, many)]
        prompts = [1000 * statistics.median(r["prompt"] for r in rows) for rows in (few, many)]
        table.add_row(
            target, *(f"{m:.1f}" for m in medians),
            f"{statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})",
            " and ".join(f"{p:.0f}" for p in prompts),
        )  # fmt: skip
    Console(width=100).print(table)


def main() -> None:
    """Build both models, measure in turn, print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--experts", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measure(Path(arguments.measure[0]), arguments.measure[1])))
        return
    with tempfile.TemporaryDirectory() as scratch:
        sizes = {"few": FEW, "many": arguments.experts}
        for name, experts in sizes.items():
            build(Path(scratch) / name, experts)
        jobs = [(target, name) for target in TARGETS for name in sizes]
        results: dict[tuple[str, str], list[dict[str, float]]] = {job: [] for job in jobs}
        for _ in range(arguments.rounds):
            for target, name in random.sample(jobs, len(jobs)):
                variant = Path(scratch) / name / "variant"
                results[target, name].append(in_process(variant, target))
        show(results, arguments.experts)


if __name__ == "__main__":
    main()
