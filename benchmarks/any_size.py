"""Memory, disk and speed of the conversion of a checkpoint that is larger than one would load.

    python benchmarks/any_size.py [--gigabytes 8] [--method rtn] [--work DIR] [--json FILE]
    python benchmarks/any_size.py --checkpoint DIR

Writes a sharded bfloat16 Mixture-of-Experts checkpoint of random weights (the shapes of
Qwen3-30B-A3B, fewer layers) or takes the one given, then runs ``edgekit quantize`` and ``edgekit
compile`` for both runtimes, each as a process of its own over a cold page cache. Reports, for each
and for both together: the peak of the resident set, file pages included, against the checkpoint;
seconds; gigabytes read per second against the disk's own sequential reading (and writing) of the
same run; and the most disk that was in use at once against what stays. Needs
disk for about 1.6 times the checkpoint; everything it wrote is removed at the end.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from rich.table import Table
from tokenizers import Tokenizer, models, pre_tokenizers

from edgekit.architecture import TensorSpec
from edgekit.checkpoint import INDEX
from edgekit.describe import describe
from edgekit.tensorfile import TensorFileWriter, TensorInfo, float32_to_bfloat16

CONFIG: dict[str, Any] = {
    "architectures": ["Qwen3MoeForCausalLM"],
    "model_type": "qwen3_moe",
    "vocab_size": 151_936,
    "hidden_size": 2048,
    "intermediate_size": 6144,
    "moe_intermediate_size": 768,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "head_dim": 128,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "norm_topk_prob": True,
    "max_position_embeddings": 4096,
    "rope_theta": 1_000_000.0,
    "tie_word_embeddings": False,
    "dtype": "bfloat16",
}
SHARD_BYTES = 4_000_000_000
POOL = 1 << 25  # random values that the tensors are cut from, each from another place
BLOCK = 8 << 20  # of the disk measurement
SAMPLE_SECONDS = 0.02
TARGETS = ("--target", "openvino-cpu", "--target", "onnx-cpu")


@dataclass(frozen=True)
class Step:
    """What one process cost."""

    name: str
    seconds: float
    peak_memory_bytes: int
    anonymous_bytes: int  # the part of the peak that is not pages of files; sampled
    read_bytes: int  # size of the weights it read
    peak_disk_bytes: int  # beyond what was there before; sampled
    result_bytes: int


@dataclass(frozen=True)
class Report:
    """The figures of one run."""

    scheme: str
    method: str
    cores: int
    checkpoint_bytes: int
    disk_read_bytes_per_second: float
    disk_write_bytes_per_second: float
    steps: list[Step]

    def summary(self) -> dict[str, Any]:
        """The report with the ratios that matter."""
        rows = [
            {
                **asdict(step),
                "memory_ratio": step.peak_memory_bytes / self.checkpoint_bytes,
                "read_bytes_per_second": step.read_bytes / step.seconds,
                "speed_ratio": step.read_bytes / step.seconds / self.disk_read_bytes_per_second,
                "disk_ratio": step.peak_disk_bytes / step.result_bytes,
            }
            for step in self.steps
        ]
        return {**asdict(self), "steps": rows}


def checkpoint_config(gigabytes: float, shape: dict[str, Any]) -> dict[str, Any]:
    """A config of layers of ``shape`` whose bfloat16 weights take at least ``gigabytes``."""
    one = describe({**shape, "num_hidden_layers": 1}).parameters()
    two = describe({**shape, "num_hidden_layers": 2}).parameters()
    layers = math.ceil((gigabytes * 1e9 / 2 - one) / (two - one)) + 1
    return {**shape, "num_hidden_layers": max(1, layers)}


def write_random_checkpoint(
    directory: Path, gigabytes: float, shape: dict[str, Any] = CONFIG
) -> None:
    """Write shards, index, config and a tokenizer of bytes into ``directory``."""
    config = checkpoint_config(gigabytes, shape)
    shards = list(_shards(list(describe(config).tensors())))
    values = np.random.default_rng(0).standard_normal(POOL, np.float32) * np.float32(0.02)
    pool = float32_to_bfloat16(values)
    names = [f"model-{i + 1:05}-of-{len(shards):05}.safetensors" for i in range(len(shards))]
    for number, (name, specs) in enumerate(track(list(zip(names, shards)), "checkpoint")):
        layout = [TensorInfo(s.name, "BF16", s.shape) for s in specs]
        with TensorFileWriter(directory / name, layout, {"format": "pt"}) as writer:
            for place, spec in enumerate(specs):
                start = (place * 1_000_003 + number * 7919) % POOL
                writer.write(spec.name, _cut(pool, start, spec.parameters).reshape(spec.shape))
    total = sum(2 * spec.parameters for specs in shards for spec in specs)
    weight_map = {spec.name: name for name, specs in zip(names, shards) for spec in specs}
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (directory / INDEX).write_text(json.dumps(index))
    (directory / "config.json").write_text(json.dumps(config, indent=2))
    alphabet = {c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    Tokenizer(models.BPE(alphabet, [])).save(str(directory / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "a"}
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))


def _shards(specs: list[TensorSpec]) -> Iterator[list[TensorSpec]]:
    """Tensors in the order of published checkpoints: a layer's experts one after another."""
    specs.sort(key=lambda s: (s.layer if s.layer >= 0 else math.inf, s.expert))
    shard: list[TensorSpec] = []
    for spec in specs:
        if shard and sum(2 * s.parameters for s in [*shard, spec]) > SHARD_BYTES:
            yield shard
            shard = []
        shard.append(spec)
    yield shard


