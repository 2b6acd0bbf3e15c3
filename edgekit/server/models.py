"""``GET /v1/models`` and ``/v1/models/{id}``: what is served."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from edgekit.server.errors import ApiError
from edgekit.server.service import Service, service_of
from edgekit.server.wire import json_response


async def models(request: Request) -> Response:
    """Every model."""
    service = service_of(request)
    data = [_described(service, name) for name in _names(service)]
    first = data[0]["id"]
    # the last three are what Anthropic's clients read of the same address
    listed = {"object": "list", "data": data}
    return json_response(
        {**listed, "has_more": False, "first_id": first, "last_id": data[-1]["id"]}
    )


async def model(request: Request) -> Response:
    """One model."""
    service, name = service_of(request), request.path_params["name"]
    if name not in _names(service):
        raise ApiError(404, "model_not_found", f"the model {name[:128]!r} is not here", "model")
    return json_response(_described(service, name))


def _names(service: Service) -> list[str]:
    return [service.model.id, *([service.embedding_model] if service.embedding_model else [])]


def _described(service: Service, name: str) -> dict[str, Any]:
    described: dict[str, Any] = {
        "id": name,
        "object": "model",
        "created": int(service.started),
        "owned_by": "edgekit",
        "type": "model",
        "display_name": name,
        "created_at": service.started_at,
    }
    if name == service.model.id:
        described["context_length"] = service.model.context_length
    return described
