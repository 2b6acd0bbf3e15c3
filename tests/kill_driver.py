"""Runs a tiny build again and again, killing it with SIGKILL at chosen file-system events.

Reads lines of JSON ``{"out": DIR, "kill_at": N, "boundary": WHEN}`` from standard input, forks a
child for each that builds the recipe given on the command line, and answers with
``{"killed": bool, "events": N}``. Without a boundary the N-th event is the last; ``before`` kills
just before the N-th rename that finishes a step, ``after`` at the first event that follows it.
Heavy imports happen once, before the first fork.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"

import torch
import transformers.models.mixtral.modeling_mixtral  # noqa: F401 - imported for the children

import edgekit.evaluate
from edgekit.distill import calibration, capture, shrink, train  # noqa: F401
from edgekit.manifest import Speed
from edgekit.pipeline import build
from edgekit.progress import Silent
from edgekit.recipe import load_recipe
from edgekit.runtimes import onnx_graph, openvino_graph  # noqa: F401

EVENTS = {
    "open", "os.rename", "os.mkdir", "os.rmdir", "os.remove", "os.link", "os.truncate",
    "shutil.rmtree",
}  # fmt: skip
STEPS = ("-data", "-shrink", "-capture", "-distill", "-quantize", "-compile", "-evaluate", "pack")


def child(recipe: Path, out: str, kill_at: int, boundary: str, pipe: int) -> None:
    count = 0

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal count
        if event not in EVENTS or not str(arguments[0]).startswith(out):
            return
        if event == "open" and "r" in str(arguments[1] or "r") and "+" not in str(arguments[1]):
            return
        finishes = event == "os.rename" and str(arguments[1]).endswith(STEPS)
        if boundary and not finishes and not (boundary == "after" and count == kill_at):
            return
        count += 1
        if kill_at and count >= kill_at + (boundary == "after"):
            os.kill(os.getpid(), signal.SIGKILL)

    fixed = Speed(
        tokens_per_second=1.0, time_to_first_token_ms=1.0, prompt_tokens=1, peak_memory_bytes=1
    )
    edgekit.evaluate.measure_speed = lambda *_: fixed  # what a clock says is not the same twice
    torch.set_num_threads(1)
    sys.addaudithook(hook)
    build(load_recipe(recipe), Path(out), Silent())
    os.write(pipe, str(count).encode())


def main() -> None:
    recipe = Path(sys.argv[1])
    for line in sys.stdin:
        job = json.loads(line)
        reader, writer = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(reader)
            status = 1
            try:
                child(recipe, job["out"], job["kill_at"], job["boundary"], writer)
                status = 0
            finally:
                os._exit(status)
        os.close(writer)
        with os.fdopen(reader) as answer:
            events = answer.read()
        _, status = os.waitpid(pid, 0)
        killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
        failed = not killed and status != 0
        result = {"killed": killed, "failed": failed, "events": int(events or 0)}
        print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
