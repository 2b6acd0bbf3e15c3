"""Named assistants, prompts and settings."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from edgekit.assistant import autostart
from edgekit.assistant.bodies import answer, json_object
from edgekit.assistant.library import Shelf
from edgekit.assistant.refusals import RefusalError
from edgekit.assistant.state import Assistant, settings_state

OF_THE_ENGINE = ("endpoint_enabled", "system_memory_limit_gb")  # the model's process knows them
ELSEWHERE = ("data_folder",)  # shown among the settings, changed with --data-dir


def routes(assistant: Assistant) -> list[BaseRoute]:
    """The routes of this module."""

    async def settings(request: Request) -> Response:
        return answer(settings_state(assistant))

    async def change_settings(request: Request) -> Response:
        values = await json_object(request)
        values = {key: value for key, value in values.items() if key not in ELSEWHERE}
        if values.get("endpoint_enabled") and (why := assistant.policy.refuses_endpoint()):
            raise RefusalError(403, "forbidden_by_policy", why)
        if values.get("autostart") and (why := assistant.policy.refuses_autostart()):
            raise RefusalError(403, "forbidden_by_policy", why)
        before = assistant.settings.current
        after = await asyncio.to_thread(assistant.settings.change, values)
        if "autostart" in values:
            await asyncio.to_thread(_set_autostart, assistant, after.autostart)
        if before.embedding_pack != after.embedding_pack:
            assistant.begin(assistant.reopen_documents())
        if (before.pack, before.target) != (after.pack, after.target) and after.pack:
            assistant.engine.load(Path(after.pack), after.target)
        elif any(getattr(before, name) != getattr(after, name) for name in OF_THE_ENGINE):
            assistant.reload_engine()
        assistant.changed()
        return answer(settings_state(assistant))

    return [
        *_shelf("/api/assistants", assistant.library.assistants),
        *_shelf("/api/prompts", assistant.library.prompts),
        Route("/api/settings", settings, methods=["GET"]),
        Route("/api/settings", change_settings, methods=["PUT"]),
    ]


def _shelf(path: str, shelf: Shelf[Any]) -> list[BaseRoute]:
    async def entries(request: Request) -> Response:
        return answer(shelf.all())

    async def add(request: Request) -> Response:
        return answer(await asyncio.to_thread(shelf.add, await json_object(request)), 201)

    async def change(request: Request) -> Response:
        entry, values = str(request.path_params["id"]), await json_object(request)
        return answer(await asyncio.to_thread(shelf.change, entry, values))

    async def remove(request: Request) -> Response:
        await asyncio.to_thread(shelf.remove, str(request.path_params["id"]))
        return answer({})

    return [
        Route(path, entries, methods=["GET"]),
        Route(path, add, methods=["POST"]),
        Route(path + "/{id}", change, methods=["PUT"]),
        Route(path + "/{id}", remove, methods=["DELETE"]),
    ]


def _set_autostart(assistant: Assistant, wanted: bool) -> None:
    if wanted:
        autostart.enable(assistant.folders.command(), assistant.policy)
    else:
        autostart.disable()
