"""Named assistants and prompts: what ships with edgekit and what the person added.

An assistant is a name and a system prompt; a prompt is a text to begin with. Those that ship have
a ``name_key`` (``title_key``, ``text_key``), by which the interface translates them; they cannot
be changed or removed, the person's own can.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from edgekit.assistant.refusals import RefusalError, not_found
from edgekit.assistant.set_aside import set_aside
from edgekit.local.private import write_private_json

ASSISTANTS, PROMPTS = "assistants.json", "prompts.json"
MOST = 1000  # entries of the person's own
LARGEST = 16 << 20  # bytes of a file


class Entry(BaseModel):
    """Base of what is kept: strict about fields, immutable."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: str = ""
    builtin: bool = False


class NamedAssistant(Entry):
    """A system prompt with a name; ``icon`` is one letter or sign."""

    name: str = Field(min_length=1, max_length=100)
    name_key: str | None = None
    icon: str = Field("", max_length=8)
    system_prompt: str = Field("", max_length=100_000)


class Prompt(Entry):
    """A text to begin with."""

    title: str = Field(min_length=1, max_length=200)
    text: str = Field(min_length=1, max_length=100_000)
    title_key: str | None = None
    text_key: str | None = None


def _assistant(key: str, name: str, icon: str, system: str) -> NamedAssistant:
    return NamedAssistant(
        id=key, builtin=True, name=name, name_key=key, icon=icon, system_prompt=system
    )


def _prompt(key: str, title: str, text: str) -> Prompt:
    return Prompt(id=key, builtin=True, title=title, text=text, title_key=key, text_key=key)


BUILTIN_ASSISTANTS = (
    _assistant("general", "Assistant", "A", ""),
    _assistant(
        "writer", "Writer", "W",
        "You help with writing. Keep the person's meaning and tone, prefer short sentences and "
        "plain words, and answer in the language of the text.",
    ),
    _assistant(
        "translator", "Translator", "T",
        "You translate. Translate Chinese to English and everything else to Chinese, unless "
        "another language is asked for. Give the translation alone, without comments.",
    ),
    _assistant(
        "coder", "Programmer", "P",
        "You help with programming. Give code that runs, in a fenced block that names its "
        "language, and say in a sentence or two what it does and what to watch for.",
    ),
    _assistant(
        "tutor", "Tutor", "L",
        "You teach patiently. Explain step by step with a small example, ask one question at the "
        "end to see whether it was understood, and say so when you are not sure.",
    ),
)  # fmt: skip
BUILTIN_PROMPTS = (
    _prompt("summarise", "Summarise", "Summarise the following text in five points:\n\n"),
    _prompt("explain", "Explain simply", "Explain this so that a beginner understands it:\n\n"),
    _prompt("translate", "Translate", "Translate the following text:\n\n"),
    _prompt("improve", "Improve the writing", "Improve the writing of this, same meaning:\n\n"),
    _prompt("questions", "Ask me first", "Ask me the questions you need answered before you "
            "begin with this task:\n\n"),
    _prompt("plan", "Make a plan", "Make a step by step plan for this:\n\n"),
)  # fmt: skip

E = TypeVar("E", bound=Entry)


class Shelf(Generic[E]):
    """The entries of one kind, in their file."""

    def __init__(self, path: Path, kind: type[E], builtin: Sequence[E], word: str) -> None:
        self.path = path
        self.notices: list[str] = []
        self._kind, self._builtin, self._word = kind, tuple(builtin), word
        self._own = self._read()

    def all(self) -> list[E]:
        """Those that ship, then the person's own in the order they were added."""
        return [*self._builtin, *self._own]

    def find(self, entry_id: str | None) -> E | None:
        """The entry with this id, if there is one."""
        return next((e for e in self.all() if e.id == entry_id), None)

    def add(self, values: dict[str, Any]) -> E:
        """Keep a new entry.

        Raises:
            RefusalError: a field is missing, unknown or too long, or there are too many.
        """
        if len(self._own) >= MOST:
            raise RefusalError(409, "too_many", f"there are {MOST} already; remove one first")
        entry = self._parse({**values, "id": secrets.token_hex(8)})
        self._write([*self._own, entry])
        return entry

    def change(self, entry_id: str, values: dict[str, Any]) -> E:
        """Replace the given fields of one of the person's own."""
        old = self._own_entry(entry_id)
        entry = self._parse({**old.model_dump(), **values, "id": entry_id})
        self._write([entry if e.id == entry_id else e for e in self._own])
        return entry

    def remove(self, entry_id: str) -> None:
        """Remove one of the person's own."""
        self._own_entry(entry_id)
        self._write([e for e in self._own if e.id != entry_id])

    def _own_entry(self, entry_id: str) -> E:
        if any(e.id == entry_id for e in self._builtin):
            raise RefusalError(409, "builtin", f"this {self._word} ships with edgekit; copy it")
        found = next((e for e in self._own if e.id == entry_id), None)
        if found is None:
            raise not_found(self._word)
        return found

    def _parse(self, values: dict[str, Any]) -> E:
        keys = ("builtin", "name_key", "title_key", "text_key")
        own = {key: value for key, value in values.items() if key not in keys}
        try:
            return self._kind.model_validate(own)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            field = ".".join(map(str, first["loc"]))
            message = f"{self._word}: {field}: {first['msg'].lower()}; correct it"
            raise RefusalError(400, "bad_field", message) from None

    def _write(self, entries: list[E]) -> None:
        write_private_json(self.path, [e.model_dump() for e in entries])
        self._own = entries

    def _read(self) -> list[E]:
        try:
            with self.path.open("rb") as file:
                values = json.loads(file.read(LARGEST))
            if not isinstance(values, list):
                raise ValueError("not a list")
        except FileNotFoundError:
            return []
        except (OSError, ValueError, RecursionError):
            kept = set_aside(self.path)
            self.notices.append(f"{self.path}: cannot be read; it is kept as {kept}")
            return []
        found = []
        for value in values:
            try:
                found.append(self._parse(value if isinstance(value, dict) else {}))
            except RefusalError:
                self.notices.append(f"{self.path}: an entry could not be read and is left out")
        return found


class PromptLibrary:
    """Both shelves, in the data folder."""

    def __init__(self, folder: Path) -> None:
        self.assistants = Shelf(
            folder / ASSISTANTS, NamedAssistant, BUILTIN_ASSISTANTS, "assistant"
        )
        self.prompts = Shelf(folder / PROMPTS, Prompt, BUILTIN_PROMPTS, "prompt")

    @property
    def notices(self) -> list[str]:
        """What could not be read."""
        return self.assistants.notices + self.prompts.notices
