"""The published description of the API: ``python -m edgekit.server.openapi`` writes it anew.

Requests are described by the models that check them; answers by what clients may rely on.
"""

from __future__ import annotations

import importlib.metadata
import json
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from edgekit.server.ollama_models import NEVER
from edgekit.server.requests import ChatRequest, CompletionRequest, EmbeddingsRequest
from edgekit.server.requests_anthropic import CountRequest, MessagesRequest
from edgekit.server.requests_ollama import OllamaChat, OllamaEmbed, OllamaGenerate, OllamaShow
from edgekit.server.requests_responses import ResponsesRequest

FILE = Path(__file__).with_name("openapi.json")
Schema = dict[str, Any]
BODIES: dict[str, tuple[type[BaseModel], str, str]] = {
    "/v1/chat/completions": (ChatRequest, "ChatCompletion", "Answer a conversation"),
    "/v1/completions": (CompletionRequest, "Completion", "Continue a text, or fill a gap"),
    "/v1/embeddings": (EmbeddingsRequest, "Embeddings", "Turn texts into vectors"),
    "/v1/responses": (ResponsesRequest, "Response", "Answer a conversation, by OpenAI's newer API"),
    "/v1/messages": (MessagesRequest, "AnthropicAnswer", "Answer a conversation, as Anthropic"),
    "/v1/messages/count_tokens": (CountRequest, "TokenCount", "Count a conversation's tokens"),
    "/api/chat": (OllamaChat, "OllamaAnswer", "Answer a conversation, as Ollama"),
    "/api/generate": (OllamaGenerate, "OllamaAnswer", "Answer a text, as Ollama"),
    "/api/embed": (OllamaEmbed, "OllamaVectors", "Turn texts into vectors, as Ollama"),
    "/api/show": (OllamaShow, "OllamaModel", "One model, as Ollama"),
}
STREAMS = {
    "/v1/chat/completions": "text/event-stream",
    "/v1/completions": "text/event-stream",
    "/v1/responses": "text/event-stream",
    "/v1/messages": "text/event-stream",
    "/api/chat": "application/x-ndjson",
    "/api/generate": "application/x-ndjson",
}
READS = {
    "/v1/models": ("Models", "The models"),
    "/api/tags": ("OllamaModels", "The models, as Ollama"),
    "/api/ps": ("OllamaModels", "The loaded models, as Ollama"),
    "/api/version": ("Version", "The version, as Ollama"),
}
REFUSALS = {
    400: "a field is wrong",
    401: "the token is missing or wrong",
    403: "a web page of another origin asks",
    404: "there is no such model",
    408: "the body stopped arriving",
    413: "the body is too large",
    415: "the body is not JSON",
    421: "the Host header is not this server's",
    429: "too many requests wait",
    501: "never done here",
    503: "the model is loading, failed, or the server is stopping",
}


def _object(required: dict[str, Schema]) -> Schema:
    return {"type": "object", "required": list(required), "properties": required}


TEXT: Schema = {"type": "string"}
COUNT: Schema = {"type": "integer", "minimum": 0}
LIST: Schema = {"type": "array", "items": {"type": "object"}}
VECTORS: Schema = {"type": "array", "items": {"type": "array", "items": {"type": "number"}}}
ANSWERS: dict[str, Schema] = {
    "ChatCompletion": _object(
        {"id": TEXT, "object": {"const": "chat.completion"}, "created": COUNT, "model": TEXT,
         "choices": LIST, "usage": {"type": "object"}, "edgekit": {"type": "object"}}
    ),
    "Completion": _object(
        {"id": TEXT, "object": {"const": "text_completion"}, "created": COUNT, "model": TEXT,
         "choices": LIST, "usage": {"type": "object"}, "edgekit": {"type": "object"}}
    ),
    "Embeddings": _object({"object": {"const": "list"}, "data": LIST, "model": TEXT}),
    "Response": _object(
        {"id": TEXT, "object": {"const": "response"}, "created_at": COUNT, "model": TEXT,
         "status": {"enum": ["completed", "incomplete"]}, "output": LIST}
    ),
    "AnthropicAnswer": _object(
        {"id": TEXT, "type": {"const": "message"}, "role": {"const": "assistant"}, "model": TEXT,
         "content": LIST, "stop_reason": TEXT, "usage": {"type": "object"}}
    ),
    "TokenCount": _object({"input_tokens": COUNT}),
    "OllamaAnswer": _object({"model": TEXT, "created_at": TEXT, "done": {"const": True}}),
    "OllamaVectors": _object({"model": TEXT, "embeddings": VECTORS}),
    "OllamaModel": _object({"details": {"type": "object"}, "model_info": {"type": "object"}}),
    "OllamaModels": _object({"models": LIST}),
    "Version": _object({"version": TEXT}),
    "Models": _object({"object": {"const": "list"}, "data": LIST}),
    "Model": _object({"id": TEXT, "object": {"const": "model"}, "created": COUNT}),
    "Health": _object({"status": {"enum": ["loading", "ok", "failed"]}}),
    "Stopping": _object({"status": {"const": "stopping"}}),
    "OpenAIError": _object({"error": _object({"message": TEXT, "type": TEXT})}),
    "AnthropicError": _object(
        {"type": {"const": "error"}, "error": _object({"type": TEXT, "message": TEXT})}
    ),
    "OllamaError": _object({"error": TEXT}),
}  # fmt: skip


