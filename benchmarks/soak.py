"""Thousands of small requests at `edgekit serve`: nothing grows, is lost or mixed up.

    python benchmarks/soak.py PACK [--requests 10000] [--concurrency 8] [--fault STEPS]

Every request asks for JSON that holds nothing but the request's number, one of SCHEMAS, which the
grammar forces, so an answer that reached the wrong client is seen at once; every fourth streams,
every twentieth goes away in the middle. After each thousand the server's memory and open files are
printed, and at the end their growth per thousand: over all, and over the second half, when the
pages of the key-value cache have all been touched.

With `--fault STEPS` the engine fails about every STEPS steps and is made anew. Answers that are not
streamed must come all the same; streams that had begun may end with an error, but not without one.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil

from edgekit.errors import MissingRuntimeError
from edgekit.progress import Silent
from edgekit.runtimes.batching import BatchEngine, Job, Run
from edgekit.server.serve import Loader, Options, serve

CHAT = "/v1/chat/completions"
SCHEMAS = 31  # shares no divisor with the periods of streams and departures
BLOCK = 1000  # requests between two looks at the server
CUT = "cut off"  # a model without sense may fill its tokens with blank space
PATIENCE = 300.0  # seconds


class FaultyEngine:
    """An engine that fails about every ``steps`` steps, as a lost device does."""

    def __init__(self, engine: BatchEngine, steps: int) -> None:
        self._engine = engine
        self._left = random.randint(1, 2 * steps)
        self.tokenizer, self.runtime, self.device = engine.tokenizer, engine.runtime, engine.device
        self.context_length, self.capacity = engine.context_length, engine.capacity

    def start(self, job: Job) -> Run:
        """Begin an answer."""
        return self._engine.start(job)

    def step(self) -> None:
        """Advance, or fail."""
        self._left -= 1
        if self._left < 0:
            raise MissingRuntimeError("the device was lost, as this benchmark wants it")
        self._engine.step()

    def close(self) -> None:
        """Free the model."""
        self._engine.close()


@dataclass
class Soak:
    """What came back."""

    outcomes: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)

    async def ask(self, http: httpx.AsyncClient, number: int, faults: bool) -> None:
        """One request; counts how it ended."""
        own = number % SCHEMAS
        schema = {"type": "object", "properties": {"n": {"const": own}}, "required": ["n"],
                  "additionalProperties": False}  # fmt: skip
        body: dict[str, Any] = {
            "messages": [{"role": "user", "content": f"Say {own}."}],
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "n", "schema": schema},
            },
            "max_tokens": 64,
            "stream": number % 4 == 0,
        }
        for _ in range(100):
            try:
                told = await self._answer(http, body, leave=number % 20 == 0)
            except httpx.HTTPStatusError as error:
                if error.response.status_code not in (429, 503):
                    raise
                self.outcomes["tried again"] += 1
                await asyncio.sleep(float(error.response.headers.get("retry-after", 1)))
                continue
            break
        else:
            told = "refused a hundred times"
        self._judge(own, told, faults and body["stream"])

    async def _answer(self, http: httpx.AsyncClient, body: dict[str, Any], leave: bool) -> str:
        if not body["stream"]:
            answer = await http.post(CHAT, json=body)
            answer.raise_for_status()
            choice = answer.json()["choices"][0]
            return CUT if choice["finish_reason"] == "length" else choice["message"]["content"]
        text, ended = "", False
        async with http.stream("POST", CHAT, json=body) as answer:
            answer.raise_for_status()
            async for line in answer.aiter_lines():
                if line == "data: [DONE]":
                    ended = True
                elif line.startswith("data: "):
                    chunk = json.loads(line.removeprefix("data: "))
                    if "error" in chunk:
                        return "error"
                    choice = chunk["choices"][0]
                    text += choice["delta"].get("content") or ""
                    if choice["finish_reason"] == "length":
                        text = CUT
                    if text and leave:
                        return "left"
        return text if ended else f"no end after {text!r}"

    def _judge(self, number: int, told: str, may_fail: bool) -> None:
        if told in ("left", CUT) or (told == "error" and may_fail):
            self.outcomes[told] += 1
            return
        with contextlib.suppress(ValueError):
            if json.loads(told) == {"n": number}:
                self.outcomes["right"] += 1
                return
        self.outcomes["wrong"] += 1
        self.wrong.append(f"{number}: {told}")


@contextlib.contextmanager
def server(pack: Path, faults: int) -> Iterator[tuple[dict[str, Any], psutil.Process]]:
    """The server in a process of its own: where it is, and the process."""
    with tempfile.TemporaryDirectory() as name:
        state = Path(name) / "state.json"
        command = [sys.executable, __file__, str(pack), "--serve", str(state)]
        with subprocess.Popen([*command, "--fault", str(faults)]) as process:
            try:
                end = time.monotonic() + PATIENCE
                while not (state.exists() and ready(json.loads(state.read_text())["url"])):
                    if process.poll() is not None or time.monotonic() > end:
                        raise SystemExit("the server did not start")
                    time.sleep(0.1)
                yield json.loads(state.read_text()), psutil.Process(process.pid)
            finally:
                process.terminate()


def ready(url: str) -> bool:
    """Whether the model is loaded."""
    try:
        return httpx.get(f"{url}/health").status_code == 200
    except httpx.TransportError:
        return False


def open_files(process: psutil.Process) -> int:
    """Open files and sockets, or handles."""
    return process.num_fds() if hasattr(process, "num_fds") else process.num_handles()


async def soak(pack: Path, requests: int, concurrency: int, faults: int) -> int:
    """Ask, look, report; the number of answers that were wrong."""
    result, looks = Soak(), []
    with server(pack, faults) as (facts, process):
        headers = {"authorization": f"Bearer {facts['token']}"}
        async with httpx.AsyncClient(
            base_url=facts["url"], headers=headers, timeout=PATIENCE
        ) as http:
            for begin in range(0, requests, BLOCK):
                started = time.perf_counter()
                numbers = iter(range(begin, min(begin + BLOCK, requests)))

                async def worker(numbers: Iterator[int] = numbers) -> None:
                    for number in numbers:
                        await result.ask(http, number, faults > 0)

                await asyncio.gather(*(worker() for _ in range(concurrency)))
                seconds = time.perf_counter() - started
                looks.append((process.memory_info().rss / 1e6, open_files(process)))
                print(
                    f"{min(begin + BLOCK, requests)} requests: {seconds:.0f} s, "
                    f"{looks[-1][0]:.1f} MB, {looks[-1][1]} open files", flush=True,
                )  # fmt: skip
            metrics = (await http.get("/metrics")).text
    tell(result, looks, metrics)
    return len(result.wrong)


def tell(result: Soak, looks: list[tuple[float, int]], metrics: str) -> None:
    """The account."""
    for name, part in (("all", looks), ("the second half", looks[len(looks) // 2 :])):
        if blocks := len(part) - 1:
            memory, files = (part[-1][i] - part[0][i] for i in (0, 1))
            print(
                f"growth per {BLOCK} over {name}: {memory / blocks:+.2f} MB, "
                f"{files / blocks:+.2f} open files"
            )
    failures = next(
        line for line in metrics.splitlines() if line.startswith("edgekit_engine_failures")
    )
    print(f"{failures}; {dict(result.outcomes)}")
    for line in result.wrong[:10]:
        print(f"wrong: {line}", file=sys.stderr)


def serve_with_faults(pack: Path, state: Path, steps: int) -> None:
    """The server, whose engine fails now and then where ``steps`` is not 0."""
    options = Options(pack, state_file=state)
    load = Loader(options, Silent())
    factory = (lambda: FaultyEngine(load(), steps)) if steps else load
    serve(options, factory=factory)


def main() -> None:
    """Run the soak, or the server under it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("pack", type=Path)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--concurrency", type=int, default=8)
    parser.add_argument("--fault", type=int, default=0, metavar="STEPS")
    parser.add_argument("--serve", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve is not None:
        serve_with_faults(options.pack, options.serve, options.fault)
        return
    wrong = asyncio.run(soak(options.pack, options.requests, options.concurrency, options.fault))
    raise SystemExit(1 if wrong else 0)


if __name__ == "__main__":
    main()
