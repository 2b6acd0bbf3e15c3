"""Training tokens per second and memory, beside TRL's GKD trainer and a plain loop.

    python benchmarks/distill_peers.py TEACHER STUDENT SEQUENCES [--peer-env DIR] [--rounds 3]

TEACHER and STUDENT are checkpoints with one tokenizer, SEQUENCES the directory of a build's step
"data". All ways train every weight of the student by forward KL on the same sequences of one length
with AdamW in float32, as many tokens a step, each in a process and an order of its own. With
``--precision bfloat16`` all students multiply in it, and the peers' teacher is kept in it. The
first step is not timed. edgekit reads a cache of sampled targets, made beforehand; the plain loop
and TRL run the teacher in every step. What making the cache costs, once, is printed beside it, and
after how many passes over the text it is paid.
Ratios are to edgekit in the same round: median and range. Memory is the peak of the resident set.

TRL (``trl_peer.py``) lives in an environment of its own, which ``--peer-env`` names and which is
made if it is not there. Linux only.
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
from typing import Any

import numpy as np
import torch
from peer_env import make_peer_env
from rich.console import Console
from rich.table import Table

HERE = Path(__file__).parent
TORCH = torch.__version__.partition("+")[0]
PEER_PACKAGES = (f"torch=={TORCH}", "transformers==5.5.0", "trl==1.16.0")
EDGEKIT, PLAIN, TRL = "edgekit, from a cache", "plain loop, full logits", "TRL GKD, full logits"
RATE = 1e-4


def train_edgekit(work: Path, job: dict[str, Any]) -> list[float]:
    """Seconds of every step."""
    from edgekit.distill.cache import LogitCache
    from edgekit.distill.open_model import open_model
    from edgekit.distill.trainer import Trainer
    from edgekit.progress import Silent
    from edgekit.recipe import DistillSection

    cache = LogitCache(work / "cache")
    params = DistillSection(
        steps=job["steps"], batch_tokens=job["batch"] * job["length"], learning_rate=RATE,
        micro_batch_tokens=job["micro"] * job["length"], trainable=("all",),
        precision=job["precision"],
    )  # fmt: skip
    seconds = []
    with open_model(Path(job["student"])) as opened:
        trainer = Trainer(opened, params, cache.vocab_size)
        for step in range(job["steps"]):
            begin = time.perf_counter()
            trainer.train(cache, step, step + 1, Silent())
            seconds.append(time.perf_counter() - begin)
    return seconds


def train_plain(work: Path, job: dict[str, Any]) -> list[float]:
    """Both models in memory, the whole distribution of every position."""
    from peer_models import teacher_and_student

    teacher, student = teacher_and_student(job)
    teacher.requires_grad_(False)
    student.train()
    optimizer = torch.optim.AdamW(student.parameters(), lr=RATE, weight_decay=0.0)
    ids = torch.from_numpy(np.load(work / "ids.npy"))
    seconds, size, micro = [], job["batch"], job["micro"]
    for step in range(job["steps"]):
        begin = time.perf_counter()
        rows = ids[[(step * size + i) % len(ids) for i in range(size)]]
        for part in rows.split(micro):
            with torch.no_grad():
                taught = teacher(input_ids=part, use_cache=False).logits
            with torch.autocast("cpu", torch.bfloat16, enabled=job["precision"] == "bfloat16"):
                learned = student(input_ids=part, use_cache=False).logits
            taught, learned = (t.float().log_softmax(-1) for t in (taught, learned))
            loss = torch.nn.functional.kl_div(learned, taught, log_target=True, reduction="sum")
            (loss / rows.numel()).backward()
        torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        seconds.append(time.perf_counter() - begin)
    return seconds


WAYS = {EDGEKIT: train_edgekit, PLAIN: train_plain}


def in_process(way: str, work: Path, job: dict[str, Any], peer: Path | None) -> dict[str, Any]:
    """One way in a process of its own: tokens per second and bytes."""
    result = work / "result.json"
    environment = {**os.environ, "OMP_NUM_THREADS": str(job["threads"])}
    if way == TRL:
        command = [str(peer / "bin" / "python") if peer else "", str(HERE / "trl_peer.py")]
        environment.pop("PYTHONPATH", None)
    else:
        command = [sys.executable, __file__, "--measure", way]
        environment["PYTHONPATH"] = str(HERE.parent)
    command += ["--work", str(work)]
    run = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=work)
    if run.returncode:
        raise SystemExit(f"{way} failed:\n{run.stderr[-3000:]}")
    found = json.loads(result.read_text(encoding="utf-8"))
    timed = found["seconds"][1:]
    tokens = job["batch"] * job["length"] * len(timed)
    return {"speed": tokens / sum(timed), "peak": found["peak"]}


def measured(way: str, work: Path) -> None:
    """Train in this process and write what it took."""
    from reap_peer import memory

    job = json.loads((work / "job.json").read_text(encoding="utf-8"))
    torch.set_num_threads(job["threads"])
    torch.manual_seed(0)
    seconds = WAYS[way](work, job)
    values = {"seconds": seconds, "peak": memory("VmHWM")}
    (work / "result.json").write_text(json.dumps(values), encoding="utf-8")


def prepare(arguments: argparse.Namespace, work: Path) -> tuple[dict[str, Any], float, float]:
    """The text of one length and its cache; the job, seconds and bytes per token of capturing."""
    from edgekit.distill.capture import CaptureOptions, capture
    from edgekit.progress import default_progress
    from edgekit.sequences import FILE_NAME, read_sequences, write_sequences

    text = [s for s in read_sequences(arguments.sequences / FILE_NAME) if not s.held_out]
    length = arguments.length
    text = [s for s in text if len(s.tokens) == length]
    if len(text) < arguments.batch:
        raise SystemExit(f"only {len(text)} sequences have {length} tokens; give another --length")
    (work / "text").mkdir()
    (work / "cache").mkdir()
    write_sequences(work / "text" / FILE_NAME, text)
    np.save(work / "ids.npy", np.stack([s.tokens for s in text]).astype(np.int64))
    begin = time.perf_counter()
    report = capture(
        arguments.teacher, work / "text", CaptureOptions(), work / "cache", default_progress()
    )
    seconds = time.perf_counter() - begin
    job = {
        "teacher": str(arguments.teacher.resolve()), "student": str(arguments.student.resolve()),
        "steps": arguments.steps, "batch": arguments.batch, "micro": arguments.micro,
        "length": length, "threads": arguments.threads, "precision": arguments.precision,
    }  # fmt: skip
    (work / "job.json").write_text(json.dumps(job), encoding="utf-8")
    return job, seconds / report.positions, report.bytes_per_token


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("teacher", type=Path, nargs="?")
    parser.add_argument("student", type=Path, nargs="?")
    parser.add_argument("sequences", type=Path, nargs="?")
    parser.add_argument("--peer-env", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--batch", type=int, default=4, help="sequences of a step")
    parser.add_argument("--micro", type=int, default=4, help="of which at once")
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--measure", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        measured(arguments.measure, arguments.work)
        return
    ways = [*WAYS, *([TRL] if arguments.peer_env else [])]
    if arguments.peer_env:
        make_peer_env(arguments.peer_env.resolve(), PEER_PACKAGES)
    rounds: list[dict[str, dict[str, Any]]] = []
    with tempfile.TemporaryDirectory() as scratch:
        work = Path(scratch)
        job, capture_seconds, size = prepare(arguments, work)
        peer = arguments.peer_env.resolve() if arguments.peer_env else None
        for number in range(arguments.rounds):
            order = random.Random(number).sample(ways, len(ways))
            rounds.append({way: in_process(way, work, job, peer) for way in order})
    show(ways, rounds, job)
    print(
        f"the cache: {size:.1f} bytes per token, made once at {1 / capture_seconds:,.0f} tokens/s"
    )
    own = statistics.median(1 / r[EDGEKIT]["speed"] for r in rounds)
    for way in ways[1:]:
        saved = statistics.median(1 / r[way]["speed"] for r in rounds) - own
        if saved > 0:
            print(f"paid after {capture_seconds / saved:.1f} passes over the text ({way})")
    if arguments.json:
        arguments.json.write_text(json.dumps(rounds, indent=1) + "\n", encoding="utf-8")


def show(ways: list[str], rounds: list[dict[str, dict[str, Any]]], job: dict[str, Any]) -> None:
    """The table."""
    title = f"{job['batch'] * job['length']} tokens a step, {job['threads']} threads"
    table = Table(title=f"{title}, {len(rounds)} rounds")
    for head in ("", "tokens/s", "edgekit's speed / its", "GB", "its memory / edgekit's"):
        table.add_column(head)
    for way in ways:
        speed = [r[EDGEKIT]["speed"] / r[way]["speed"] for r in rounds]
        memory = [r[way]["peak"] / r[EDGEKIT]["peak"] for r in rounds]
        table.add_row(
            way, f"{statistics.median(r[way]['speed'] for r in rounds):.0f}", _spread(speed),
            f"{statistics.median(r[way]['peak'] for r in rounds) / 1e9:.2f}", _spread(memory),
        )  # fmt: skip
    Console(width=110).print(table)


def _spread(values: list[float]) -> str:
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


if __name__ == "__main__":
    main()
