"""What the person has chosen: one private JSON file, read leniently and written whole.

A field that cannot be understood gets its default and a notice; the others keep their values. A
file that is no JSON is kept beside (``settings.json.damaged-0``) and everything starts from the
defaults. Fields of a newer edgekit survive: they are written back as they were read.
"""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from edgekit.assistant.refusals import RefusalError
from edgekit.assistant.set_aside import set_aside
from edgekit.local.private import write_private_json

FILE = "settings.json"
LARGEST = 1 << 20  # bytes of a settings file


class Settings(BaseModel):
    """Every choice, with its default.

    Attributes:
        pack: path of the pack to load at the start, or "" for the best known one.
        target: the target to run on, or "" for the best one here.
        max_tokens: longest answer, in tokens.
        system_memory_limit_gb: memory that model and caches may use, 0 for no limit of ours.
        embedding_pack: path of the pack that makes documents searchable by meaning, or "".
        endpoint_enabled: whether other programs are told the local server's address.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    language: Literal["auto", "en", "zh-CN"] = "auto"
    theme: Literal["auto", "light", "dark"] = "auto"
    pack: str = Field("", max_length=4096)
    target: str = Field("", max_length=64)
    # small models wander: of 30 answers of the demo pack to easy questions 25 were right at 0.3, 18
    # at the 0.7 of the command line
    temperature: float = Field(0.3, ge=0, le=2)
    top_p: float = Field(0.9, gt=0, le=1)
    top_k: int = Field(40, ge=0, le=1000)
    max_tokens: int = Field(1024, ge=1, le=32768)
    repetition_penalty: float = Field(1.1, ge=0.5, le=2)
    system_memory_limit_gb: float = Field(0, ge=0, le=4096)
    autostart: bool = False
    send_key: Literal["enter", "ctrl-enter"] = "enter"
    endpoint_enabled: bool = False
    embedding_pack: str = Field("", max_length=4096)


class SettingsStore:
    """The settings and their file.

    Attributes:
        current: the settings now.
        notices: one sentence for each thing in the file that could not be used.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / FILE
        self.notices: list[str] = []
        self._unknown: dict[str, Any] = {}
        self.current = self._read()

    def change(self, values: dict[str, Any]) -> Settings:
        """Take over the fields in ``values``, whole or not at all.

        Raises:
            RefusalError: a field is unknown or its value is not possible.
            OutOfResourcesError: the disk is full; nothing has changed.
        """
        try:
            changed = Settings.model_validate({**self.current.model_dump(), **values})
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            field = ".".join(map(str, first["loc"]))
            message = f"settings: {field}: {first['msg'].lower()}; choose another value"
            raise RefusalError(400, "bad_setting", message) from None
        write_private_json(self.path, {**self._unknown, **changed.model_dump()})
        self.current = changed
        return changed

    def _read(self) -> Settings:
        try:
            values = self._file()
        except FileNotFoundError:
            return Settings()
        except (OSError, ValueError, RecursionError) as error:
            self._set_aside(error)
            return Settings()
        kept: dict[str, Any] = {}
        for name, value in values.items():
            if name not in Settings.model_fields:
                self._unknown[name] = value
                continue
            try:
                Settings.model_validate({name: value})
                kept[name] = value
            except ValidationError:
                self.notices.append(f"{self.path}: {name} was not possible and is reset")
        return Settings.model_validate(kept)

    def _file(self) -> dict[str, Any]:
        with self.path.open("rb") as file:
            data = file.read(LARGEST + 1)
        if len(data) > LARGEST:
            raise ValueError("too large")
        values = json.loads(data)
        if not isinstance(values, dict):
            raise ValueError("not an object")
        return values

    def _set_aside(self, error: Exception) -> None:
        kept = self.path
        with contextlib.suppress(OSError):
            kept = set_aside(self.path) or kept
        reason = error.strerror if isinstance(error, OSError) else "not readable as settings"
        self.notices.append(f"{self.path}: {reason}; the defaults are used, it is kept as {kept}")
