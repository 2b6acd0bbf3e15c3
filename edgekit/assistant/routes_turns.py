"""Asking: a turn's events as a stream, stopping it, and a person's word about its tools."""

from __future__ import annotations

from typing import Literal

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from edgekit.assistant.bodies import Body, answer, id_of, parse
from edgekit.assistant.events import stream
from edgekit.assistant.local_answer import LocalAnswer, Wish, origin_of
from edgekit.assistant.refusals import RefusalError
from edgekit.assistant.state import Assistant
from edgekit.rules import TARGETS


class TurnBody(Body):
    """A question, or an answer to make again."""

    text: str = ""
    parent_id: str | None = None
    regenerate: str | None = None
    target: str = ""
    assistant_id: str | None = None
    documents: bool = False
    tools: bool = False


class ConsentBody(Body):
    """A person's word."""

    allow: Literal["once", "always", "deny"]


def routes(assistant: Assistant) -> list[BaseRoute]:
    """The routes of this module."""
    turns = assistant.turns

    async def ask(request: Request) -> Response:
        conversation = id_of(request, "conversation")
        body = await parse(request, TurnBody)
        if body.target and body.target not in TARGETS:
            raise RefusalError(400, "bad_target", f"{body.target[:40]!r} is no target")
        if assistant.engine.status.state == "none":
            raise RefusalError(409, "no_engine", "no model is loaded; choose a pack first")
        if body.regenerate:
            question, new = await turns.question_of(conversation, body.regenerate), False
        else:
            question, new = await turns.ask(conversation, body.parent_id, body.text)
        wish = Wish(body.target, body.assistant_id, body.documents, body.tools)
        origin = origin_of(assistant.engine.status)
        turn = await turns.begin(question, new, origin, LocalAnswer(assistant, wish))
        return stream(turn.log.read())

    async def events(request: Request) -> Response:
        """``?from=N`` or the header of a browser that reconnects: the next event to send."""
        turn = turns.find(id_of(request, "answer"))
        last = request.headers.get("last-event-id", "")
        start = request.query_params.get("from", "")
        first = int(last) + 1 if last.isdecimal() else int(start) if start.isdecimal() else 0
        return stream(turn.log.read(first))

    async def stop(request: Request) -> Response:
        turns.stop(id_of(request, "answer"))
        return answer({})

    async def consent(request: Request) -> Response:
        body = await parse(request, ConsentBody)
        turns.decide(str(request.path_params["id"]), body.allow)
        return answer({})

    return [
        Route("/api/conversations/{id}/turns", ask, methods=["POST"]),
        Route("/api/turns/{id}/events", events, methods=["GET"]),
        Route("/api/turns/{id}/stop", stop, methods=["POST"]),
        Route("/api/consents/{id}", consent, methods=["POST"]),
    ]
