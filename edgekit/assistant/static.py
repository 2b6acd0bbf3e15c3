"""The interface's own files, as they lie in the package: nothing is built, nothing comes from afar.

Only names that the package holds are served, so a path cannot lead anywhere else, and the media
types stand here because a system's registry of them may be wrong.
"""

from __future__ import annotations

import functools
from importlib import resources
from importlib.resources.abc import Traversable

from starlette.requests import Request
from starlette.responses import Response

TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".json": "application/json",
    ".svg": "image/svg+xml",
    ".png": "image/png",
}
FRESH = {"cache-control": "no-cache"}


@functools.cache
def static_files() -> dict[str, Traversable]:
    """Every file by the path of its address; "/" is the page."""
    found: dict[str, Traversable] = {}
    _collect(resources.files("edgekit.assistant.web"), "/", found)
    if "/index.html" in found:
        found["/"] = found["/index.html"]
    return found


def is_static(path: str) -> bool:
    """Whether ``path`` is one of the interface's files."""
    return path in static_files()


async def serve_static(request: Request) -> Response:
    """A file of the interface."""
    path = request.url.path
    file = static_files()[path]
    return Response(file.read_bytes(), media_type=_type(file.name), headers=FRESH)


def _collect(folder: Traversable, prefix: str, found: dict[str, Traversable]) -> None:
    for child in folder.iterdir():
        if child.is_dir():
            _collect(child, f"{prefix}{child.name}/", found)
        elif _type(child.name):
            found[prefix + child.name] = child


def _type(name: str) -> str:
    return TYPES.get(name[name.rfind(".") :], "")
