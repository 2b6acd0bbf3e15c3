"""What a route needs of a request: its JSON as a checked model, its ids, and a JSON answer."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError
from starlette.requests import Request
from starlette.responses import JSONResponse

from edgekit.assistant.refusals import RefusalError, not_found

ID = re.compile(r"[0-9a-f]{16}")
M = TypeVar("M", bound="Body")


class Body(BaseModel):
    """Base of request bodies; fields that nobody knows are ignored."""

    model_config = ConfigDict(extra="ignore", frozen=True)


class PathBody(Body):
    """A path on this machine."""

    path: str


async def parse(request: Request, model: type[M]) -> M:
    """The body as ``model``.

    Raises:
        RefusalError: it is not JSON, or a field is missing or wrong; the sentence names it.
    """
    return validated(await json_object(request), model)


async def json_object(request: Request) -> dict[str, Any]:
    """The body as a JSON object; an empty body is an empty object."""
    raw = await request.body()
    try:
        value = json.loads(raw) if raw.strip() else {}
    except (ValueError, RecursionError):
        raise RefusalError(400, "bad_request", "the body is no JSON; reload the page") from None
    if not isinstance(value, dict):
        raise RefusalError(400, "bad_request", "the body is not a JSON object; reload the page")
    return value


def validated(values: dict[str, Any], model: type[M]) -> M:
    """``values`` as ``model``."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = ".".join(map(str, first["loc"])) or "the body"
        sentence = f"{field}: {first['msg'].lower()}; correct it"
        raise RefusalError(400, "bad_request", sentence) from None


def id_of(request: Request, what: str, name: str = "id") -> str:
    """An id of the path.

    Raises:
        RefusalError: it cannot be the id of anything.
    """
    value = str(request.path_params[name])
    if not ID.fullmatch(value):
        raise not_found(what)
    return value


def answer(value: Any, status: int = 200) -> JSONResponse:
    """A JSON answer of dataclasses, pydantic models and plain values."""
    return JSONResponse(plain(value), status_code=status)


def plain(value: Any) -> Any:
    """Records as JSON values."""
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value
