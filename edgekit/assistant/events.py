"""Events for the interface: a log that can be read again, and a bus for what changes meanwhile.

A :class:`Log` keeps every event of one answer, so that a page that was closed or lost its
connection reads on from the event it saw last. The :class:`Bus` tells every open page about
states: of each name only the newest is kept for a page that is slow. Both live in the event loop.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

from starlette.responses import StreamingResponse

Event = tuple[str, Any]
HEARTBEAT = 20.0  # seconds of silence after which a comment keeps the connection known


class Log:
    """The events of one answer, numbered from 0."""

    def __init__(self) -> None:
        self._events: list[Event | None] = []
        self._replaceable: dict[str, int] = {}
        self._changed = asyncio.Event()
        self.closed = False

    def add(self, name: str, data: Any, replaces: str = "") -> None:
        """Append an event; nothing after :meth:`close`.

        Only the newest event that ``replaces`` the same thing is kept for who reads later.
        """
        if self.closed:
            return
        if replaces:
            old = self._replaceable.get(replaces)
            if old is not None:
                self._events[old] = None
            self._replaceable[replaces] = len(self._events)
        self._events.append((name, data))
        self._wake()

    def close(self) -> None:
        """No more events will come; readers end."""
        self.closed = True
        self._wake()

    async def read(self, start: int = 0) -> AsyncIterator[bytes]:
        """Server-sent events from number ``start`` until the log is closed."""
        position = max(start, 0)
        while True:
            changed = self._changed
            while position < len(self._events):
                event = self._events[position]
                if event is not None:
                    yield encode(*event, position)
                position += 1
            if self.closed:
                return
            if changed is not self._changed:
                continue  # more came while the reader was busy
            try:
                await asyncio.wait_for(changed.wait(), HEARTBEAT)
            except TimeoutError:
                yield b": still here\n\n"

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()


class Bus:
    """Tells every open page what has changed."""

    def __init__(self) -> None:
        self._pages: set[_Page] = set()
        self._closed = False

    @property
    def pages(self) -> int:
        """How many pages listen."""
        return len(self._pages)

    def publish(self, name: str, make: Callable[[], Any]) -> None:
        """Announce ``name``; ``make`` gives its data when a page is ready to be told."""
        for page in self._pages:
            page.pending[name] = make
            page.wake.set()

    def close(self) -> None:
        """End every page's stream."""
        self._closed = True
        for page in self._pages:
            page.wake.set()

    async def listen(self, *first: tuple[str, Callable[[], Any]]) -> AsyncIterator[bytes]:
        """Server-sent events, beginning with ``first``."""
        page = _Page(dict(first))
        self._pages.add(page)
        try:
            while not self._closed:
                pending, page.pending = page.pending, {}
                for name, make in pending.items():
                    yield encode(name, make())
                if page.pending or self._closed:
                    continue
                page.wake.clear()
                try:
                    await asyncio.wait_for(page.wake.wait(), HEARTBEAT)
                except TimeoutError:
                    yield b": still here\n\n"
        finally:
            self._pages.discard(page)


class _Page:
    def __init__(self, pending: dict[str, Callable[[], Any]]) -> None:
        self.pending = pending
        self.wake = asyncio.Event()


def encode(name: str, data: Any, number: int | None = None) -> bytes:
    """One server-sent event; JSON keeps its data on one line."""
    head = "" if number is None else f"id: {number}\n"
    return f"{head}event: {name}\ndata: {json.dumps(data, ensure_ascii=False)}\n\n".encode()


def stream(events: AsyncIterator[bytes]) -> StreamingResponse:
    """The answer that carries events."""
    return StreamingResponse(events, media_type="text/event-stream")
