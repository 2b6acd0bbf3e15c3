"""Asynchronous tests run on asyncio alone, as the server does; a server for the tests of APIs."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from lab import FakeEmbedder, Lab
from serving import scripted, service_of, serving

from edgekit.server.embeddings import EmbeddingThread


@pytest.fixture
def anyio_backend() -> str:
    """What `pytest.mark.anyio` runs on."""
    return "asyncio"


@pytest.fixture(scope="session")
def lab_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """The server, made once."""
    made: list[Lab] = []
    directory = tmp_path_factory.mktemp("tokenizer")
    engine = scripted(directory, lambda job: made[0].answer)
    service = service_of(lambda: engine, embedder=EmbeddingThread(FakeEmbedder()))
    with serving(service) as running:
        made.append(Lab(engine, running))
        yield made[0]


@pytest.fixture
def lab(lab_server: Lab) -> Lab:
    """The server, answering "ok"."""
    lab_server.answer = "ok"
    return lab_server