def _cut(pool: NDArray[np.uint16], start: int, count: int) -> NDArray[np.uint16]:
    repeats = -(-(start + count) // len(pool))
    return np.tile(pool, repeats)[start : start + count] if repeats > 1 else pool[start:][:count]


def forget(directory: Path) -> None:
    """Drop the files of ``directory`` from the page cache."""
    for path in directory.glob("*.safetensors"):
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def read_speed(directory: Path) -> float:
    """Bytes per second of reading the weights in order from a cold page cache."""
    forget(directory)
    buffer = bytearray(BLOCK)
    total, start = 0, time.perf_counter()
    for path in sorted(directory.glob("*.safetensors")):
        with path.open("rb", buffering=0) as file:
            while count := file.readinto(buffer):
                total += count
    return total / (time.perf_counter() - start)


def write_speed(directory: Path) -> float:
    """Bytes per second of writing a gigabyte through to the disk."""
    block = np.random.default_rng(1).bytes(BLOCK)
    path, count = directory / "write-speed", 1_000_000_000 // BLOCK
    start = time.perf_counter()
    with path.open("wb", buffering=0) as file:
        for _ in range(count):
            file.write(block)
        os.fsync(file.fileno())
    seconds = time.perf_counter() - start
    path.unlink()
    return count * BLOCK / seconds


class _Watch(threading.Thread):
    """Samples a process's memory and the disk in use below ``root``.

    The peak is the kernel's own high-water mark, so a sample can miss nothing but the last moment.
    What ``wait4`` gives would begin at the peak of this process.
    """

    def __init__(self, pid: int, root: Path) -> None:
        super().__init__(daemon=True)
        self.pid, self.root = pid, root
        self.peak = self.anonymous = self.disk = 0
        self.done = threading.Event()

    def run(self) -> None:
        while not self.done.wait(SAMPLE_SECONDS):
            self.disk = max(self.disk, disk_use(self.root))
            self.peak = max(self.peak, memory_of(self.pid, "VmHWM"))
            self.anonymous = max(self.anonymous, memory_of(self.pid, "RssAnon"))


def memory_of(pid: int, field: str) -> int:
    """Bytes that ``/proc/PID/status`` gives for ``field``; 0 when the process is no more."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith(field + ":"))


def disk_use(root: Path) -> int:
    """Bytes allocated below ``root``; files come and go while it looks."""
    total = 0
    for folder, _, names in os.walk(root):
        for name in names:
            try:
                total += os.stat(os.path.join(folder, name)).st_blocks * 512  # noqa: PTH116, PTH118
            except FileNotFoundError:
                continue
    return total


def measure(name: str, arguments: list[str], source: Path, root: Path) -> Step:
    """Run ``edgekit NAME SOURCE …`` over a cold page cache; outputs and scratch lie in ``root``.

    A name may be several words.
    """
    forget(source)
    before = disk_use(root)
    scratch = root / "tmp"
    scratch.mkdir(exist_ok=True)
    command = [sys.executable, "-m", "edgekit", *name.split(), str(source), *arguments]
    start = time.perf_counter()
    process = subprocess.Popen(command, env={**os.environ, "TMPDIR": str(scratch)})
    watch = _Watch(process.pid, root)
    watch.start()
    code = process.wait()
    seconds = time.perf_counter() - start
    watch.done.set()
    watch.join()
    if code:
        raise SystemExit(f"{' '.join(command)} failed with exit code {code}")
    read = sum(p.stat().st_size for p in source.glob("*.safetensors"))
    left = disk_use(root) - before
    peak = max(watch.disk - before, left)
    return Step(name, seconds, watch.peak, watch.anonymous, read, peak, left)


def run(model: Path, scheme: str, method: str, root: Path) -> Report:
    """Convert ``model`` below ``root`` and measure."""
    outputs = root / "outputs"
    outputs.mkdir()
    quantized, variant = outputs / "quantized", outputs / "variant"
    reading, writing = read_speed(model), write_speed(root)
    options = ["--scheme", scheme, "--method", method, "--out", str(quantized)]
    first = measure("quantize", options, model, outputs)
    second = measure("compile", [*TARGETS, "--out", str(variant)], quantized, outputs)
    both = Step(
        "both",
        first.seconds + second.seconds,
        max(first.peak_memory_bytes, second.peak_memory_bytes),
        max(first.anonymous_bytes, second.anonymous_bytes),
        first.read_bytes,
        max(first.peak_disk_bytes, first.result_bytes + second.peak_disk_bytes),
        first.result_bytes + second.result_bytes,
    )
    steps = [first, second, both]
    return Report(scheme, method, os.cpu_count() or 1, first.read_bytes, reading, writing, steps)


def show(report: Report, console: Console) -> None:
    """The table."""
    title = (
        f"{report.checkpoint_bytes / 1e9:.1f} GB, {report.scheme}, {report.method}, "
        f"{report.cores} cores; disk reads {report.disk_read_bytes_per_second / 1e9:.2f} GB/s, "
        f"writes {report.disk_write_bytes_per_second / 1e9:.2f} GB/s"
    )
    table = Table(title=title, title_justify="left")
    table.add_column("")
    for column in ("seconds", "peak MB", "of it not files", "peak / checkpoint", "reads GB/s",
                   "/ disk", "disk / result"):  # fmt: skip
        table.add_column(column, justify="right")
    for row in report.summary()["steps"]:
        table.add_row(
            row["name"],
            f"{row['seconds']:.1f}",
            f"{row['peak_memory_bytes'] / 1e6:.0f}",
            f"{row['anonymous_bytes'] / 1e6:.0f}",
            f"{row['memory_ratio']:.3f}",
            f"{row['read_bytes_per_second'] / 1e9:.2f}",
            f"{row['speed_ratio']:.2f}",
            f"{row['disk_ratio']:.2f}",
        )
    console.print(table)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else "")
    parser.add_argument("--gigabytes", type=float, default=8)
    parser.add_argument("--scheme", default="int4-g128")
    parser.add_argument("--method", default="rtn", choices=("rtn", "mse"))
    parser.add_argument("--checkpoint", type=Path, help="convert this one instead")
    parser.add_argument("--work", type=Path, help="a directory on the disk to measure")
    parser.add_argument("--json", type=Path, help="also write the report here")
    arguments = parser.parse_args()
    if arguments.work:
        Path(arguments.work).mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=arguments.work) as directory:
        root = Path(directory)
        model = arguments.checkpoint or root / "checkpoint"
        if not arguments.checkpoint:
            model.mkdir()
            write_random_checkpoint(model, arguments.gigabytes)
        report = run(model, arguments.scheme, arguments.method, root)
    show(report, Console(width=110))
    if arguments.json:
        arguments.json.write_text(json.dumps(report.summary(), indent=2) + "\n")


if __name__ == "__main__":
    main()
