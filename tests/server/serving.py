"""A real server on a free port for a test: the application on uvicorn, in a thread."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
from simulator import Script, ScriptedBatchEngine, write_tokenizer

from edgekit.local.listen import LocalServer, bind
from edgekit.runtimes.batching import BatchEngine
from edgekit.server.answer import Answerer
from edgekit.server.app import application
from edgekit.server.embeddings import EmbeddingThread
from edgekit.server.scheduler import Scheduler, stopped
from edgekit.server.service import Model, Service

TOKEN = "test-token-of-a-test-server-0123456789"
ADMIN = "admin-token-of-a-test-server-0123456789"
HEADERS = {"authorization": f"Bearer {TOKEN}"}
TINY = Model("tiny", "1.0", architecture="llama", context_length=512)
DEADLINE = 30.0  # seconds after which a condition that a test waits for counts as failed


@dataclass
class Running:
    """A server under test."""

    url: str
    scheduler: Scheduler
    service: Service
    server: LocalServer

    def client(self) -> httpx.Client:
        """A client with the token."""
        return httpx.Client(base_url=self.url, headers=HEADERS, timeout=DEADLINE)


def until(condition: Callable[[], object], what: str = "the condition") -> None:
    """Wait for a condition."""
    end = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < end, f"{what} did not come"
        time.sleep(0.002)


async def async_until(condition: Callable[[], object], what: str = "the condition") -> None:
    """Wait for a condition, letting the loop run."""
    end = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < end, f"{what} did not come"
        await asyncio.sleep(0.002)


def service_of(
    factory: Callable[[], BatchEngine],
    max_queue: int = 64,
    embedder: EmbeddingThread | None = None,
    model: Model = TINY,
) -> Service:
    """The parts of a server, not started."""
    scheduler = Scheduler(factory, max_queue)
    service = Service(model, scheduler, Answerer(scheduler))
    if embedder is not None:
        service.embedder, service.embedding_model = embedder, "tiny-embedder"
    return service


@contextlib.contextmanager
def serving(service: Service, grace: float = 5.0, load: bool = True) -> Iterator[Running]:
    """Serve until the block ends; with ``load`` the block begins when the engine is there."""
    listener = bind()
    scheduler = service.scheduler
    app = application(
        service, listener.hosts, listener.origins, TOKEN, ADMIN, lambda: server.stop()
    )
    server = LocalServer(app, listener, grace, lambda: scheduler.end_all(stopped()))
    thread = threading.Thread(target=server.serve_until_stopped)
    thread.start()
    try:
        until(lambda: server.started, "the server")
        if load:
            until(lambda: scheduler.state != "loading", "the engine")
        yield Running(listener.url, scheduler, service, server)
    finally:
        server.stop()
        thread.join(DEADLINE)
        assert not thread.is_alive(), "the server did not stop"


@contextlib.asynccontextmanager
async def scheduling(
    factory: Callable[[], BatchEngine], max_queue: int = 64
) -> AsyncIterator[Scheduler]:
    """A scheduler with its engine loaded."""
    scheduler = Scheduler(factory, max_queue)
    scheduler.start()
    await async_until(lambda: scheduler.state != "loading", "the engine")
    try:
        yield scheduler
    finally:
        stopping = asyncio.to_thread(scheduler.stop)
        assert await stopping, "the engine's thread did not end"


def scripted(directory: Path, script: Script | str = "ok", **options: int) -> ScriptedBatchEngine:
    """A scripted engine that writes ``script``."""
    if not (directory / "tokenizer.json").is_file():
        write_tokenizer(directory)
    return ScriptedBatchEngine(
        directory, (lambda job: script) if isinstance(script, str) else script, **options
    )
