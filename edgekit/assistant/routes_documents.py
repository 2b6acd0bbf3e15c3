"""The person's documents: choosing, uploading, looking at a passage."""

from __future__ import annotations

import asyncio
import re
import secrets
from pathlib import Path
from typing import Any, Literal

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from edgekit.assistant.bodies import Body, PathBody, answer, id_of, parse, plain
from edgekit.assistant.packs import user_path
from edgekit.assistant.refusals import RefusalError
from edgekit.assistant.state import Assistant
from edgekit.atomic import disk_errors
from edgekit.local.guard import MEGABYTE
from edgekit.local.private import private_directory

UPLOAD_PATH = "/api/documents/upload"
UPLOAD_LIMIT = 200 * MEGABYTE
LONGEST_NAME = 120  # characters
RESERVED = re.compile(r"(?i)(con|prn|aux|nul|com\d|lpt\d)(\.|$)")


class PickBody(Body):
    """What to choose."""

    kind: Literal["file", "folder"] = "file"


def routes(assistant: Assistant) -> list[BaseRoute]:
    """The routes of this module."""
    desk = assistant.documents

    async def overview(request: Request) -> Response:
        return answer(await desk.look())

    async def add(request: Request) -> Response:
        body = await parse(request, PathBody)
        source = await asyncio.to_thread(desk.add, body.path)
        await desk.look()
        return answer(source, 201)

    async def pick(request: Request) -> Response:
        body = await parse(request, PickBody)
        paths = await asyncio.to_thread(assistant.window.pick, body.kind)
        sources = [plain(await asyncio.to_thread(desk.add, path)) for path in paths]
        await desk.look()
        return answer(sources, 201)

    async def upload(request: Request) -> Response:
        name = safe_name(request.query_params.get("name", ""))
        folder = private_directory(desk.uploads / secrets.token_hex(8))
        try:
            await _save(request, folder / name)
            source = await asyncio.to_thread(desk.add, str(folder / name))
        except BaseException:
            _remove(folder)
            raise
        await desk.look()
        return answer(source, 201)

    async def remove(request: Request) -> Response:
        number = id_of(request, "document")
        path = next((s["path"] for s in desk.overview()["sources"] if s["id"] == number), "")
        await asyncio.to_thread(desk.library.remove, number)
        if path and Path(path).parent.parent == desk.uploads.resolve():
            await asyncio.to_thread(_remove, Path(path).parent)  # it was ours alone
        await desk.look()
        return answer({})

    async def refresh(request: Request) -> Response:
        await asyncio.to_thread(desk.library.refresh, id_of(request, "document"))
        await desk.look()
        return answer({}, 202)

    async def passage(request: Request) -> Response:
        found = await asyncio.to_thread(desk.passage, str(request.path_params["id"])[:64])
        inner = found.passage
        return answer(
            {
                "file": Path(inner.file).name, "path": inner.file, "page": inner.page,
                "heading": inner.heading, "before": found.before, "text": inner.text,
                "after": found.after,
            }
        )  # fmt: skip

    async def embedding(request: Request) -> Response:
        body = await parse(request, PathBody)
        path = str(user_path(body.path)) if body.path else ""
        if path and not Path(path).is_dir():
            raise RefusalError(400, "bad_pack", f"{path}: no such folder; choose an embedding pack")
        await asyncio.to_thread(assistant.settings.change, {"embedding_pack": path})
        assistant.begin(assistant.reopen_documents())
        return answer({}, 202)

    return [
        Route("/api/documents", overview, methods=["GET"]),
        Route("/api/documents", add, methods=["POST"]),
        Route(UPLOAD_PATH, upload, methods=["POST"]),
        Route("/api/documents/pick", pick, methods=["POST"]),
        Route("/api/documents/embedding", embedding, methods=["POST"]),
        Route("/api/documents/{id}", remove, methods=["DELETE"]),
        Route("/api/documents/{id}/refresh", refresh, methods=["POST"]),
        Route("/api/passages/{id}", passage, methods=["GET"]),
    ]


def safe_name(name: str) -> str:
    """A file name that stays in its folder and that every system can store; keeps its ending.

    Raises:
        RefusalError: nothing is left of it.
    """
    last = re.split(r"[/\\]", name)[-1]
    kept = re.sub(r'[\x00-\x1f<>:"|?*\x7f]', "_", last).strip(" .")
    if RESERVED.match(kept):
        kept = f"_{kept}"
    stem, dot, ending = kept.rpartition(".")
    if not kept or not (stem or kept):
        raise RefusalError(400, "bad_name", "the file has no name; rename it")
    if not dot:
        return kept[:LONGEST_NAME]
    return f"{stem[: LONGEST_NAME - len(ending[:16]) - 1]}.{ending[:16]}"


async def _save(request: Request, path: Path) -> None:
    """Write the body as it comes; the gate bounds it."""
    with disk_errors(path), path.open("xb") as file:
        async for chunk in request.stream():
            await asyncio.to_thread(file.write, chunk)


def _remove(folder: Path) -> Any:
    import shutil

    shutil.rmtree(folder, ignore_errors=True)
