"""Separates what a model thinks from what it answers: ``<think>…</think>`` at the beginning."""

from __future__ import annotations

import re

OPEN, CLOSE = "<think>", "</think>"
OPENED = re.compile(r"<think>\s*$")
CLOSING = "\n</think>\n\n"  # put after a prompt that opened, where the answer has a fixed form


class ThinkingSplitter:
    """Takes an answer's text piece by piece; gives pieces marked as thought (true) or answer.

    ``inside``: the prompt itself opened the thought. The marks, and blank space around them, are
    in neither. The same marks later in an answer are text.
    """

    def __init__(self, inside: bool = False) -> None:
        self._state = "opened" if inside else "begin"
        self._held = ""

    @property
    def thinking(self) -> bool:
        """Whether the thought goes on."""
        return self._state in ("opened", "thought")

    @property
    def answering(self) -> bool:
        """Whether what comes now belongs to the answer, or may."""
        return self._state in ("begin", "answer")

    def push(self, text: str) -> list[tuple[bool, str]]:
        """Add text; returns what is decided."""
        self._held += text
        pieces: list[tuple[bool, str]] = []
        while self._advance(pieces):
            pass
        return [piece for piece in pieces if piece[1]]

    def flush(self) -> list[tuple[bool, str]]:
        """What was held back, at the end."""
        rest, self._held = self._held, ""
        if self._state in ("opened", "closed"):
            rest = rest.strip()
        return [(self.thinking, rest)] if rest else []

    def _advance(self, pieces: list[tuple[bool, str]]) -> bool:
        """One step; whether another may follow."""
        before = self._state
        if self._state == "begin":
            self._begin()
        if self._state in ("opened", "closed"):  # blank space at the beginning of a part
            self._held = self._held.lstrip()
            if self._held:
                self._state = {"opened": "thought", "closed": "answer"}[self._state]
        if self._state == "thought":
            self._think(pieces)
        if self._state == "answer":
            pieces.append((False, self._held))
            self._held = ""
        return self._state != before and bool(self._held)

    def _begin(self) -> None:
        said = self._held.lstrip()
        if said.startswith(OPEN):
            self._held, self._state = said[len(OPEN) :], "opened"
        elif not OPEN.startswith(said):
            self._state = "answer"

    def _think(self, pieces: list[tuple[bool, str]]) -> None:
        thought, closed, rest = self._held.partition(CLOSE)
        if closed:
            pieces.append((True, thought.rstrip()))
            self._held, self._state = rest, "closed"
            return
        keep = next((n for n in range(len(CLOSE) - 1, 0, -1) if thought.endswith(CLOSE[:n])), 0)
        shown = thought[: len(thought) - keep].rstrip()  # blank space may be the last before CLOSE
        pieces.append((True, shown))
        self._held = thought[len(shown) :]
