"""Reads calls out of an answer while it comes.

The text is split into words and calls; of a call the name comes first, then its arguments piece by
piece, exactly as the model writes them. A call whose object turns out to be something else, or to
name no function that was offered, is given back as words.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field

from edgekit.server.tool_formats import ToolFormat

BETWEEN = " \t\r\n[],;"  # what may stand between the objects of calls
PYTHON_TAG = "<|python_tag|>"  # some models put it before a call in plain JSON
ARGUMENTS = ("arguments", "parameters")
ARGS_MARK = "[ARGS]"


@dataclass(frozen=True)
class Words:
    """Text of the answer."""

    text: str


@dataclass(frozen=True)
class CallBegin:
    """A call of a function begins."""

    name: str


@dataclass(frozen=True)
class CallArguments:
    """The next piece of the call's arguments, JSON."""

    text: str


@dataclass(frozen=True)
class CallEnd:
    """The call is whole."""


Piece = Words | CallBegin | CallArguments | CallEnd


class ToolReader:
    """Splits the text of one answer; ``names`` are the functions that were offered."""

    def __init__(self, form: ToolFormat, names: frozenset[str]) -> None:
        self._form, self._names = form, names
        self._held = ""
        self._state = "words" if form.marker else "begin"
        self._object: _CallObject | None = None
        self._blank = ""  # blank words, which a call that follows swallows
        self._seen_words = False

    def push(self, text: str) -> list[Piece]:
        """Add text; returns what is decided."""
        self._held += text
        pieces: list[Piece] = []
        steps = {
            "begin": self._begin, "words": self._words, "between": self._between,
            "name": self._name, "object": self._read_object,
        }  # fmt: skip
        while self._held and steps[self._state](pieces):
            pass
        return pieces

    def flush(self) -> list[Piece]:
        """What was held back, at the end."""
        pieces: list[Piece] = []
        rest, self._held = self._held, ""
        if self._object is not None:
            if self._object.begun:
                return self._object.finish()
            rest = self._object.raw + rest
        if self._state in ("between", "name") and not rest.strip(BETWEEN):
            return pieces
        self._say(pieces, rest)
        if self._blank and self._seen_words:
            pieces.append(Words(self._blank))
        return pieces

    def _begin(self, pieces: list[Piece]) -> bool:
        """Where calls are plain JSON: is the answer one?"""
        said = self._held.lstrip()
        if said.startswith(PYTHON_TAG):
            self._held = said[len(PYTHON_TAG) :]
            return True
        if not said or (PYTHON_TAG.startswith(said) and said != PYTHON_TAG):
            return False
        self._state = "between" if said.startswith("{") else "words"
        return True

    def _words(self, pieces: list[Piece]) -> bool:
        marker = self._form.marker
        if not marker:
            self._say(pieces, self._held)
            self._held = ""
            return False
        before, found, after = self._held.partition(marker)
        if found:
            self._say(pieces, before)
            self._held, self._state = after, "between"
            return True
        keep = next((n for n in range(len(marker) - 1, 0, -1) if before.endswith(marker[:n])), 0)
        self._say(pieces, before[: len(before) - keep])
        self._held = before[len(before) - keep :]
        return False

    def _between(self, pieces: list[Piece]) -> bool:
        """After a marker or a call: another call, the end of calls, or words."""
        held = self._held = self._skip(self._held)
        if not held:
            return False
        for mark in filter(None, (self._form.marker, self._form.close)):
            if held.startswith(mark):
                self._held = held[len(mark) :]
                self._state = "words" if mark == self._form.close else "between"
                return True
            if mark.startswith(held):
                return False
        if held.startswith("{"):
            self._object, self._state = _CallObject(self._names), "object"
        else:
            bare = self._form.name == "mistral-args" and held[0].isalnum()
            self._state = "name" if bare else "words"
        return True

    def _skip(self, text: str) -> str:
        """Text without what may stand between calls; a mark may begin with the same characters."""
        marks = tuple(filter(None, (self._form.marker, self._form.close)))
        while text and text[0] in BETWEEN:
            if any(mark.startswith(text) or text.startswith(mark) for mark in marks):
                break
            text = text[1:]
        return text

    def _name(self, pieces: list[Piece]) -> bool:
        """A name before its arguments, without quotes."""
        name, mark, rest = self._held.partition(ARGS_MARK)
        if not mark:
            return False
        if name.strip() not in self._names:
            self._say(pieces, self._held)
            self._held, self._state = "", "words"
            return False
        self._object, self._held, self._state = (
            _CallObject(self._names, name.strip()),
            rest,
            "object",
        )
        return True

    def _read_object(self, pieces: list[Piece]) -> bool:
        call = self._object
        assert call is not None
        used = call.feed(self._held)
        self._held = self._held[used:]
        if call.broken:
            self._say(pieces, call.raw)
            self._object, self._state = None, "words"
        else:
            pieces += self._unblank(call.take())
            if call.done:
                self._object, self._state = None, "between"
        return True

    def _say(self, pieces: list[Piece], text: str) -> None:
        """Words; blank ones only when more words follow."""
        text = self._blank + text
        shown = text.rstrip() if self._form.marker else text
        self._blank = text[len(shown) :]
        if shown:
            self._seen_words = True
            pieces.append(Words(shown))

    def _unblank(self, pieces: list[Piece]) -> list[Piece]:
        if pieces:
            self._blank = ""
        return pieces


