"""Everything the assistant's process holds, and what the interface is told about it.

:class:`Assistant` opens the parts, each of which does one thing and knows none of the others, and
closes them in order. Every part that can fail by itself (model, documents, tools) says so in
:func:`snapshot` and leaves the rest usable.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import edgekit
from edgekit.assistant import autostart
from edgekit.assistant.cloud import Cloud
from edgekit.assistant.demo_job import DemoJob
from edgekit.assistant.device_probe import DeviceProbe
from edgekit.assistant.document_desk import DocumentDesk
from edgekit.assistant.engine_host import EngineHost, ServeCommand, serve_command
from edgekit.assistant.events import Bus
from edgekit.assistant.folders import Folders
from edgekit.assistant.library import PromptLibrary
from edgekit.assistant.model_process import engine_failed
from edgekit.assistant.packs import KnownPack, Packs
from edgekit.assistant.policy import Policy
from edgekit.assistant.recovery import RecoveryReport, open_history
from edgekit.assistant.sessions import Sessions
from edgekit.assistant.settings import SettingsStore
from edgekit.assistant.tools.toolbox import ToolBox
from edgekit.assistant.turns import Turns
from edgekit.assistant.window import Window
from edgekit.local.private import private_directory
from edgekit.runtimes.devices import Reason, consider

GIB = 1 << 30
SMALLEST_CACHE = 256 << 20  # bytes


class Assistant:
    """The parts, for one event loop.

    Args:
        url: of the web application, without a path.
        quit_program: ends the program, soon.
        window: what shows the page, for native dialogs.
        serve: makes the command of the model's process.
        policy: the owner's rules; the machine's own by default.
    """

    def __init__(
        self,
        folders: Folders,
        url: str,
        window: Window,
        quit_program: Callable[[], None],
        serve: ServeCommand = serve_command,
        policy: Policy | None = None,
    ) -> None:
        data = private_directory(folders.data)
        self.folders, self.window = folders, window
        self.url, self.quit = url, quit_program
        self.policy = Policy.load() if policy is None else policy
        self.settings = SettingsStore(data)
        self.library = PromptLibrary(data)
        self.packs = Packs(data, folders.packs, folders.system_packs)
        self.sessions = Sessions(urlsplit(url).port or 0)
        self.history, self.recovery = open_history(data / "history.sqlite")
        self.bus = Bus()
        self._serve = serve
        self.devices = DeviceProbe()
        self.engine = EngineHost(data / "run", self._serve_command, self.changed)
        self.documents = DocumentDesk(
            data / "documents", self.policy, lambda: self.settings.current.embedding_pack,
            self.documents_changed,
        )  # fmt: skip
        self.tools = ToolBox(data / "mcp.json", self.documents.search, self.policy)
        self.cloud = Cloud(data / "cloud.json", data / "cloud-log.jsonl", self.policy)
        self.turns = Turns(self)
        self.demo = DemoJob(folders.packs, self._demo_changed)
        self.notices: list[str] = [*self.settings.notices, *self.library.notices]
        self._work: set[asyncio.Task[None]] = set()

    def hang_up(self) -> None:
        """Begin to end: no stream may keep the server from stopping."""
        self.turns.hang_up()
        self.bus.close()

    async def open(self, pack: Path | None = None, target: str = "") -> None:
        """Begin everything that takes time, behind the interface that is there already."""
        self.begin(self.documents.open())
        chosen = pack or self._first_pack()
        if chosen is not None:
            self.engine.load(chosen, target or self.settings.current.target)
        self.begin(self._probe())

    async def close(self) -> None:
        """Stop answers, children and files; what was written stays written."""
        await self.turns.close()
        self.bus.close()
        for task in list(self._work):
            task.cancel()
        await self.demo.close()
        await self.tools.close()
        await self.engine.close()
        await self.documents.close()
        self.history.close()

    def begin(self, work: Coroutine[Any, Any, None]) -> None:
        """Run ``work`` beside everything else."""
        task = asyncio.create_task(work)
        self._work.add(task)
        task.add_done_callback(self._work.discard)

    @property
    def token_file(self) -> Path:
        """The token of the endpoint for other programs; they keep theirs."""
        return self.folders.data / "endpoint.token"

    def changed(self) -> None:
        """Tell every page the state."""
        self.bus.publish("state", lambda: snapshot(self))

    def documents_changed(self) -> None:
        """Tell every page how the documents stand."""
        self.bus.publish("documents", self.documents.overview)

    async def reopen_documents(self) -> None:
        """Open the documents anew, with the embedding pack of the settings."""
        await self.documents.reopen()

    def address(self) -> str:
        """A fresh address that opens the page, once."""
        return f"{self.url}/#t={self.sessions.ticket()}"

    def use(self, pack: Path, target: str) -> None:
        """Load a pack now and at every start."""
        self.settings.change({"pack": str(pack), "target": target})
        self.engine.load(pack, target)

    def reload_engine(self) -> None:
        """Start the model's process anew, with the settings of now."""
        if not self.settings.current.endpoint_enabled:
            self.token_file.unlink(missing_ok=True)  # who had it has it for nothing
        status = self.engine.status
        if status.pack is not None:
            self.engine.load(status.pack.path, status.target)

    def _serve_command(self, pack: KnownPack, target: str, state_file: Path) -> list[str]:
        """The command of the model's process, within the person's limits.

        Raises:
            RefusalError: the model needs more memory than it may have.
        """
        command, settings = list(self._serve(pack, target, state_file)), self.settings.current
        if settings.system_memory_limit_gb:
            left = int(settings.system_memory_limit_gb * GIB) - pack.memory_bytes
            if left < 0:
                raise engine_failed(
                    f"{pack.name} needs about {pack.memory_bytes / GIB:.1f} GB and your settings "
                    f"allow {settings.system_memory_limit_gb:g} GB; raise the limit or choose a "
                    "smaller pack"
                )
            command += ["--cache-memory", str(max(left, SMALLEST_CACHE))]
        if settings.endpoint_enabled and not self.policy.refuses_endpoint():
            command += ["--token-file", str(self.token_file)]
        return command

    def _demo_changed(self, ready: Path | None) -> None:
        self.bus.publish("demo", self.demo.state)
        self.changed()
        if ready is not None and self.engine.status.state in ("none", "failed"):
            self.use(ready, "")

    def _first_pack(self) -> Path | None:
        wished = self.settings.current.pack
        return Path(wished) if wished else self.packs.best()

    async def _probe(self) -> None:
        await self.engine.settled()  # listing devices loads drivers: not while the model loads
        await self.devices.devices()
        self.changed()


