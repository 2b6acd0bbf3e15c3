"""The published description against the server, and bodies that nobody would send."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lab import FakeEmbedder, Lab
from pydantic import BaseModel
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from serving import ADMIN, DEADLINE, HEADERS, scripted, service_of, until

from edgekit.server import openapi
from edgekit.server.app import ROUTES, application
from edgekit.server.embeddings import EmbeddingThread
from edgekit.server.requests import ChatRequest
from edgekit.server.requests_anthropic import MessagesRequest
from edgekit.server.requests_ollama import OllamaChat
from edgekit.server.requests_responses import ResponsesRequest

BOUNDED = settings(
    max_examples=5,
    deadline=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)


def test_the_published_description_is_current() -> None:
    written = openapi.FILE.read_text(encoding="utf-8")
    assert written == openapi.text(), "run `python -m edgekit.server.openapi`"


def test_every_address_is_described() -> None:
    described = set(openapi.document()["paths"])
    assert described == {route.path.replace(":path", "") for route in ROUTES}


class Application:
    """The application on a loop of its own, so that synchronous tests can call it."""

    def __init__(self, directory: Path) -> None:
        self.engine = scripted(directory, "ok")
        embedder = EmbeddingThread(FakeEmbedder())
        service = service_of(lambda: self.engine, max_queue=1000, embedder=embedder)
        hosts = frozenset({"localhost:80"})
        self.app = application(service, hosts, frozenset(), HEADERS["authorization"][7:], ADMIN)
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self.thread.start()
        service.scheduler.start()
        until(lambda: service.scheduler.state == "ok")
        self.scheduler = service.scheduler

    def request(self, method: str, path: str, **more: Any) -> httpx.Response:
        """One request; fails when it takes longer than the deadline."""

        async def send() -> httpx.Response:
            transport = httpx.ASGITransport(self.app, raise_app_exceptions=False)
            async with httpx.AsyncClient(
                transport=transport,
                base_url="http://localhost:80",
                headers={"host": "localhost:80"},
            ) as client:
                return await client.request(method, path, **more)

        return asyncio.run_coroutine_threadsafe(send(), self.loop).result(DEADLINE)


@pytest.fixture(scope="module")
def application_(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Application]:
    made = Application(tmp_path_factory.mktemp("tokenizer"))
    yield made
    made.scheduler.stop()
    made.loop.call_soon_threadsafe(made.loop.stop)
    made.thread.join(DEADLINE)


SCHEMA = schemathesis.openapi.from_dict(openapi.document())
SCHEMA.config.phases.update(phases=["fuzzing"])  # "coverage" fills every list up to its limit
CHECKS = [
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    negative_data_rejection,
]


@SCHEMA.parametrize()
@BOUNDED
def test_answers_are_as_described(case: schemathesis.Case, application_: Application) -> None:
    sent = case.as_transport_kwargs()
    own = HEADERS if not case.path.startswith("/admin/") else {"x-api-key": ADMIN}
    headers = {**own, "content-type": "application/json"}
    content = json.dumps(sent["json"]) if "json" in sent else ""
    answer = application_.request(case.method, sent["url"], headers=headers, content=content)
    assert answer.status_code < 500 or answer.status_code == 501
    case.validate_response(answer, checks=CHECKS)


def test_the_description_is_served(lab: Lab) -> None:
    assert lab.http.get("/openapi.json").json() == openapi.document()


NUMBERS = st.integers() | st.floats(allow_nan=False, allow_infinity=False)
JSON = st.recursive(
    st.none() | st.booleans() | NUMBERS | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4)
    ),
    max_leaves=12,
)
TURNS = st.lists(
    st.fixed_dictionaries(
        {"role": st.sampled_from(["user", "assistant", "system", "tool"])},
        optional={"content": st.text(max_size=30) | JSON, "tool_calls": JSON, "tool_call_id": JSON},
    ),
    max_size=4,
)


def bodies(
    of: type[BaseModel], **known: st.SearchStrategy[Any]
) -> st.SearchStrategy[dict[str, Any]]:
    """Bodies with some fields of a model, right or wrong, and fields of nobody."""
    fields = {f.alias or name: JSON for name, f in of.model_fields.items()} | known
    return st.fixed_dictionaries({}, optional={**fields, "of_nobody": JSON})


PLAUSIBLE = {"messages": TURNS, "model": st.just("tiny"), "max_tokens": st.integers(1, 20),
             "stream": st.booleans()}  # fmt: skip
FUZZED = st.one_of(
    st.tuples(st.just("/v1/chat/completions"), bodies(ChatRequest, **PLAUSIBLE)),
    st.tuples(st.just("/v1/messages"), bodies(MessagesRequest, **PLAUSIBLE)),
    st.tuples(st.just("/v1/responses"), bodies(ResponsesRequest, model=st.just("tiny"))),
    st.tuples(st.just("/api/chat"), bodies(OllamaChat, **PLAUSIBLE)),
    st.tuples(st.sampled_from(["/v1/completions", "/v1/embeddings", "/api/embed"]),
              bodies(ChatRequest, prompt=JSON, input=JSON, model=st.just("tiny"))),
)  # fmt: skip


@given(FUZZED)
@settings(BOUNDED, max_examples=150)
def test_no_body_makes_the_server_fail_or_hang(
    application_: Application, asked: tuple[str, dict[str, Any]]
) -> None:
    path, body = asked
    answer = application_.request("POST", path, json=body, headers=HEADERS)
    assert answer.status_code in (200, 400, 404), answer.text
    if answer.status_code != 200:
        assert answer.json()["error"], answer.text
    elif "stream" in answer.headers["content-type"]:
        assert "internal_error" not in answer.text


@given(st.binary(max_size=200))
@settings(BOUNDED, max_examples=60)
def test_no_bytes_make_the_server_fail(application_: Application, content: bytes) -> None:
    headers = {**HEADERS, "content-type": "application/json"}
    answer = application_.request("POST", "/v1/chat/completions", content=content, headers=headers)
    assert answer.status_code == 400


def test_half_characters_come_through(lab: Lab) -> None:
    body = json.dumps({"messages": [{"role": "user", "content": "\ud83d"}], "user": "\udc00"})
    headers = {"content-type": "application/json"}
    assert lab.http.post("/v1/chat/completions", content=body, headers=headers).status_code == 200