@dataclass
class _CallObject:
    """One ``{"name": …, "arguments": …}`` as it comes, or arguments alone where ``name`` is given.

    ``raw`` is everything so far; ``broken`` that it is no call and must be shown as words.
    """

    names: frozenset[str]
    name: str = ""
    raw: str = ""
    begun: bool = False
    done: bool = False
    broken: bool = False
    _at: int = 0  # the character being read
    _depth: int = 0
    _in_string: bool = False
    _escaped: bool = False
    _string_from: int = 0
    _key: str = ""
    _value_from: int = -1  # where the value of _key begins; -1 between values
    _arguments: tuple[int, int] = (-1, -1)  # begin, end (-1 while it comes)
    _given: int = 0  # characters of the arguments that were taken
    _bare: bool = field(init=False)

    def __post_init__(self) -> None:
        self._bare = bool(self.name)
        if self._bare:
            self._arguments = (0, -1)

    def feed(self, text: str) -> int:
        """Read up to the end of the object; returns the characters used."""
        begin = len(self.raw)
        self.raw += text
        for at in range(begin, len(self.raw)):
            self._at = at
            self._read(self.raw[at])
            if self.done or self.broken:
                self.raw = self.raw[: self._at + 1]
                break
        return len(self.raw) - begin

    def take(self) -> list[Piece]:
        """What can be told now: nothing before the name."""
        if not self.name:
            return []
        pieces: list[Piece] = []
        if not self.begun:
            self.begun = True
            pieces.append(CallBegin(self.name))
        text = self._new_arguments()
        if text:
            pieces.append(CallArguments(text))
        return [*pieces, CallEnd()] if self.done else pieces

    def finish(self) -> list[Piece]:
        """The rest of a call that was cut off."""
        return [p for p in self.take() if not isinstance(p, CallEnd)]

    def _new_arguments(self) -> str:
        begin, end = self._arguments
        if begin < 0:
            return "{}" if self.done else ""
        value = self.raw[begin : len(self.raw) if end < 0 else end]
        if value.startswith("{"):
            given, self._given = self._given, len(value)
            return value[given:]
        if end < 0:
            return ""
        try:
            inner = json.loads(value)  # some models write the object as a string
        except ValueError:
            inner = None
        return inner if isinstance(inner, str) and inner.lstrip().startswith("{") else "{}"

    def _read(self, char: str) -> None:
        if self._in_string:
            self._read_string(char)
        elif char == '"':
            self._in_string, self._string_from = True, self._at
            self._begin_value()
        elif char in "{[":
            self._begin_value()
            self._depth += 1
        elif char in "}]":
            self._depth -= 1
            self._close()
        elif char == "," and self._depth == 1:
            self._end_value(self._at)
        elif not char.isspace() and char != ":":
            self._begin_value()

    def _close(self) -> None:
        """A bracket closed: of the arguments, of the whole, or inside."""
        if self._depth == (0 if self._bare else 1) and self._in_arguments:
            self._arguments = (self._arguments[0], self._at + 1)
        if self._depth == 0:
            self._end_value(self._at)
            self.done = True
            self.broken = not self.name

    @property
    def _in_arguments(self) -> bool:
        begin, end = self._arguments
        return end < 0 and (self._bare or begin == self._value_from >= 0)

    def _read_string(self, char: str) -> None:
        if self._escaped:
            self._escaped = False
        elif char == "\\":
            self._escaped = True
        elif char == '"':
            self._in_string = False
            if self._depth == 1 and not self._key and not self._bare:
                self._key = self._text(self._string_from, self._at + 1)

    def _begin_value(self) -> None:
        if self._depth == 1 and self._key and self._value_from < 0 and not self._bare:
            self._value_from = self._at
            if self._key in ARGUMENTS and self._arguments[0] < 0:
                self._arguments = (self._value_from, -1)

    def _end_value(self, end: int) -> None:
        if self._bare:
            return
        if self._key == "name" and not self.name:
            self.name = self._text(self._value_from, end) if self._value_from >= 0 else ""
            self.broken = self.name not in self.names
        if self._in_arguments:
            self._arguments = (self._value_from, end)
        self._key, self._value_from = "", -1

    def _text(self, begin: int, end: int) -> str:
        try:
            value = json.loads(self.raw[begin:end])
        except ValueError:
            return ""
        return value if isinstance(value, str) else ""
