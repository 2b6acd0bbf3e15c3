"""Packs, devices and the engine: what runs, where, and why."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from edgekit.assistant.bodies import Body, PathBody, answer, parse
from edgekit.assistant.packs import KnownPack, describe_pack, user_path
from edgekit.assistant.refusals import RefusalError
from edgekit.assistant.state import Assistant, reasons
from edgekit.errors import BadInputError
from edgekit.rules import TARGETS


class EngineBody(Body):
    """What to load; what is absent stays as it is."""

    pack: str | None = None
    target: str | None = None


def routes(assistant: Assistant) -> list[BaseRoute]:
    """The routes of this module."""

    async def packs(request: Request) -> Response:
        known = await asyncio.to_thread(assistant.packs.all)
        current = assistant.engine.status.pack
        return answer([_pack(pack, current) for pack in known])

    async def add_pack(request: Request) -> Response:
        body = await parse(request, PathBody)
        return answer(_pack(await _added(assistant, body.path), assistant.engine.status.pack))

    async def pick_pack(request: Request) -> Response:
        paths = await asyncio.to_thread(assistant.window.pick, "folder")
        if not paths:
            return answer(None)
        added = await _added(assistant, paths[0])
        return answer(_pack(added, assistant.engine.status.pack))

    async def forget_pack(request: Request) -> Response:
        body = await parse(request, PathBody)
        await asyncio.to_thread(assistant.packs.forget, body.path)
        assistant.changed()
        return answer({})

    async def make_demo(request: Request) -> Response:
        assistant.demo.start()
        return answer({}, 202)

    async def devices(request: Request) -> Response:
        again = request.query_params.get("again") == "1"
        found = await assistant.devices.devices(again)
        wanted = request.query_params.get("pack")
        pack = describe_pack(user_path(wanted)) if wanted else assistant.engine.status.pack
        chosen, why = reasons(assistant, pack)
        by_target = {reason.target: reason for reason in why}
        return answer(
            [
                {
                    "target": device.target,
                    "available": device.available,
                    "chosen": device.target == chosen,
                    "detail": device.detail,
                    "reason": by_target[device.target].text if why else "",
                    "code": by_target[device.target].code if why else "",
                }
                for device in found
            ]
        )

    async def engine(request: Request) -> Response:
        body = await parse(request, EngineBody)
        settings, status = assistant.settings.current, assistant.engine.status
        if body.pack is not None:
            pack = user_path(body.pack)
        elif status.pack is not None:
            pack = status.pack.path
        elif settings.pack:
            pack = Path(settings.pack)
        else:
            raise RefusalError(409, "no_engine", "no pack is chosen; choose one first")
        target = settings.target if body.target is None else body.target
        if target and target not in TARGETS:
            raise RefusalError(
                400, "bad_target", f"{target[:40]!r} is no target; see `edgekit devices`"
            )
        known = describe_pack(pack)
        if known.problem:
            raise RefusalError(400, "bad_pack", known.problem)
        if target and target not in known.targets:
            target = "" if body.target is None else target  # a wish for another pack's device
        assistant.use(pack, target)
        return answer({}, 202)

    return [
        Route("/api/packs", packs, methods=["GET"]),
        Route("/api/packs", add_pack, methods=["POST"]),
        Route("/api/packs", forget_pack, methods=["DELETE"]),
        Route("/api/packs/pick", pick_pack, methods=["POST"]),
        Route("/api/packs/demo", make_demo, methods=["POST"]),
        Route("/api/devices", devices, methods=["GET"]),
        Route("/api/engine", engine, methods=["POST"]),
    ]


async def _added(assistant: Assistant, path: str) -> KnownPack:
    try:
        added = await asyncio.to_thread(assistant.packs.add, path)
    except BadInputError as error:
        raise RefusalError(400, "bad_pack", str(error)) from error
    assistant.changed()
    return added


def _pack(pack: KnownPack, current: KnownPack | None) -> dict[str, Any]:
    return {
        "path": str(pack.path), "name": pack.name, "version": pack.version,
        "license": pack.license, "parameters": pack.parameters, "bytes": pack.bytes,
        "targets": list(pack.targets), "problem": pack.problem or None,
        "current": current is not None and current.path == pack.path,
    }  # fmt: skip