def snapshot(assistant: Assistant) -> dict[str, Any]:
    """What ``GET /api/state`` answers and the ``state`` event carries."""
    policy = assistant.policy
    recovery = assistant.recovery
    return {
        "version": edgekit.__version__,
        "engine": _engine(assistant),
        "documents": assistant.documents.state(),
        "policy": {
            "cloud": policy.cloud,
            "mcp": policy.mcp,
            "endpoint": policy.endpoint,
            "source": policy.source,
        },
        "cloud": cloud_state(assistant),
        "settings": settings_state(assistant),
        "first_start": not assistant.packs.any(),
        "recovery": recovery_state(recovery) if recovery else None,
        "demo": assistant.demo.state(),
        "notices": assistant.notices,
    }


def cloud_state(assistant: Assistant) -> dict[str, Any]:
    """Whether and where a cloud model is configured."""
    config = assistant.cloud.configured()
    if config is None:
        return {"configured": False, "name": "", "host": "", "model": ""}
    return {"configured": True, "name": config.name, "host": config.host, "model": config.model}


def settings_state(assistant: Assistant) -> dict[str, Any]:
    """The settings, and what the system says of those that it keeps."""
    return {
        **assistant.settings.current.model_dump(),
        "autostart": autostart.enabled(),
        "data_folder": str(assistant.folders.data),
    }


def recovery_state(report: RecoveryReport) -> dict[str, Any]:
    """What was saved of a damaged history."""
    return {"saved": report.saved, "lost": report.lost, "backup": str(report.backup)}


def reasons(assistant: Assistant, pack: KnownPack | None) -> tuple[str, list[Reason]]:
    """The target that is best for ``pack`` on this machine, and why; empty while unknown.

    A limit on memory and a target that failed just now are reasons of their own.
    """
    known = assistant.devices.known
    if known is None or pack is None:
        return "", []
    chosen, found = consider(pack.targets, known)
    status, limit = assistant.engine.status, assistant.settings.current.system_memory_limit_gb
    result = []
    for reason in found:
        code, text = reason.code, reason.text
        possible = code in ("chosen", "later")
        if possible and limit and pack.memory_bytes > limit * GIB:
            code = "memory"
            text = f"needs about {pack.memory_bytes / GIB:.1f} GB, the limit is {limit:g} GB"
        elif possible and status.failed_target == reason.target and status.pack == pack:
            code, text = "failed", status.error
        result.append(Reason(target=reason.target, code=code, text=text))
    return chosen, result


def _engine(assistant: Assistant) -> dict[str, Any]:
    status = assistant.engine.status
    pack = status.pack
    chosen, found = reasons(assistant, pack)
    running = f"{status.runtime}-{status.device.lower()}" if status.runtime else ""
    return {
        "state": status.state,
        "pack": pack and {
            "name": pack.name, "version": pack.version, "path": str(pack.path),
            "license": pack.license, "parameters": pack.parameters,
        },
        "target": running or status.target or chosen,
        "device": status.device,
        "runtime": status.runtime,
        "context_length": status.context_length,
        "reasons": [r.model_dump() for r in found],
        "error": status.error or None,
        "endpoint": _endpoint(assistant),
    }  # fmt: skip


def _endpoint(assistant: Assistant) -> dict[str, str] | None:
    """Where other programs may ask, if the person and the owner allow it."""
    endpoint = assistant.engine.endpoint
    allowed = assistant.settings.current.endpoint_enabled
    if endpoint is None or not allowed or assistant.policy.refuses_endpoint():
        return None
    return {"url": f"{endpoint.url}/v1", "token_file": str(assistant.token_file)}
