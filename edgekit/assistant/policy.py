"""What the owner of the machine allows: a small JSON file that only an administrator can write.

The file is looked for at a place of the system (:func:`system_path`) and, if one is given, at a
second place; where both exist both hold, so that a file of the user's own can only forbid more.
A file that is there and cannot be understood forbids everything that a policy can forbid, and
:attr:`Policy.notes` says why: an owner's word that has become unreadable is not permission.

::

    {
      "version": 1,
      "cloud": "allowed",                        "forbidden" for no cloud at all
      "cloud_hosts": ["api.example.com", "*.corp.example"],
      "mcp": "listed",                           "allowed", "forbidden" or "listed"
      "mcp_commands": [["/usr/bin/node", "/opt/tools/server.js"]],
      "document_folders": ["~/Documents", "/srv/shared"],
      "endpoint": "allowed",                     the local server for other programs
      "autostart": "forbidden"
    }

Every field but ``version`` may be left out and then allows. The rules are asked where the deed is
done (in :class:`~edgekit.assistant.cloud.Cloud`, in the tool box), not in the interface alone.
"""

from __future__ import annotations

import ipaddress
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError, field_validator

VERSION = 1
LARGEST = 1 << 20  # bytes of a policy file

Permission = Literal["allowed", "forbidden"]


@dataclass(frozen=True)
class Policy:
    """The rules that hold on this machine.

    Attributes:
        cloud: whether messages may go to a cloud address at all.
        cloud_hosts: the hosts they may go to; ``None`` is any. ``*.example.com`` stands for every
            host below ``example.com``.
        mcp: whether tool servers may run; "listed" allows :attr:`mcp_commands` alone.
        mcp_commands: whole commands, word by word, the program as an absolute path.
        document_folders: folders that documents may come from; ``None`` is any.
        endpoint: whether other programs may be given the local server's address.
        autostart: whether the assistant may start with the session.
        source: the files that were read, or "" when there is none.
        notes: one sentence for each file that could not be understood.
    """

    cloud: Permission = "allowed"
    cloud_hosts: tuple[str, ...] | None = None
    mcp: Literal["allowed", "forbidden", "listed"] = "allowed"
    mcp_commands: tuple[tuple[str, ...], ...] = ()
    document_folders: tuple[Path, ...] | None = None
    endpoint: Permission = "allowed"
    autostart: Permission = "allowed"
    source: str = ""
    notes: tuple[str, ...] = ()

    @classmethod
    def load(cls, paths: Sequence[Path] | None = None) -> Policy:
        """The policy files that exist among ``paths`` (the system's place alone by default).

        Never raises: what cannot be read forbids.
        """
        policy = cls()
        for path in [system_path()] if paths is None else paths:
            found = _read(path)
            if found is not None:
                policy = _both(policy, found)
        return policy

    def refuses_cloud(self, host: str = "") -> str:
        """Why nothing may go to ``host`` (or to any cloud), in one sentence; "" if it may."""
        if self.cloud == "forbidden":
            return f"the owner of this machine forbids cloud models{self._because()}"
        if host and self.cloud_hosts is not None and not _host_in(host, self.cloud_hosts):
            allowed = ", ".join(self.cloud_hosts) or "none"
            return (
                f"the owner of this machine does not allow the cloud host {host}; allowed: "
                f"{allowed}{self._because()}"
            )
        return ""

    def refuses_mcp(self, command: Sequence[str] = ()) -> str:
        """Why this tool server's command (its program resolved) may not run; "" if it may."""
        if self.mcp == "forbidden":
            return f"the owner of this machine forbids tool servers{self._because()}"
        if self.mcp == "listed" and command and tuple(command) not in self.mcp_commands:
            return (
                "the owner of this machine allows listed tool servers alone, and "
                f"`{' '.join(command)}` is not one of them{self._because()}"
            )
        return ""

    def refuses_folder(self, path: Path) -> str:
        """Why documents may not be read from ``path``; "" if they may. Links are followed."""
        if self.document_folders is None:
            return ""
        real = path.resolve()
        if any(real.is_relative_to(folder.resolve()) for folder in self.document_folders):
            return ""
        allowed = ", ".join(str(f) for f in self.document_folders) or "none"
        return (
            f"the owner of this machine does not allow documents from {path}; allowed folders: "
            f"{allowed}{self._because()}"
        )

    def refuses_endpoint(self) -> str:
        """Why other programs may not be given the local server; "" if they may."""
        if self.endpoint == "forbidden":
            return f"the owner of this machine keeps other programs out{self._because()}"
        return ""

    def refuses_autostart(self) -> str:
        """Why the assistant may not start with the session; "" if it may."""
        if self.autostart == "forbidden":
            return f"the owner of this machine forbids starting with the session{self._because()}"
        return ""

    def _because(self) -> str:
        return f" ({'; '.join(self.notes)})" if self.notes else f" (policy: {self.source})"


class _File(BaseModel):
    """The file as written. An unknown field is an error: it may be a restriction, mistyped."""

    model_config = ConfigDict(extra="forbid", strict=True)

    version: int
    cloud: Permission = "allowed"
    cloud_hosts: list[str] | None = None
    mcp: Literal["allowed", "forbidden", "listed"] = "allowed"
    mcp_commands: list[list[str]] = []
    document_folders: list[str] | None = None
    endpoint: Permission = "allowed"
    autostart: Permission = "allowed"

    @field_validator("mcp_commands")
    @classmethod
    def _absolute_programs(cls, commands: list[list[str]]) -> list[list[str]]:
        if not all(command and Path(command[0]).is_absolute() for command in commands):
            raise ValueError("each command must begin with the absolute path of a program")
        return commands

    @field_validator("document_folders")
    @classmethod
    def _absolute_folders(cls, folders: list[str] | None) -> list[str] | None:
        if folders is not None and not all(_folder(folder).is_absolute() for folder in folders):
            raise ValueError("each folder must be an absolute path, or begin with ~/")
        return folders


