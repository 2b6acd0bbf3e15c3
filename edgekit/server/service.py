"""What the endpoints share: the engine, the model's name, and who asks."""

from __future__ import annotations

import datetime
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from starlette.requests import Request

from edgekit.server.answer import Answer, Answerer, Usage
from edgekit.server.errors import ApiError
from edgekit.server.scheduler import Scheduler

if TYPE_CHECKING:
    from edgekit.server.embeddings import EmbeddingThread


@dataclass(frozen=True)
class Model:
    """What is served; ``id`` is its name in requests."""

    id: str
    version: str = ""
    license: str = ""
    architecture: str = ""
    parameters: int = 0
    context_length: int = 0
    scheme: str = ""
    size: int = 0  # bytes on disk
    digest: str = "0" * 64


@dataclass
class Service:
    """One server's parts.

    ``embedder`` is None without one or while it loads; ``embedding_error`` says why there is none,
    and is "" while it loads.
    """

    model: Model
    scheduler: Scheduler
    answerer: Answerer
    embedding_model: str = ""
    embedder: EmbeddingThread | None = None
    embedding_error: str = "no embedding model is loaded; start with --embeddings PACK"
    started: float = field(default_factory=time.time)

    @property
    def started_at(self) -> str:
        """When the server began, ISO 8601."""
        return datetime.datetime.fromtimestamp(self.started, datetime.UTC).isoformat()

    def check_model(self, name: str | None) -> str:
        """The id of the served model that a request names; no name means it.

        Raises:
            ApiError: another model is named (404).
        """
        if name is None or name.removesuffix(":latest") in (self.model.id, "default"):
            return self.model.id
        raise ApiError(
            404, "model_not_found",
            f"the model {name!r} is not here; this server has {self.model.id!r}", "model",
        )  # fmt: skip

    def extras(self, answer: Answer, warnings: list[str]) -> dict[str, Any]:
        """edgekit's own field of a finished answer."""
        usage = answer.usage
        engine = self.scheduler.loaded_or_none
        extras: dict[str, Any] = {
            "device": engine.device if engine else "",
            "runtime": engine.runtime if engine else "",
            "pack": self.model.id,
            "tokens_per_second": round(usage.tokens_per_second, 2),
            "time_to_first_token": round(usage.time_to_first_token, 4),
        }
        if usage.queue_position:
            extras["queue_position"] = usage.queue_position
        if warnings:
            extras["warnings"] = warnings
        return extras


def service_of(request: Request) -> Service:
    """The server's parts, in an endpoint."""
    service: Service = request.app.state.service
    return service


def client_of(request: Request, user: str | None = None) -> str:
    """Who asks, for fairness: the user a request names, or its connection."""
    if user:
        return f"user:{user}"
    return "{}:{}".format(*request.client) if request.client else "unknown"


def openai_usage(usage: Usage) -> dict[str, Any]:
    """Token counts as OpenAI's chat and completions write them."""
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
        "completion_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
    }
