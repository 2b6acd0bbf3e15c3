"""Failures of a request, each in the form that the client of its API expects."""

from __future__ import annotations

import traceback
from typing import Any

from edgekit.errors import BadInputError, EdgekitError, OutOfResourcesError

ANTHROPIC_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    405: "invalid_request_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}
OPENAI_TYPES = {403: "permission_error", 429: "rate_limit_error", 500: "server_error",
                501: "server_error", 503: "server_error"}  # fmt: skip


class ApiError(Exception):
    """A request that gets no answer.

    ``param`` names the field at fault; ``retry_after`` are seconds after which it may succeed,
    None when trying again is of no use.
    """

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        param: str | None = None,
        retry_after: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.code, self.message = status, code, message
        self.param, self.retry_after = param, retry_after


def bad_request(message: str, param: str | None = None, code: str = "invalid_value") -> ApiError:
    """The error for a field that cannot be followed."""
    return ApiError(400, code, message, param)


def as_api_error(error: BaseException) -> ApiError:
    """What a client is told of a failure inside."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, BadInputError):
        return ApiError(400, "invalid_value", str(error))
    if isinstance(error, OutOfResourcesError):
        return ApiError(503, "out_of_memory", str(error), retry_after=5)
    if isinstance(error, EdgekitError):
        return ApiError(503, "engine_failed", str(error), retry_after=5)
    return ApiError(500, "internal_error", "the server failed on this; see its standard error")


def stream_error(error: Exception) -> ApiError:
    """As :func:`as_api_error`, where an answer has begun; a defect goes to standard error."""
    told = as_api_error(error)
    if told.status == 500:
        traceback.print_exception(error)
    return told


def error_body(
    path: str, status: int, code: str, message: str, param: str | None = None
) -> dict[str, Any]:
    """The JSON of an error for the API that ``path`` belongs to."""
    if path.startswith("/v1/messages"):
        kind = ANTHROPIC_TYPES.get(
            status, "api_error" if status >= 500 else "invalid_request_error"
        )
        return {"type": "error", "error": {"type": kind, "message": message}}
    if path.startswith("/api/"):
        return {"error": message}
    kind = OPENAI_TYPES.get(status, "invalid_request_error")
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}