def system_path() -> Path:
    """Where the owner's policy lies: below ``/etc`` or ``%ProgramData%``."""
    if sys.platform == "win32":
        return Path(os.environ.get("PROGRAMDATA", r"C:\ProgramData")) / "edgekit" / "policy.json"
    return Path("/etc/edgekit/policy.json")


def strictest(source: Path, why: str) -> Policy:
    """Everything that can be forbidden, because ``source`` cannot be followed."""
    return Policy(
        cloud="forbidden",
        mcp="forbidden",
        document_folders=(),
        endpoint="forbidden",
        autostart="forbidden",
        source=str(source),
        notes=(f"{source}: {why}, so everything is forbidden; ask the owner to mend it",),
    )


def _read(path: Path) -> Policy | None:
    """The policy in a file; ``None`` when there is no such file."""
    try:
        with path.open("rb") as file:
            data = file.read(LARGEST + 1)
    except FileNotFoundError:
        return None
    except OSError as error:
        return strictest(path, f"cannot be read ({error.strerror})")
    if len(data) > LARGEST:
        return strictest(path, "is larger than a policy can be")
    try:
        value = json.loads(data.decode("utf-8-sig"), object_pairs_hook=_no_repeats)
    except (ValueError, RecursionError) as error:
        return strictest(path, f"is not valid JSON ({_words(error)})")
    if not isinstance(value, dict):
        return strictest(path, "is not a JSON object")
    if value.get("version") != VERSION or isinstance(value["version"], bool):
        found = json.dumps(value.get("version"))[:20]
        return strictest(path, f"has version {found} and this edgekit knows version {VERSION}")
    try:
        return _policy(_File.model_validate(value), path)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the object"
        return strictest(path, f"{where} is wrong ({first['msg']})")


def _policy(file: _File, path: Path) -> Policy:
    folders = file.document_folders
    return Policy(
        cloud=file.cloud,
        cloud_hosts=None if file.cloud_hosts is None else tuple(map(_host, file.cloud_hosts)),
        mcp=file.mcp,
        mcp_commands=tuple(tuple(command) for command in file.mcp_commands),
        document_folders=None if folders is None else tuple(map(_folder, folders)),
        endpoint=file.endpoint,
        autostart=file.autostart,
        source=str(path),
    )


def _both(one: Policy, two: Policy) -> Policy:
    """What both allow."""
    if not one.source:
        return two
    return Policy(
        cloud=_worse(one.cloud, two.cloud),
        cloud_hosts=_common_hosts(one.cloud_hosts, two.cloud_hosts),
        mcp=max(one.mcp, two.mcp, key=("allowed", "listed", "forbidden").index),
        mcp_commands=_common_commands(one, two),
        document_folders=_common_folders(one.document_folders, two.document_folders),
        endpoint=_worse(one.endpoint, two.endpoint),
        autostart=_worse(one.autostart, two.autostart),
        source=f"{one.source}, {two.source}",
        notes=one.notes + two.notes,
    )


def _worse(one: Permission, two: Permission) -> Permission:
    return "forbidden" if "forbidden" in (one, two) else "allowed"


def _common_hosts(
    one: tuple[str, ...] | None, two: tuple[str, ...] | None
) -> tuple[str, ...] | None:
    if one is None or two is None:
        return two if one is None else one
    inside = [host for host in one if _host_in(host, two)]
    return tuple(dict.fromkeys(inside + [host for host in two if _host_in(host, one)]))


def _common_commands(one: Policy, two: Policy) -> tuple[tuple[str, ...], ...]:
    if one.mcp != "listed" or two.mcp != "listed":
        return one.mcp_commands if one.mcp == "listed" else two.mcp_commands
    return tuple(command for command in one.mcp_commands if command in two.mcp_commands)


def _common_folders(
    one: tuple[Path, ...] | None, two: tuple[Path, ...] | None
) -> tuple[Path, ...] | None:
    if one is None or two is None:
        return two if one is None else one
    inside = [f for f in one if any(f.resolve().is_relative_to(o.resolve()) for o in two)]
    more = [f for f in two if any(f.resolve().is_relative_to(o.resolve()) for o in one)]
    return tuple(dict.fromkeys(inside + more))


def _folder(text: str) -> Path:
    try:
        return Path(text).expanduser()
    except RuntimeError as error:  # there is no home
        raise ValueError(str(error)) from error


def _host(host: str) -> str:
    return host.strip().rstrip(".").lower()


def _host_in(host: str, patterns: Sequence[str]) -> bool:
    """Whether a host (or a pattern of the same form) is covered by one of ``patterns``."""
    host = _host(host)
    for pattern in patterns:
        if host == pattern:
            return True
        if pattern.startswith("*.") and host.endswith(pattern[1:]) and not _is_address(host):
            return True
    return False


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return False
    return True


def _no_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Readers disagree on which of two equal keys holds, so a file may not have them."""
    value = dict(pairs)
    if len(value) != len(pairs):
        raise ValueError("a key is there twice")
    return value


def _words(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
