"""The web application behind the window: every route, behind one gate.

The page and its files are public and hold no data. Everything else needs the cookie of a session
(:mod:`edgekit.assistant.sessions`); ``/api/instance/`` needs the token of the private instance
file instead, which a second start of the program reads.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp

from edgekit.assistant import (
    routes_cloud,
    routes_documents,
    routes_engine,
    routes_history,
    routes_library,
    routes_page,
    routes_tools,
    routes_turns,
)
from edgekit.assistant.bodies import answer
from edgekit.assistant.refusals import refusal_of
from edgekit.assistant.routes_documents import UPLOAD_LIMIT, UPLOAD_PATH
from edgekit.assistant.state import Assistant
from edgekit.assistant.static import is_static
from edgekit.errors import EdgekitError
from edgekit.local.guard import HEADERS, MEGABYTE, Bearer, Guard, Rules
from edgekit.local.listen import Listener

CSP = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
BODY_LIMIT = 32 * MEGABYTE  # an import of a history is the largest body
MODULES = (
    routes_page, routes_engine, routes_history, routes_turns, routes_library, routes_documents,
    routes_cloud, routes_tools,
)  # fmt: skip


def make_app(
    assistant: Assistant,
    listener: Listener,
    token: str,
    lifespan: Callable[[Any], AbstractAsyncContextManager[None]],
) -> ASGIApp:
    """The application for one listener; ``token`` is that of the instance file."""
    app = Starlette(
        routes=[route for module in MODULES for route in module.routes(assistant)],
        lifespan=lifespan,
        exception_handlers={
            HTTPException: _http_error,
            EdgekitError: _refused,
            sqlite3.Error: _refused,
            Exception: _refused,
        },
    )
    rules = Rules(
        hosts=listener.hosts,
        origins=listener.origins,
        check=assistant.sessions.cookie,
        public=lambda path: is_static(path) or path == "/api/session",
        admin=("/api/instance/",),
        admin_check=Bearer([token]),
        body_limit=BODY_LIMIT,
        raw_paths={UPLOAD_PATH: UPLOAD_LIMIT},
        headers={**HEADERS, "content-security-policy": CSP},
        error=_gate_error,
    )
    return Guard(app, rules)


def _gate_error(path: str, status: int, code: str, message: str) -> dict[str, Any]:
    """A refusal of the gate, in the words of this API."""
    if status == 401:
        code = "unauthorised"
        message = "this page has no session; open the assistant again with `edgekit assistant`"
    return {"error": {"code": code, "message": message}}


async def _refused(request: Request, error: Exception) -> Response:
    refusal = refusal_of(error)
    body = {"error": {"code": refusal.code, "message": str(refusal)}}
    return answer(body, refusal.status)


async def _http_error(request: Request, error: Exception) -> Response:
    """What Starlette itself refuses: paths and methods that are not there."""
    assert isinstance(error, HTTPException)
    code = "not_found" if error.status_code == 404 else "bad_request"
    message = getattr(error, "detail", "") or "this cannot be done"
    code = getattr(error, "code", code)
    return answer({"error": {"code": code, "message": str(message)}}, error.status_code)
