"""A few seconds of trial: which micro-batch, precision and number of threads train fastest here.

One thing is tried after another, each on the step's own text, and what is measured is the gradient
of a micro-batch. No weight changes, so a training that was tried for ends where it would have ended
without, but for the rounding of other sums.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import replace

import psutil
import torch

from edgekit.distill.batches import Batch
from edgekit.distill.gradients import Gradients
from edgekit.distill.rows import micro_batches
from edgekit.distill.working import Precision, Working, using_threads
from edgekit.recipe import DistillSection

SECONDS = 8.0  # after which nothing more is tried
REPEATS = 3  # the fastest of which counts
ENOUGH = 0.5  # seconds, after which nothing is repeated
GAIN = 1.03  # less is chance
SMALLEST, LARGEST = 256, 16_384  # micro-batches that are tried
PREFERRED = 512

Speed = Callable[[Working], float]  # tokens per second


def working_of(
    params: DistillSection, gradients: Gradients, batch: Batch, largest: int, device: torch.device
) -> Working:
    """What the recipe says, tried on ``batch`` where it leaves the micro-batch open; the same in
    every process."""
    processes = gradients.processes
    if params.micro_batch_tokens:
        precision = untried_precision(params, device, processes.sharded)
        found = Working(micro_batch_tokens=params.micro_batch_tokens, precision=precision)
    else:
        speed = measured_speed(gradients, batch)
        found = choose(params, device, processes.count == 1, largest, speed)
    return processes.of_main(found)


def untried_precision(params: DistillSection, device: torch.device, sharded: bool) -> Precision:
    """What the recipe says; "auto" is bfloat16 where the device multiplies it by itself. A student
    that is ``sharded`` would keep what was cast of every layer, unless layers are computed twice.
    """
    if params.precision != "auto":
        return params.precision
    fits = params.activation_checkpointing or not sharded
    return "bfloat16" if fits and has_bfloat16(device) else "float32"


def choose(
    params: DistillSection, device: torch.device, alone: bool, largest: int, speed: Speed
) -> Working:
    """The fastest by ``speed``: of micro-batches up to ``largest`` tokens, of precisions where the
    recipe says "auto", and of threads where this process is ``alone`` on a CPU."""
    start = time.perf_counter()
    best = Working(
        # where not one sequence seems to fit it was asked for all the same
        micro_batch_tokens=min(PREFERRED, max(largest, SMALLEST)),
        precision=untried_precision(params, device, sharded=False),
        threads=torch.get_num_threads() if alone and device.type == "cpu" else 0,
    )
    best = best.model_copy(update={"tokens_per_second": speed(best)})
    # it begins with what is taken without a trial, for there may be no time to try another
    other = params.precision == "auto" and best.precision == "bfloat16"
    for updates in (
        _threads(best) if best.threads else [],
        [{"precision": "float32"}] if other else [],
        _sizes(best, largest),
    ):
        for update in updates:
            if time.perf_counter() - start > SECONDS:
                return best
            tried = best.model_copy(update=update)
            found = speed(tried)
            if found > GAIN * best.tokens_per_second:
                best = tried.model_copy(update={"tokens_per_second": found})
    return best


def measured_speed(gradients: Gradients, batch: Batch) -> Speed:
    """Tokens per second of the gradient of one micro-batch of ``batch``."""

    def speed(working: Working) -> float:
        groups = [
            replace(batch, numbers=numbers)
            for numbers in micro_batches(
                batch.sequences, batch.numbers, working.micro_batch_tokens, gradients.packed
            )
        ]
        group = max(groups, key=lambda g: g.tokens)
        times: list[float] = []
        with using_threads(working.threads):
            gradients.add_share(group, group.positions, working)  # the first time is slower
            while len(times) < REPEATS and sum(times) < ENOUGH:
                start = time.perf_counter()
                gradients.add_share(group, group.positions, working)
                times.append(time.perf_counter() - start)
        gradients.clear()
        return group.tokens / max(min(times), 1e-9)

    return speed


def has_bfloat16(device: torch.device) -> bool:
    """Whether the device is known to multiply bfloat16 by itself, as AMX and AVX-512 do on a
    CPU."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type == "xpu":
        return bool(torch.xpu.is_bf16_supported())
    if device.type != "cpu":
        return False  # not known
    able = torch.cpu.get_capabilities()
    return any(able.get(name, False) for name in ("amx_bf16", "avx512_bf16", "bf16"))


def _threads(best: Working) -> list[dict[str, int]]:
    """Half as many threads, and one for every logical core unless the user set a number."""
    counts = {max(1, best.threads // 2)}
    if "OMP_NUM_THREADS" not in os.environ:
        counts.add(psutil.cpu_count() or best.threads)
    return [{"threads": count} for count in sorted(counts - {best.threads}, reverse=True)]


def _sizes(best: Working, largest: int) -> list[dict[str, int]]:
    sizes = {best.micro_batch_tokens // 2}
    size = best.micro_batch_tokens * 2
    while size <= min(largest, LARGEST):
        sizes.add(size)
        size *= 2
    return [{"micro_batch_tokens": s} for s in sorted(sizes) if s >= SMALLEST]
