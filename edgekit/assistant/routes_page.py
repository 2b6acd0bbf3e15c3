"""The page: its files, its session, the state and its events, and the end of the program."""

from __future__ import annotations

import asyncio
import webbrowser
from pathlib import Path
from urllib.parse import urlsplit

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from edgekit.assistant.bodies import Body, answer, parse
from edgekit.assistant.events import stream
from edgekit.assistant.peer import is_same_user
from edgekit.assistant.refusals import RefusalError
from edgekit.assistant.state import Assistant, snapshot
from edgekit.assistant.static import serve_static, static_files

SCHEMES = ("http", "https", "mailto")
LONGEST_LINK = 4096


class SessionBody(Body):
    """A one-time token."""

    token: str


class LinkBody(Body):
    """A link that the person wants to open."""

    url: str


class RaiseBody(Body):
    """What a second start wishes for."""

    pack: str = ""
    target: str = ""
    show: bool = True


def routes(assistant: Assistant) -> list[BaseRoute]:
    """The routes of this module."""

    async def session(request: Request) -> Response:
        body = await parse(request, SessionBody)
        if not is_same_user(request.client, request.scope.get("server")):
            raise RefusalError(403, "forbidden", "another user of this machine may not open this")
        cookie = assistant.sessions.open(body.token)
        if cookie is None:
            raise RefusalError(
                401, "unauthorised", "this address was used or is too old; open the assistant again"
            )
        response = answer({})
        response.headers["set-cookie"] = cookie
        return response

    async def state(request: Request) -> Response:
        return answer(snapshot(assistant))

    async def events(request: Request) -> Response:
        return stream(assistant.bus.listen(("state", lambda: snapshot(assistant))))

    async def open_link(request: Request) -> Response:
        body = await parse(request, LinkBody)
        await asyncio.to_thread(webbrowser.open, checked_link(body.url))
        return answer({})

    async def dismiss_recovery(request: Request) -> Response:
        assistant.recovery = None
        assistant.notices.clear()
        assistant.changed()
        return answer({})

    async def quit_program(request: Request) -> Response:
        assistant.quit()
        return answer({}, 202)

    async def raise_window(request: Request) -> Response:
        body = await parse(request, RaiseBody)
        if body.pack:
            assistant.use(Path(body.pack), body.target)
        assistant.bus.publish("raise", dict)
        if body.show:
            await asyncio.to_thread(assistant.window.bring_forward, assistant.address)
        return answer({"url": assistant.address(), "window": assistant.window.kind})

    return [
        *(Route(path, serve_static, methods=["GET"]) for path in static_files()),
        Route("/api/session", session, methods=["POST"]),
        Route("/api/state", state, methods=["GET"]),
        Route("/api/events", events, methods=["GET"]),
        Route("/api/open-link", open_link, methods=["POST"]),
        Route("/api/recovery/dismiss", dismiss_recovery, methods=["POST"]),
        Route("/api/quit", quit_program, methods=["POST"]),
        Route("/api/instance/raise", raise_window, methods=["POST"]),
    ]


def checked_link(url: str) -> str:
    """A link that may be given to the system's browser.

    Raises:
        RefusalError: it is something else than a web or mail address.
    """
    wrong = RefusalError(400, "bad_link", "only web and mail addresses can be opened")
    if len(url) > LONGEST_LINK or any(ord(c) < 33 or ord(c) == 127 for c in url):
        raise wrong
    try:
        parts = urlsplit(url)
        parts.port  # noqa: B018, refuses what is no number
    except ValueError:
        raise wrong from None
    if parts.scheme.lower() not in SCHEMES:
        raise wrong
    if parts.scheme.lower() != "mailto" and not parts.hostname:
        raise wrong
    return url
