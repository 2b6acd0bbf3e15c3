"""The cloud by consent: configuring, the preview of exactly what leaves, sending, the log."""

from __future__ import annotations

import asyncio
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from edgekit.assistant.bodies import ID, Body, answer, parse, plain
from edgekit.assistant.cloud import Preview
from edgekit.assistant.events import stream
from edgekit.assistant.refusals import RefusalError, not_found
from edgekit.assistant.remote_answer import CloudWish, Remote
from edgekit.assistant.state import Assistant, cloud_state
from edgekit.errors import BadInputError


class CloudBody(Body):
    """Where the cloud model is; an absent key keeps the one that is there."""

    name: str
    base_url: str
    model: str
    key: str | None = None


class PreviewBody(Body):
    """What would be asked."""

    conversation_id: str
    parent_id: str | None = None
    text: str = ""
    redact: bool = True
    include_history: bool = True
    documents: bool = False
    assistant_id: str | None = None


class SendBody(Body):
    """Which preview to send."""

    preview_id: str
    conversation_id: str


def routes(assistant: Assistant) -> list[BaseRoute]:
    """The routes of this module."""
    cloud, remote = assistant.cloud, Remote(assistant)

    async def configuration(request: Request) -> Response:
        return answer(_configuration(assistant))

    async def configure(request: Request) -> Response:
        body = await parse(request, CloudBody)
        if why := assistant.policy.refuses_cloud():
            raise RefusalError(403, "forbidden_by_policy", why)
        await asyncio.to_thread(cloud.set, body.name, body.base_url, body.model, body.key)
        assistant.changed()
        return answer(_configuration(assistant))

    async def forget(request: Request) -> Response:
        await asyncio.to_thread(cloud.clear)
        assistant.changed()
        return answer({})

    async def preview(request: Request) -> Response:
        body = await parse(request, PreviewBody)
        _allowed(assistant)
        if not ID.fullmatch(body.conversation_id):
            raise not_found("conversation")
        return answer(_preview(await remote.preview(CloudWish(**body.model_dump()))))

    async def send(request: Request) -> Response:
        body = await parse(request, SendBody)
        _allowed(assistant)
        try:
            turn = await remote.send(body.preview_id, body.conversation_id)
        except BadInputError as error:
            raise RefusalError(409, "preview_expired", str(error)) from error
        return stream(turn.log.read())

    async def log(request: Request) -> Response:
        config = cloud.configured()
        name = config.name if config else ""
        entries = await asyncio.to_thread(cloud.log)
        return answer(
            [{"name": name, "status": entry.outcome, **plain(entry)} for entry in entries]
        )

    return [
        Route("/api/cloud", configuration, methods=["GET"]),
        Route("/api/cloud", configure, methods=["PUT"]),
        Route("/api/cloud", forget, methods=["DELETE"]),
        Route("/api/cloud/preview", preview, methods=["POST"]),
        Route("/api/cloud/send", send, methods=["POST"]),
        Route("/api/cloud/log", log, methods=["GET"]),
    ]


def _configuration(assistant: Assistant) -> dict[str, Any]:
    cloud = assistant.cloud
    config = cloud.configured()
    return {
        **cloud_state(assistant),
        "base_url": config.base_url if config else "",
        "has_key": cloud.has_key(),
        "policy": assistant.policy.cloud,
        "problem": cloud.problem,
        "log_path": str(assistant.folders.data / "cloud-log.jsonl"),
    }


def _allowed(assistant: Assistant) -> None:
    """The owner's word first, in the words that the interface translates."""
    config = assistant.cloud.configured()
    if why := assistant.policy.refuses_cloud(config.host if config else ""):
        raise RefusalError(403, "forbidden_by_policy", why)


def _preview(preview: Preview) -> dict[str, Any]:
    return {
        "id": preview.id,
        "url": preview.url,
        "headers": dict(preview.headers),
        "body": preview.body.decode("utf-8", "replace"),
        "bytes": preview.size,
        "sha256": preview.sha256,
        "redactions": plain(preview.redactions),
        "found": plain(preview.found),
        "parts": [_part(part.part, part.text) for part in preview.parts],
        "expires": preview.expires,
    }


def _part(part: str, text: str) -> dict[str, Any]:
    """A part as the page shows it."""
    kind, _, file = part.partition(" from ")
    known = {"instructions": "system"}
    return {"kind": known.get(kind, kind), "text": text, "file": file or None}
