"""A server whose answers a test chooses, and what the tests of the APIs ask it."""

from __future__ import annotations

import json
from typing import Any

import httpx
import numpy as np
from numpy.typing import NDArray
from serving import Running
from simulator import ScriptedBatchEngine

from edgekit.runtimes.batching import Job

THINKS = "<think>\nhm\n</think>\n\nHello there."
CALLS = 'I look.\n<tool_call>\n{"name": "weather", "arguments": {"city": "Paris"}}\n</tool_call>'
USER = [{"role": "user", "content": "hi"}]
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOL = {"type": "function", "function": {"name": "weather", "parameters": SCHEMA}}
ADD = {"type": "function", "function": {"name": "add"}}


class FakeEmbedder:
    """Vectors that tell the text's length; long texts have more tokens than fit."""

    id, dim, max_tokens = "fake", 3, 8

    def embed(self, texts: list[str], kind: str = "passage") -> NDArray[np.float32]:
        rows = np.array([[len(t), 1.0 if kind == "query" else 2.0, 2.0] for t in texts], np.float32)
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)

    def count_tokens(self, text: str) -> int:
        return len(text.split())

    def close(self) -> None:
        pass


class Lab:
    """A server whose answer a test chooses."""

    def __init__(self, engine: ScriptedBatchEngine, running: Running) -> None:
        self.engine, self.running = engine, running
        self.http = running.client()
        self.answer = "ok"

    def post(self, path: str, **body: Any) -> Any:
        response = self.http.post(path, json=body)
        assert response.status_code == 200, response.text
        return response.json()

    def refused(self, path: str, **body: Any) -> httpx.Response:
        response = self.http.post(path, json=body)
        assert response.status_code >= 400, response.text
        return response

    def chunks(self, path: str, **body: Any) -> list[dict[str, Any]]:
        lines = self.http.post(path, json={**body, "stream": True}).text.splitlines()
        data = [line.removeprefix("data: ") for line in lines if line.startswith("data: ")]
        return [json.loads(line) for line in data if line != "[DONE]"]

    @property
    def job(self) -> Job:
        return self.engine.jobs[-1]

    @property
    def prompt(self) -> str:
        return self.engine.tokenizer.decode(self.job.prompt, skip_special=False)
