"""Conversations, folders, search, export and import."""

from __future__ import annotations

import asyncio
import re
from typing import Literal
from urllib.parse import quote

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from edgekit.assistant import transfer
from edgekit.assistant.answer import shown
from edgekit.assistant.bodies import Body, answer, id_of, json_object, parse, plain, validated
from edgekit.assistant.refusals import RefusalError
from edgekit.assistant.state import Assistant
from edgekit.errors import BadInputError

LONGEST_TITLE = 500
LONGEST_QUERY = 1000


class ConversationBody(Body):
    """A new conversation, or what changes of one."""

    title: str = ""
    folder_id: str | None = None
    assistant_id: str | None = None
    pinned: bool = False


class FolderBody(Body):
    """A folder's name."""

    name: str


class ImportBody(Body):
    """An exported history."""

    format: Literal["json", "markdown"]
    text: str


def routes(assistant: Assistant) -> list[BaseRoute]:
    """The routes of this module."""
    history = assistant.history

    async def conversations(request: Request) -> Response:
        folder = request.query_params.get("folder") or None
        return answer(await asyncio.to_thread(history.conversations, folder))

    async def create(request: Request) -> Response:
        body = await parse(request, ConversationBody)
        made = await asyncio.to_thread(
            history.create, body.title[:LONGEST_TITLE], body.folder_id, body.assistant_id
        )
        return answer(made, 201)

    async def conversation(request: Request) -> Response:
        number = id_of(request, "conversation")
        found = await asyncio.to_thread(history.conversation, number)
        messages = await asyncio.to_thread(history.messages, number)
        running = assistant.turns.running(number)
        return answer(
            {
                "conversation": plain(found),
                "messages": await asyncio.to_thread(lambda: [shown(m) for m in messages]),
                "running": [{"turn_id": t.id, "answer_id": t.answer.id} for t in running],
            }
        )

    async def change(request: Request) -> Response:
        number = id_of(request, "conversation")
        values = await json_object(request)
        body = validated(values, ConversationBody)
        changes = {k: getattr(body, k) for k in values if k in ConversationBody.model_fields}
        if "title" in changes:
            changes["title"] = changes["title"][:LONGEST_TITLE]
        return answer(await asyncio.to_thread(lambda: history.update(number, **changes)))

    async def delete(request: Request) -> Response:
        number = id_of(request, "conversation")
        await assistant.turns.drop(number)
        await asyncio.to_thread(history.delete, number)
        return answer({})

    async def search(request: Request) -> Response:
        query = request.query_params.get("q", "")[:LONGEST_QUERY]
        return answer(await asyncio.to_thread(history.search, query))

    async def export_one(request: Request) -> Response:
        number = id_of(request, "conversation")
        found = await asyncio.to_thread(history.conversation, number)
        if request.query_params.get("format", "markdown") == "json":
            text = await asyncio.to_thread(transfer.to_json, history, [number])
            return _download(text, found.title, "json", "application/json")
        text = await asyncio.to_thread(transfer.to_markdown, history, number)
        return _download(text, found.title, "md", "text/markdown; charset=utf-8")

    async def export_all(request: Request) -> Response:
        text = await asyncio.to_thread(transfer.to_json, history, None)
        return _download(text, "edgekit-history", "json", "application/json")

    async def take_in(request: Request) -> Response:
        body = await parse(request, ImportBody)
        read = transfer.from_json if body.format == "json" else transfer.from_markdown
        try:
            ids = await asyncio.to_thread(read, history, body.text)
        except BadInputError as error:
            raise RefusalError(400, "bad_import", str(error)) from error
        return answer({"imported": len(ids), "conversation_ids": ids})

    async def folders(request: Request) -> Response:
        return answer(await asyncio.to_thread(history.folders))

    async def create_folder(request: Request) -> Response:
        body = await parse(request, FolderBody)
        return answer(await asyncio.to_thread(history.create_folder, _name(body)), 201)

    async def rename_folder(request: Request) -> Response:
        body = await parse(request, FolderBody)
        number = id_of(request, "folder")
        return answer(await asyncio.to_thread(history.rename_folder, number, _name(body)))

    async def delete_folder(request: Request) -> Response:
        await asyncio.to_thread(history.delete_folder, id_of(request, "folder"))
        return answer({})

    return [
        Route("/api/conversations", conversations, methods=["GET"]),
        Route("/api/conversations", create, methods=["POST"]),
        Route("/api/conversations/{id}", conversation, methods=["GET"]),
        Route("/api/conversations/{id}", change, methods=["PATCH"]),
        Route("/api/conversations/{id}", delete, methods=["DELETE"]),
        Route("/api/conversations/{id}/export", export_one, methods=["GET"]),
        Route("/api/search", search, methods=["GET"]),
        Route("/api/export", export_all, methods=["GET"]),
        Route("/api/import", take_in, methods=["POST"]),
        Route("/api/folders", folders, methods=["GET"]),
        Route("/api/folders", create_folder, methods=["POST"]),
        Route("/api/folders/{id}", rename_folder, methods=["PATCH"]),
        Route("/api/folders/{id}", delete_folder, methods=["DELETE"]),
    ]


def _name(body: FolderBody) -> str:
    name = " ".join(body.name.split())[:LONGEST_TITLE]
    if not name:
        raise RefusalError(400, "empty", "a folder needs a name")
    return name


def _download(text: str | bytes, title: str, ending: str, kind: str) -> Response:
    """A file to save; its name is safe on every system, whatever the title holds."""
    name = re.sub(r"[^\w\- ]+", " ", title).strip()[:80] or "conversation"
    encoded = quote(f"{' '.join(name.split())}.{ending}")
    disposition = f"attachment; filename=\"conversation.{ending}\"; filename*=UTF-8''{encoded}"
    return Response(text, media_type=kind, headers={"content-disposition": disposition})
