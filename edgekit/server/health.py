"""``/health``, ``/metrics``, ``/openapi.json`` and ``/admin/shutdown``."""

from __future__ import annotations

import importlib.resources
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from edgekit.server.service import service_of
from edgekit.server.wire import json_response


async def health(request: Request) -> Response:
    """Whether answers can be had; anyone may ask, details are for who has the token."""
    service = service_of(request)
    scheduler = service.scheduler
    status = "loading" if scheduler.state == "stopped" else scheduler.state
    told: dict[str, Any] = {"status": status}
    if request.app.state.check(request.scope["headers"]):
        told |= {
            "model": service.model.id,
            "queue": scheduler.waiting,
            "running": scheduler.running,
        }
        if scheduler.error:
            told["error"] = scheduler.error
        engine = scheduler.loaded_or_none
        if engine is not None:
            told |= {
                "device": engine.device,
                "runtime": engine.runtime,
                "context_length": engine.context_length,
                "parallel": engine.capacity,
            }
    return json_response(told, 200 if status == "ok" else 503)


async def metrics(request: Request) -> Response:
    """Counts and times."""
    text = request.app.state.metrics.text()
    return Response(text, media_type="text/plain; version=0.0.4; charset=utf-8")


async def openapi(request: Request) -> Response:
    """The description of this API."""
    text = importlib.resources.files("edgekit.server").joinpath("openapi.json").read_bytes()
    return Response(text, media_type="application/json")


async def shutdown(request: Request) -> Response:
    """Stop gracefully."""
    request.app.state.stop()
    return json_response({"status": "stopping"}, 202)
