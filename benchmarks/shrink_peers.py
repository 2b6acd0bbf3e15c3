"""Time and memory of measuring experts, beside the usual script and llmcompressor's REAP.

    python benchmarks/shrink_peers.py [--rounds 5] [--peer-env DIR] [--model DIR --sequences FILE]

All choose half of the experts of one model by REAP on the same tokens, with as many sequences in a
forward as edgekit's pass has; the keep-sets are compared.
Without ``--model`` the model is the miniature after 600 steps. Each round runs every way in
shuffled order, each in a process of its own on one thread; the model is loaded before the clock
starts. Ratios are to edgekit in the same round: median and range. Memory is the peak of the pass
above what the process held before it. "plain forward" is the model without measuring anything, in
edgekit's mixtures and in transformers' own experts.

llmcompressor wants another transformers than edgekit, so it lives in a virtual environment of its
own, which ``--peer-env`` names and which is made if it is not there (1.5 GB). Linux only.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from peer_env import make_peer_env
from rich.console import Console
from rich.table import Table

HERE = Path(__file__).parent
PEER_PACKAGES = (f"torch=={torch.__version__.partition('+')[0]}", "llmcompressor==0.14.0.1")
STEPS, WINDOWS = 600, 64  # of the miniature; sequences per domain
PEER = "llmcompressor"


def measure_edgekit(model: Path, ids: NDArray[np.int64]) -> tuple[Callable[[], Any], int]:
    """The pass as ``collect`` runs it, its files written and added up, and the choice by REAP."""
    from edgekit.distill import collect
    from edgekit.distill.criteria import scores
    from edgekit.distill.open_model import OpenModel
    from edgekit.distill.statistics import Statistics, add_up
    from edgekit.sequences import TokenSequence

    text = [TokenSequence(row.astype(np.int32), "all", False) for row in ids]
    opened = OpenModel(_checkpoint(model), torch.float32, "cpu")
    opened.load()

    def run() -> Any:
        chunks = collect.chunk_bounds(text)
        with tempfile.TemporaryDirectory() as scratch:
            files = [Path(scratch) / f"{n}.safetensors" for n in range(len(chunks))]
            for number, file in enumerate(files):
                collect.run_chunk(opened, "", text, chunks, number).save(file)
            return scores(add_up([Statistics.load(file) for file in files]), "reap")

    return run, opened.architecture.moe.num_experts  # type: ignore[union-attr]


def _checkpoint(model: Path) -> Any:
    from edgekit.checkpoint import Checkpoint

    return Checkpoint(model)


def batch_size(ids: NDArray[np.int64]) -> int:
    """Sequences of one forward in edgekit's pass."""
    from edgekit.distill.chunks import BATCH_TOKENS

    return max(1, BATCH_TOKENS // ids.shape[1])


def measure_usual(model: Path, ids: NDArray[np.int64]) -> tuple[Callable[[], Any], int]:
    """The usual script."""
    import usual_script

    loaded = usual_script.load(model)
    experts = len(loaded.model.layers[-1].mlp.experts.gate_up_proj)
    return lambda: usual_script.saliencies(loaded, ids, batch_size(ids)), experts


def measure_forward(model: Path, ids: NDArray[np.int64]) -> tuple[Callable[[], Any], int]:
    """The plain forward through edgekit's mixtures."""
    from edgekit.distill.open_model import OpenModel

    opened = OpenModel(_checkpoint(model), torch.float32, "cpu")
    opened.load()
    return lambda: _forward(opened.decoder, ids), 0


def measure_transformers(model: Path, ids: NDArray[np.int64]) -> tuple[Callable[[], Any], int]:
    """The plain forward of transformers."""
    import usual_script

    loaded = usual_script.load(model)
    return lambda: _forward(loaded.model, ids), 0


@torch.inference_mode()
def _forward(decoder: Any, ids: NDArray[np.int64]) -> None:
    batch = batch_size(ids)
    for begin in range(0, len(ids), batch):
        decoder(input_ids=torch.from_numpy(ids[begin : begin + batch]), use_cache=False)


WAYS = {
    "edgekit": measure_edgekit,
    "usual script": measure_usual,
    "plain forward": measure_forward,
    "plain forward, transformers": measure_transformers,
}


def measure(way: str, model: Path, ids_file: Path, keep: int, result: Path) -> None:
    """One way in this process; writes keep-set, seconds and memory as JSON."""
    from reap_peer import memory
    from usual_script import keep_set

    torch.set_num_threads(1)
    ids = np.load(ids_file)
    run, experts = WAYS[way](model, ids)
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak begins here
    before = memory("VmRSS")
    begin = time.perf_counter()
    saliency = run()
    seconds = time.perf_counter() - begin
    values = {
        "seconds": seconds,
        "growth": memory("VmHWM") - before,
        "peak": memory("VmHWM"),
        "kept": keep_set(saliency, keep) if experts else None,
    }
    result.write_text(json.dumps(values), encoding="utf-8")


def in_process(way: str, job: tuple[Path, Path, int], peer_env: Path | None) -> dict[str, Any]:
    """One way in a process of its own."""
    model, ids, keep = job
    with tempfile.TemporaryDirectory() as scratch:
        result = Path(scratch) / "result.json"
        if way == PEER:
            assert peer_env is not None
            command = [str(peer_env / "bin" / "python"), str(HERE / "reap_peer.py")]
            batch = batch_size(np.load(ids))
            arguments = [str(model), str(ids), str(keep), str(batch), str(result)]
        else:
            command = [sys.executable, __file__, "--measure", way]
            arguments = ["--job", str(model), str(ids), str(keep), str(result)]
        environment = {**os.environ, "PYTHONPATH": str(HERE.parent), "OMP_NUM_THREADS": "1"}
        if way == PEER:
            del environment["PYTHONPATH"]
        run = subprocess.run(
            command + arguments, capture_output=True, text=True, env=environment, cwd=scratch
        )
        if run.returncode:
            raise SystemExit(f"{way} failed:\n{run.stderr[-3000:]}")
        return dict(json.loads(result.read_text(encoding="utf-8")))


def prepare(arguments: argparse.Namespace, scratch: Path) -> tuple[Path, Path, int]:
    """The model, the token ids and how many experts to keep."""
    from miniature_corpus import read_corpus
    from miniature_teacher import train_teacher

    from edgekit.checkpoint import read_config
    from edgekit.describe import describe
    from edgekit.progress import default_progress
    from edgekit.sequences import read_sequences

    if arguments.model:
        model = arguments.model.resolve()
        text = [s for s in read_sequences(arguments.sequences) if not s.held_out]
    else:
        model = scratch / "miniature"
        model.mkdir()
        corpus = read_corpus()
        train_teacher(model, corpus, STEPS, 0, default_progress())
        text = corpus.windows(WINDOWS, 5)
    ids = scratch / "ids.npy"
    np.save(ids, np.stack([s.tokens for s in text]).astype(np.int64))
    moe = describe(read_config(model)).moe
    assert moe is not None
    return model, ids, moe.num_experts // 2


def show(results: dict[str, list[dict[str, Any]]], title: str) -> None:
    """The table."""
    table = Table(title=title)
    for column in ("", "seconds", "time / edgekit's", "MB", "memory / edgekit's", "keep-set"):
        table.add_column(column)
    ours = results["edgekit"]
    for way, rows in results.items():
        cells = []
        for key, unit in (("seconds", 1), ("growth", 1e6)):
            ratios = [r[key] / o[key] for r, o in zip(rows, ours, strict=True)]
            cells += [
                f"{statistics.median(r[key] for r in rows) / unit:.2f}",
                f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})",
            ]
        table.add_row(way, *cells, agreement(rows[0]["kept"], ours[0]["kept"]))
    Console(width=120).print(table)


