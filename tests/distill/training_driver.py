"""Runs ``edgekit distill train`` again and again in forked children, killing them with SIGKILL.

Reads lines of JSON ``{"arguments": [...], "kill_at": N, "what": "step" or "file"}`` from standard
input and answers with ``{"killed": bool, "code": N, "steps": N, "files": N}``: the N-th step of the
run, or its N-th change of a file under the working directory, is the last thing that it does.
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

from edgekit.cli.main import main as edgekit
from edgekit.distill import train, trainer  # noqa: F401

CHANGES = {"open", "os.rename", "os.mkdir", "os.rmdir", "os.remove", "shutil.rmtree"}


def child(job: dict, pipe: int) -> int:
    root = str(Path.cwd())
    counts = {"step": 0, "file": 0}

    def counted(what: str) -> None:
        counts[what] += 1
        if what == job["what"] and counts[what] == job["kill_at"]:
            os.kill(os.getpid(), signal.SIGKILL)

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        if event not in CHANGES or not str(arguments[0]).startswith(root):
            return
        if event == "open" and "r" in str(arguments[1] or "r") and "+" not in str(arguments[1]):
            return
        counted("file")

    original = trainer.Trainer._step

    def step(self: trainer.Trainer, *arguments: object) -> float:
        found = original(self, *arguments)
        counted("step")
        return found

    trainer.Trainer._step = step
    torch.set_num_threads(1)
    sys.addaudithook(hook)
    code = edgekit(job["arguments"])
    os.write(pipe, json.dumps(counts).encode())
    return code


def main() -> None:
    for line in sys.stdin:
        job = json.loads(line)
        reader, writer = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(reader)
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # the parent's answers are on it
            code = 1
            try:
                code = child(job, writer)
            finally:
                os._exit(code)
        os.close(writer)
        with os.fdopen(reader) as answer:
            counts = json.loads(answer.read() or "{}")
        _, status = os.waitpid(pid, 0)
        killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
        code = os.waitstatus_to_exitcode(status)
        print(json.dumps({"killed": killed, "code": code, **counts}), flush=True)


if __name__ == "__main__":
    main()