def document() -> Schema:
    """The whole description, OpenAPI 3.1."""
    requests = [(model, "validation") for model, _, _ in BODIES.values()]
    _, definitions = models_json_schema(
        [(model, "validation") for model, _ in dict.fromkeys(requests)],
        ref_template="#/components/schemas/{model}",
    )
    paths = {path: {"post": _post(path)} for path in BODIES}
    paths |= {path: {"get": _get(path, *READS[path])} for path in READS}
    paths["/v1/models/{name}"] = {"get": {**_get("/v1/", "Model", "One model"), **_name("name")}}
    for path in NEVER:
        never = _operation(path, "Refused always", {501: _error(path, 501)})
        paths[path] = {"post": {**never, **(_name("digest") if "{" in path else {})}}
    paths |= _own_paths()
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "edgekit serve",
            "version": importlib.metadata.version("edgekit"),
            "description": "A local model by the APIs of OpenAI, Anthropic and Ollama.",
        },
        "paths": dict(sorted(paths.items())),
        "components": {
            "schemas": dict(sorted({**_plain(definitions["$defs"]), **ANSWERS}.items())),
            "responses": _refusals(),
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "apiKey": {"type": "apiKey", "in": "header", "name": "x-api-key"},
            },
        },
        "security": [{"bearer": []}, {"apiKey": []}],
    }


def text() -> str:
    """The file's text."""
    return json.dumps(document(), indent=1, ensure_ascii=False) + "\n"


def _post(path: str) -> Schema:
    model, answer, summary = BODIES[path]
    content: Schema = {"application/json": {"schema": _reference(answer)}}
    if path in STREAMS:
        content[STREAMS[path]] = {"schema": {}}
    operation = _operation(path, summary, {200: {"description": "the answer", "content": content}})
    body = {"application/json": {"schema": _reference(model.__name__)}}
    return {**operation, "requestBody": {"required": True, "content": body}}


def _get(path: str, answer: str, summary: str) -> Schema:
    content = {"application/json": {"schema": _reference(answer)}}
    return _operation(path, summary, {200: {"description": summary, "content": content}})


def _own_paths() -> Schema:
    health = {"application/json": {"schema": _reference("Health")}}
    told = {"description": "the state", "content": health}
    described = {"description": "this document", "content": {"application/json": {"schema": {}}}}
    metrics = {"description": "the page", "content": {"text/plain": {"schema": TEXT}}}
    stopping = {"application/json": {"schema": _reference("Stopping")}}
    return {
        "/health": {
            "get": {
                **_operation("/health", "Whether answers can be had", {200: told, 503: told}),
                "security": [],
            }
        },
        "/metrics": {"get": _operation("/metrics", "Counts and times", {200: metrics})},
        "/openapi.json": {"get": _operation("/openapi.json", "This document", {200: described})},
        "/admin/shutdown": {
            "post": _operation(
                "/admin/shutdown", "Stop gracefully; takes the admin token",
                {202: {"description": "it stops", "content": stopping}},
            )
        },
    }  # fmt: skip


def _operation(path: str, summary: str, answers: dict[int, Schema]) -> Schema:
    refusals = {status: _error(path, status) for status in REFUSALS if status != 501}
    return {
        "summary": summary,
        "responses": {
            str(status): told for status, told in sorted({**refusals, **answers}.items())
        },
    }


def _error(path: str, status: int) -> Schema:
    api = "OpenAI"
    if path.startswith("/v1/messages"):
        api = "Anthropic"
    elif path.startswith("/api/"):
        api = "Ollama"
    return {"$ref": f"#/components/responses/{api}{status}"}


def _refusals() -> Schema:
    """Every refusal in the form of every API."""
    return {
        f"{api}{status}": {
            "description": told,
            "content": {"application/json": {"schema": _reference(f"{api}Error")}},
        }
        for api in ("OpenAI", "Anthropic", "Ollama")
        for status, told in REFUSALS.items()
    }


def _plain(schema: Any) -> Any:
    """A schema without the titles that repeat the names of its fields."""
    if isinstance(schema, list):
        return [_plain(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    return {k: _plain(v) for k, v in schema.items() if k != "title" or not isinstance(v, str)}


def _name(parameter: str) -> Schema:
    schema = {"type": "string", "minLength": 1}
    return {"parameters": [{"name": parameter, "in": "path", "required": True, "schema": schema}]}


def _reference(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


if __name__ == "__main__":
    FILE.write_text(text(), encoding="utf-8")