def agreement(kept: list[list[int]] | None, ours: list[list[int]]) -> str:
    """How much of edgekit's keep-set another has."""
    if kept is None:
        return ""
    common = sum(len(set(a) & set(b)) for a, b in zip(kept, ours, strict=True))
    total = sum(len(row) for row in ours)
    return "the same" if common == total else f"{common} of {total} experts"


def main() -> None:
    """Measure in turn, print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--peer-env", type=Path)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--sequences", type=Path, help="of the model, sequences.safetensors")
    parser.add_argument("--json", type=Path, help="write every measurement there")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    parser.add_argument("--job", nargs=4, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        model, ids, keep, result = arguments.job
        measure(arguments.measure, Path(model), Path(ids), int(keep), Path(result))
        return
    ways = list(WAYS)
    if arguments.peer_env:
        make_peer_env(arguments.peer_env, PEER_PACKAGES)
        ways.append(PEER)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as directory:
        job = prepare(arguments, Path(directory))
        results: dict[str, list[dict[str, Any]]] = {way: [] for way in ways}
        for _ in range(arguments.rounds):
            for way in random.sample(ways, len(ways)):
                peer_env = arguments.peer_env and arguments.peer_env.resolve()
                results[way].append(in_process(way, job, peer_env))
        tokens = np.load(job[1]).size
    ours = {name: importlib.metadata.version(name) for name in ("torch", "transformers")}
    print(f"{platform.processor() or platform.machine()}, one thread; {ours}")
    if PEER in results:
        print(f"{PEER}'s environment: {results[PEER][0]['versions']}")
    name = arguments.model.name if arguments.model else f"the miniature, {STEPS} steps"
    show(results, f"half of the experts of {name} by REAP, {tokens} tokens")
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
