"""The tool servers that a person configured and what they agreed to: ``mcp.json``, mode 0600.

Nothing of a server runs because it stands in this file. A command runs only if it is the one that
a person confirmed after seeing it whole (``confirmed`` holds its identity), and a tool runs
unasked only if its definition is the one for which "always" was said (``consents``).

A damaged file is kept: it is set aside under another name before anything new is written.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError, field_validator

from edgekit.assistant.set_aside import set_aside
from edgekit.assistant.tools.commands import checked_command, checked_environment
from edgekit.assistant.tools.definitions import SERVER_NAME, ToolInfo, digest
from edgekit.errors import BadInputError
from edgekit.local.private import write_private_json

T = TypeVar("T")
VERSION = 1
MOST_SERVERS = 32
LARGEST = 4 << 20  # bytes of the file


class ServerEntry(BaseModel):
    """One server as configured."""

    model_config = ConfigDict(extra="forbid")

    command: list[str]
    env: dict[str, str] = {}
    confirmed: str = ""

    @field_validator("command")
    @classmethod
    def _command(cls, command: list[str]) -> list[str]:
        return _value_error(checked_command, command)

    @field_validator("env")
    @classmethod
    def _env(cls, env: dict[str, str]) -> dict[str, str]:
        return _value_error(checked_environment, env)


class Consent(BaseModel):
    """ "Always" for one tool of one server, as both were when it was said."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    identity: str
    tool: str
    definition: str


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid")

    version: int = VERSION
    servers: dict[str, ServerEntry] = {}
    consents: list[Consent] = []

    @field_validator("version")
    @classmethod
    def _known(cls, version: int) -> int:
        if version != VERSION:
            raise ValueError(f"version {version} is not known; this edgekit knows {VERSION}")
        return version

    @field_validator("servers")
    @classmethod
    def _names(cls, servers: dict[str, ServerEntry]) -> dict[str, ServerEntry]:
        for name in servers:
            _value_error(checked_name, name)
        return servers


class ToolConfig:
    """The file in memory; every change is on disk when the method returns. Safe for threads.

    Attributes:
        problem: one sentence when the file cannot be read, or "".
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self.problem = ""
        self._file = _File()
        try:
            self._file = _read(path)
        except BadInputError as error:
            self.problem = str(error)

    def servers(self) -> Mapping[str, ServerEntry]:
        """The configured servers by name."""
        return self._file.servers

    def add(self, name: str, command: Sequence[str], env: Mapping[str, str]) -> ServerEntry:
        """Add a server that is not confirmed yet.

        Raises:
            BadInputError: the name is taken or not valid, or the command or a variable is not.
        """
        checked_name(name)
        entry = ServerEntry(command=checked_command(command), env=checked_environment(env))
        with self._lock:
            servers = self._file.servers
            if name in servers:
                raise BadInputError(f"there is a tool server {name} already; choose another name")
            if len(servers) >= MOST_SERVERS:
                raise BadInputError(f"{MOST_SERVERS} tool servers are the most; remove one first")
            self._change(servers={**servers, name: entry})
        return entry

    def remove(self, name: str) -> None:
        """Forget a server."""
        with self._lock:
            left = {key: entry for key, entry in self._file.servers.items() if key != name}
            self._change(servers=left)

    def confirm(self, name: str, identity: str) -> None:
        """Remember that a person saw the whole command and agreed to run it."""
        with self._lock:
            entry = self._file.servers[name].model_copy(update={"confirmed": identity})
            self._change(servers={**self._file.servers, name: entry})

    def allow(self, identity: str, tool: ToolInfo) -> None:
        """Remember "always" for a tool as it is defined now; an older definition's is dropped."""
        consent = Consent(identity=identity, tool=tool.tool, definition=tool.digest)
        same = (identity, tool.tool)
        with self._lock:
            kept = [c for c in self._file.consents if (c.identity, c.tool) != same]
            self._change(consents=[*kept, consent])

    def allowed(self, identity: str, tool: ToolInfo) -> bool:
        """Whether "always" was said to exactly this tool of exactly this command."""
        wanted = Consent(identity=identity, tool=tool.tool, definition=tool.digest)
        return wanted in self._file.consents

    def forget(self, identity: str) -> None:
        """Take back every "always" given to a command."""
        with self._lock:
            self._change(consents=[c for c in self._file.consents if c.identity != identity])

    def _change(self, **fields: object) -> None:
        """Write the file with these fields, then take it over; the lock is held."""
        changed = self._file.model_copy(update=fields)
        if self.problem:
            set_aside(self._path)
        write_private_json(self._path, changed.model_dump())
        self._file, self.problem = changed, ""


def identity(command: Sequence[str], env: Mapping[str, str]) -> str:
    """What a person agrees to run: the resolved command and the variables given, as a hash."""
    return digest({"command": list(command), "env": dict(env)})


def checked_name(name: str) -> str:
    """The name of a server.

    Raises:
        BadInputError: it is not 1 to 16 of a-z, 0-9 and "-", beginning with a letter or digit.
    """
    if not SERVER_NAME.fullmatch(name):
        raise BadInputError(
            f"{name[:40]!r} cannot name a tool server; use 1 to 16 of a-z, 0-9 and -, beginning "
            "with a letter or digit"
        )
    return name


def _read(path: Path) -> _File:
    try:
        with path.open("rb") as file:
            data = file.read(LARGEST + 1)
        if len(data) > LARGEST:
            raise ValueError("too large")
        return _File.model_validate(json.loads(data))
    except FileNotFoundError:
        return _File()
    except OSError as error:
        reason = error.strerror
    except ValidationError as error:
        first = error.errors()[0]
        reason = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
    except (ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())
    raise BadInputError(
        f"{path}: the tool servers cannot be read ({reason}); the file is kept, mend it or add "
        "the servers again"
    )


def _value_error(check: Callable[[Any], T], value: Any) -> T:
    """A check's refusal in the form that pydantic collects."""
    try:
        return check(value)
    except BadInputError as error:
        raise ValueError(str(error)) from error
