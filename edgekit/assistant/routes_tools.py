"""Tool servers: which there are, adding and removing them, agreeing to run their command."""

from __future__ import annotations

import asyncio
from typing import Any

from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from edgekit.assistant.bodies import Body, answer, parse
from edgekit.assistant.refusals import RefusalError, not_found
from edgekit.assistant.state import Assistant
from edgekit.assistant.tools.toolbox import ServerInfo


class ServerBody(Body):
    """A tool server; its command word by word."""

    name: str
    command: list[str]
    env: dict[str, str] = Field(default_factory=dict)


class ConfirmBody(Body):
    """Whether a person saw the whole command and agrees to run it."""

    confirm: bool = False


def routes(assistant: Assistant) -> list[BaseRoute]:
    """The routes of this module."""
    tools = assistant.tools

    async def servers(request: Request) -> Response:
        return answer([_server(assistant, s) for s in tools.servers()])

    async def add(request: Request) -> Response:
        body = await parse(request, ServerBody)
        if why := assistant.policy.refuses_mcp():
            raise RefusalError(403, "forbidden_by_policy", why)
        info = await asyncio.to_thread(tools.add_server, body.name, body.command, body.env)
        return answer(_server(assistant, info), 201)

    async def remove(request: Request) -> Response:
        await tools.remove_server(_known(request))
        return answer({})

    async def list_tools(request: Request) -> Response:
        body = await parse(request, ConfirmBody)
        found = await tools.tools(_known(request), body.confirm)
        return answer(
            [
                {"name": t.tool, "description": t.description, "input_schema": t.schema}
                for t in found
            ]
        )

    async def forget_consents(request: Request) -> Response:
        tools.forget_consents(_known(request))
        return answer({})

    def _known(request: Request) -> str:
        name = str(request.path_params["name"])
        if name not in {server.name for server in tools.servers()}:
            raise not_found("tool server")
        return name

    return [
        Route("/api/mcp", servers, methods=["GET"]),
        Route("/api/mcp", add, methods=["POST"]),
        Route("/api/mcp/{name}", remove, methods=["DELETE"]),
        Route("/api/mcp/{name}/tools", list_tools, methods=["POST"]),
        Route("/api/mcp/{name}/always", forget_consents, methods=["DELETE"]),
    ]


def _server(assistant: Assistant, info: ServerInfo) -> dict[str, Any]:
    always = [t.tool for t in info.tools if not assistant.tools.needs_consent(t.name)]
    return {
        "name": info.name,
        "command": list(info.command),
        "resolved": list(info.resolved),
        "env": list(info.variables),
        "confirmed": info.confirmed,
        "state": info.state,
        "running": info.state == "ready",
        "always": always,
        "problem": info.problem or None,
    }
