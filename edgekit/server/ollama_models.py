"""The rest of Ollama's API: what is served, vectors, and what this server never does."""

from __future__ import annotations

import importlib.metadata
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from edgekit.server.embeddings import check_texts, embedder_of, shortened
from edgekit.server.errors import ApiError
from edgekit.server.ollama import utc_now
from edgekit.server.requests_ollama import OllamaEmbed, OllamaShow
from edgekit.server.service import Service, service_of
from edgekit.server.wire import json_response, parse, unless_gone

NEVER = ["/api/create", "/api/push", "/api/pull", "/api/copy", "/api/delete", "/api/blobs/{digest}"]
EXPIRES = "2318-10-22T00:00:00Z"  # clients want a date; the model stays


async def version(request: Request) -> Response:
    """edgekit's version."""
    return json_response({"version": importlib.metadata.version("edgekit")})


async def tags(request: Request) -> Response:
    """The models."""
    service = service_of(request)
    return json_response({"models": [_described(service)]})


async def running(request: Request) -> Response:
    """The loaded models."""
    service = service_of(request)
    if service.scheduler.state != "ok":
        return json_response({"models": []})
    loaded = {"expires_at": EXPIRES, "size_vram": 0, "context_length": service.model.context_length}
    return json_response({"models": [{**_described(service), **loaded}]})


async def show(request: Request) -> Response:
    """One model."""
    service = service_of(request)
    body, _ = await parse(request, OllamaShow)
    service.check_model(body.model or body.name)
    engine = service.scheduler.loaded_or_none
    model = service.model
    architecture = model.architecture or "unknown"
    return json_response(
        {
            "license": model.license,
            "modelfile": "",
            "parameters": "",
            "template": engine.tokenizer.template_source if engine else "",
            "details": _details(service),
            "model_info": {
                "general.architecture": architecture,
                "general.parameter_count": model.parameters,
                f"{architecture}.context_length": model.context_length,
            },
            "capabilities": ["completion", "tools"],
            "modified_at": service.started_at,
        }
    )


async def embed(request: Request) -> Response:
    """Vectors of one text or several."""
    service = service_of(request)
    body, _ = await parse(request, OllamaEmbed)
    thread = embedder_of(service, body.model)
    texts = [body.input] if isinstance(body.input, str) else body.input
    check_texts(texts)
    cut = body.truncate is not False
    vectors, counts = await unless_gone(request, thread.embed(texts, "passage", cut))
    rows = [[float(v) for v in row] for row in shortened(vectors, body.dimensions)]
    return json_response(
        {
            "model": body.model,
            "created_at": utc_now(),
            "embeddings": rows,
            "prompt_eval_count": sum(counts),
        }
    )


async def never(request: Request) -> Response:
    """What would fetch, make, send or remove a model."""
    raise ApiError(
        501, "not_here",
        "this server only answers: it never fetches, makes, sends or removes a model; "
        "use `edgekit pack` for that",
    )  # fmt: skip


def _described(service: Service) -> dict[str, Any]:
    model = service.model
    return {
        "name": model.id,
        "model": model.id,
        "modified_at": service.started_at,
        "size": model.size,
        "digest": model.digest,
        "details": _details(service),
    }


def _details(service: Service) -> dict[str, Any]:
    model = service.model
    return {
        "parent_model": "",
        "format": "edgekit",
        "family": model.architecture,
        "families": [model.architecture],
        "parameter_size": f"{model.parameters / 1e6:.0f}M",
        "quantization_level": model.scheme,
    }
