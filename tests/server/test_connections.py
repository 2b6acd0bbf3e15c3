"""Connections that break, stall or outlive the server, and engines that fail under them."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from lab import USER
from serving import DEADLINE, HEADERS, Running, scripted, service_of, serving, until
from simulator import ScriptedBatchEngine, refusing_loader, write_tokenizer

CHAT = "/v1/chat/completions"
STREAM = {"messages": USER, "stream": True, "max_tokens": 400}


@pytest.fixture
def engine(tmp_path: Path) -> ScriptedBatchEngine:
    return scripted(tmp_path, "abc", capacity=1)


@pytest.fixture
def running(engine: ScriptedBatchEngine) -> Iterator[Running]:
    with serving(service_of(lambda: engine, max_queue=4)) as running:
        yield running


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (CHAT, STREAM),
        (CHAT, {**STREAM, "stream": False}),
        ("/v1/completions", {"prompt": ["a", "b"], "stream": True}),
        ("/v1/responses", {"input": "hi", "stream": True}),
        ("/v1/responses", {"input": "hi"}),
        ("/v1/messages", {**STREAM}),
        ("/api/chat", {"model": "tiny", "messages": USER}),
        ("/api/generate", {"model": "tiny", "prompt": "hi", "stream": False}),
    ],
)
def test_a_client_that_goes_away_stops_the_engine(
    engine: ScriptedBatchEngine, running: Running, path: str, body: dict[str, Any]
) -> None:
    engine.stalled = True
    host, port = running.url.removeprefix("http://").split(":")
    content = json.dumps(body)
    head = (
        f"POST {path} HTTP/1.1\r\nHost: {host}:{port}\r\nContent-Type: application/json\r\n"
        f"Authorization: {HEADERS['authorization']}\r\nContent-Length: {len(content)}\r\n\r\n"
    )
    with socket.create_connection((host, int(port)), DEADLINE) as connection:
        connection.sendall((head + content).encode())
        until(lambda: engine.running, "the run")
        (run,) = engine.running
    until(lambda: run.cancelled and running.scheduler.running == 0, "the cancellation")
    until(lambda: running.scheduler.waiting == 0, "the end of what waited")
    engine.stalled = False
    assert running.client().post(CHAT, json={"messages": USER}).status_code == 200


def test_who_waits_hears_a_position_and_keeps_it_in_the_end(
    engine: ScriptedBatchEngine, running: Running
) -> None:
    engine.gate.clear()

    def ask() -> str:
        return running.client().post(CHAT, json=STREAM).text

    with ThreadPoolExecutor(3) as pool:
        asked = [pool.submit(ask)]
        until(lambda: running.scheduler.running == 1, "the run")
        asked += [pool.submit(ask), pool.submit(ask)]
        until(lambda: running.scheduler.waiting == 2, "the queue")
        engine.gate.set()
        texts = [one.result(DEADLINE) for one in asked]
    assert sorted(": edgekit.queue_position 1" in text for text in texts) == [False, True, True]
    told = ['"queue_position":2' in text for text in texts]
    assert told.count(True) == 1
    assert all(text.endswith("data: [DONE]\n\n") for text in texts)


def test_a_full_queue_is_429_with_retry_after_in_every_form(
    engine: ScriptedBatchEngine, running: Running
) -> None:
    engine.gate.clear()

    def ask() -> int:
        return running.client().post(CHAT, json={"messages": USER}).status_code

    with ThreadPoolExecutor(5) as pool:
        asked = [pool.submit(ask)]
        until(lambda: running.scheduler.running == 1, "the run")  # else four wait for a moment
        asked += [pool.submit(ask) for _ in range(4)]
        until(lambda: running.scheduler.waiting == 4, "the queue")
        full = running.client().post(CHAT, json={"messages": USER})
        assert full.status_code == 429 and int(full.headers["retry-after"]) >= 1
        assert full.json()["error"]["type"] == "rate_limit_error"
        body = {"messages": USER, "max_tokens": 5}
        anthropic = running.client().post("/v1/messages", json=body)
        assert anthropic.json()["error"]["type"] == "rate_limit_error"
        engine.gate.set()
        assert [one.result(DEADLINE) for one in asked] == [200] * 5


def test_while_the_model_loads_health_says_so_and_questions_are_asked_to_come_again(
    tmp_path: Path,
) -> None:
    ready = threading.Event()

    def slow() -> ScriptedBatchEngine:
        ready.wait(DEADLINE)
        return scripted(tmp_path)

    with serving(service_of(slow), load=False) as running:
        http = running.client()
        health = http.get("/health")
        assert health.status_code == 503 and health.json()["status"] == "loading"
        refused = http.post(CHAT, json={"messages": USER})
        assert refused.status_code == 503 and int(refused.headers["retry-after"]) >= 1
        ready.set()
        until(lambda: http.get("/health").json()["status"] == "ok", "the model")
        assert http.post(CHAT, json={"messages": USER}).status_code == 200


def test_a_model_that_cannot_be_loaded_is_told_by_health_and_not_tried_again() -> None:
    with serving(service_of(refusing_loader)) as running:
        health = running.client().get("/health").json()
        assert health["status"] == "failed" and "device NPU" in health["error"]
        assert "error" not in httpx.get(f"{running.url}/health").json()
        refused = running.client().post(CHAT, json={"messages": USER})
        assert refused.status_code == 503 and refused.headers["x-should-retry"] == "false"
        assert "device NPU" in refused.json()["error"]["message"]


def test_a_stream_whose_engine_fails_ends_with_an_error_and_whole_answers_do_not_notice(
    tmp_path: Path,
) -> None:
    made: list[ScriptedBatchEngine] = []

    def factory() -> ScriptedBatchEngine:
        engine = scripted(tmp_path, "abcdefgh", capacity=2)
        engine.fail_at_step = 4 if not made else None
        if not made:
            engine.gate.clear()
        made.append(engine)
        return engine

    with serving(service_of(factory)) as running, ThreadPoolExecutor(2) as pool:
        streamed = pool.submit(lambda: running.client().post(CHAT, json=STREAM).text)
        whole = pool.submit(
            lambda: running.client().post(CHAT, json={"messages": USER, "max_tokens": 50}).json()
        )
        until(lambda: running.scheduler.running + running.scheduler.waiting == 2, "both")
        made[0].gate.set()
        text = streamed.result(DEADLINE)
        lines = [line for line in text.splitlines() if line.startswith("data: ")]
        error = json.loads(lines[-2].removeprefix("data: "))["error"]
        assert "device was lost" in error["message"] and lines[-1] == "data: [DONE]"
        assert whole.result(DEADLINE)["choices"][0]["message"]["content"] == "abcdefgh"


def test_a_stopping_server_lets_answers_finish_within_the_grace(tmp_path: Path) -> None:
    engine = scripted(tmp_path, "abcdef")
    engine.gate.clear()
    with ThreadPoolExecutor(1) as pool:
        with serving(service_of(lambda: engine)) as running:
            asked = pool.submit(lambda: running.client().post(CHAT, json=STREAM).text)
            until(lambda: running.scheduler.running == 1, "the run")
            running.server.stop()
            until(lambda: _refused(running.url), "the closed port")
            engine.gate.set()
            text = asked.result(DEADLINE)
        assert '"finish_reason":"stop"' in text and text.endswith("data: [DONE]\n\n")
        assert engine.closed


def test_a_stopping_server_ends_answers_after_the_grace(tmp_path: Path) -> None:
    engine = scripted(tmp_path, "abcdef")
    engine.stalled = True
    with ThreadPoolExecutor(1) as pool, serving(service_of(lambda: engine), 0.1) as running:
        asked = pool.submit(lambda: running.client().post(CHAT, json=STREAM).text)
        until(lambda: running.scheduler.running == 1, "the run")
        running.server.stop()
        assert "the server is stopping" in asked.result(DEADLINE)


def test_the_admin_token_stops_the_server(tmp_path: Path) -> None:
    from serving import ADMIN

    write_tokenizer(tmp_path)
    with serving(service_of(lambda: scripted(tmp_path))) as running:
        headers = {"authorization": f"Bearer {ADMIN}"}
        answer = httpx.post(f"{running.url}/admin/shutdown", json={}, headers=headers)
        assert answer.status_code == 202
        until(lambda: _refused(running.url), "the closed port")


def _refused(url: str) -> bool:
    host, port = url.removeprefix("http://").split(":")
    try:
        socket.create_connection((host, int(port)), 1).close()
    except OSError:
        return True
    return False
