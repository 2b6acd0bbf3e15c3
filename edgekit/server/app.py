"""The server as an application: every address, behind one guard."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

from edgekit.errors import EdgekitError
from edgekit.local.guard import Bearer, Guard, Refused, Rules
from edgekit.server import (
    anthropic,
    chat,
    completions,
    embeddings,
    health,
    models,
    ollama,
    ollama_models,
    responses,
)
from edgekit.server.errors import ApiError, as_api_error, error_body
from edgekit.server.limits import LIMITS
from edgekit.server.metrics import Metrics
from edgekit.server.service import Service
from edgekit.server.wire import ClientGoneError, json_response

ROUTES = (
    Route("/health", health.health),
    Route("/metrics", health.metrics),
    Route("/openapi.json", health.openapi),
    Route("/admin/shutdown", health.shutdown, methods=["POST"]),
    Route("/v1/models", models.models),
    Route("/v1/models/{name:path}", models.model),
    Route("/v1/chat/completions", chat.chat, methods=["POST"]),
    Route("/v1/completions", completions.completions, methods=["POST"]),
    Route("/v1/embeddings", embeddings.embeddings, methods=["POST"]),
    Route("/v1/responses", responses.responses, methods=["POST"]),
    Route("/v1/messages", anthropic.messages, methods=["POST"]),
    Route("/v1/messages/count_tokens", anthropic.count_tokens, methods=["POST"]),
    Route("/api/chat", ollama.chat, methods=["POST"]),
    Route("/api/generate", ollama.generate, methods=["POST"]),
    Route("/api/embed", ollama_models.embed, methods=["POST"]),
    Route("/api/tags", ollama_models.tags),
    Route("/api/ps", ollama_models.running),
    Route("/api/show", ollama_models.show, methods=["POST"]),
    Route("/api/version", ollama_models.version),
    *(Route(path, ollama_models.never, methods=["GET", "POST", "HEAD", "DELETE"])
      for path in ollama_models.NEVER),
)  # fmt: skip
GONE = 499  # never seen by anyone: the connection is closed


def application(
    service: Service,
    hosts: frozenset[str],
    origins: frozenset[str],
    token: str,
    admin_token: str = "",
    stop: Callable[[], None] = lambda: None,
) -> ASGIApp:
    """The guarded application.

    Args:
        hosts: allowed Host headers, ``origins``: allowed Origin headers (see ``Listener``).
        token: opens everything but ``/admin/``, which ``admin_token`` alone opens.
        stop: asks the server to stop gracefully.
    """

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        service.scheduler.start()
        yield
        await asyncio.to_thread(service.scheduler.stop)
        service.answerer.close()
        if service.embedder is not None:
            await asyncio.to_thread(service.embedder.close)

    app = Starlette(
        routes=ROUTES,
        lifespan=lifespan,
        exception_handlers={
            ApiError: _failed,
            EdgekitError: _failed,
            ClientGoneError: _gone,
            HTTPException: _http_error,
            Exception: _failed,
        },
    )
    app.router.redirect_slashes = False
    check = Bearer([token])
    metrics = Metrics(service.scheduler, (route.path for route in ROUTES))
    app.state.service, app.state.stop, app.state.check = service, stop, check
    app.state.metrics = metrics
    rules = Rules(
        hosts=hosts,
        origins=origins,
        check=check,
        public=lambda path: path == "/health",
        admin=("/admin/",),
        admin_check=Bearer([admin_token]),
        body_limit=LIMITS.body,
        error=error_body,
    )
    return metrics.counting(Guard(app, rules))


async def _failed(request: Request, error: Exception) -> Response:
    told = as_api_error(error)
    headers = {}
    if told.retry_after is not None:
        headers["retry-after"] = str(told.retry_after)
    elif told.status >= 500:
        headers["x-should-retry"] = "false"
    body = error_body(request.url.path, told.status, told.code, told.message, told.param)
    return json_response(body, told.status, headers)


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if isinstance(error, Refused):
        raise error  # the guard answers it
    code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, "invalid_request")
    known = {404: "there is nothing at this address", 405: "this address takes another method"}
    message = known.get(error.status_code, str(error.detail))
    body = error_body(request.url.path, error.status_code, code, message)
    return json_response(body, error.status_code, error.headers)


async def _gone(request: Request, error: Exception) -> Response:
    return Response(status_code=GONE)
