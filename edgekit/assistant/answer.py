"""An answer being written: its words reach the page as blocks of safe HTML, and the disk.

Words are gathered for a moment before they are rendered, so that a fast model does not render the
same paragraph two hundred times a second. About once a second the words so far are saved, so a
process that is killed loses no more than that.
"""

from __future__ import annotations

import asyncio
import dataclasses
from typing import Any

from edgekit.assistant.bodies import plain
from edgekit.assistant.events import Log
from edgekit.assistant.history import History, Message
from edgekit.assistant.history_records import State
from edgekit.assistant.markdown import StreamRenderer, render
from edgekit.assistant.refusals import refusal_of

RENDER_SECONDS = 0.04
SAVE_SECONDS = 1.0


class AnswerWriter:
    """Writes one message of the history.

    Attributes:
        origin, stats: what is stored with the answer; filled by who makes it.
        sources: the passages it was given.
        tool_calls: calls with their results.
    """

    def __init__(self, history: History, message: Message, log: Log) -> None:
        self.message = message
        self.text = self.thinking = ""
        self.origin: dict[str, Any] = dict(message.origin)
        self.stats: dict[str, Any] = {}
        self.sources: list[dict[str, Any]] = []
        self.tool_calls: list[dict[str, Any]] = []
        self._history, self._log = history, log
        self._renderer = StreamRenderer()
        self._waiting = self._waiting_thought = ""
        self._timer: asyncio.TimerHandle | None = None
        self._saved = 0
        self._saver = asyncio.create_task(self._save_often())

    def write(self, text: str) -> None:
        """More words of the answer."""
        self.text += text
        self._waiting += text
        self._soon()

    def think(self, text: str) -> None:
        """More of what the model thinks before it answers."""
        self.thinking += text
        self._waiting_thought += text
        self._soon()

    def flush(self) -> None:
        """Show everything that was written so far."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        thought, self._waiting_thought = self._waiting_thought, ""
        if thought:
            self._log.add("thinking", {"text": thought})
        text, self._waiting = self._waiting, ""
        if text:
            self._show(self._renderer.push(text))

    async def finish(self, state: State) -> Message:
        """Show and store the whole answer; returns it as stored.

        Raises:
            EdgekitError, sqlite3.Error: it could not be stored.
        """
        self.flush()
        self._show(self._renderer.finish() or [])
        await self.stop_saving()
        return await asyncio.to_thread(
            self._history.finish,
            self.message.id,
            self.text,
            state,
            thinking=self.thinking,
            origin=self.origin,
            stats=self.stats,
            sources=self.sources,
            tool_calls=self.tool_calls,
        )

    async def stop_saving(self) -> None:
        """Let nothing be written behind what comes now."""
        self._saver.cancel()
        await asyncio.wait([self._saver])

    def _soon(self) -> None:
        if self._timer is None:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(RENDER_SECONDS, self.flush)

    def _show(self, blocks: list[tuple[int, str]]) -> None:
        for index, html in blocks:
            self._log.add("block", {"index": index, "html": html}, replaces=f"block {index}")

    async def _save_often(self) -> None:
        while True:
            await asyncio.sleep(SAVE_SECONDS)
            text, thinking = self.text, self.thinking
            if len(text) + len(thinking) == self._saved:
                continue
            writing = asyncio.ensure_future(
                asyncio.to_thread(self._history.append_partial, self.message.id, text, thinking)
            )
            try:
                await asyncio.shield(writing)
                self._saved = len(text) + len(thinking)
            except asyncio.CancelledError:
                await asyncio.wait([writing])  # it may not land behind the end of the answer
                raise
            except Exception:  # a full disk now may have room at the end
                continue


def shown(message: Message) -> dict[str, Any]:
    """A message for the interface: with its words as safe HTML where a model wrote them."""
    value = dict(plain(dataclasses.asdict(message)))
    if message.role == "assistant":
        value["html"] = render(message.content)
    return value


def failure(error: Exception) -> dict[str, str]:
    """What an answer that failed says about it."""
    refusal = refusal_of(error)
    return {"code": refusal.code, "message": str(refusal)}
