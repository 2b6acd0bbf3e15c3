"""The tools the model may ask for, and everything that stands between its wish and the deed.

1. :meth:`ToolBox.definitions` asks the confirmed servers for their tools and offers them together
   with the built-in ones. Exactly what was offered is remembered.
2. The model asks for a call. :meth:`ToolBox.check` holds the arguments against the schema; what
   does not fit goes back to the model and nobody is asked.
3. :meth:`ToolBox.needs_consent` says whether a person must be asked; the interface asks, showing
   server, tool and arguments.
4. :meth:`ToolBox.call` with that consent. The policy, the consent and the definition (unchanged
   since it was offered?) are looked at once more here, so no caller can leave them out.
"""

from __future__ import annotations

import asyncio
import datetime
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from edgekit.assistant.policy import Policy
from edgekit.assistant.tools.arguments import parse_arguments, schema_problem
from edgekit.assistant.tools.calculator import CALCULATOR, calculate
from edgekit.assistant.tools.clock import CLOCK, tell_time
from edgekit.assistant.tools.commands import resolved
from edgekit.assistant.tools.config import ServerEntry, ToolConfig, identity
from edgekit.assistant.tools.definitions import ToolInfo, ToolResult
from edgekit.assistant.tools.documents_tool import SEARCH_DOCUMENTS, Search, search_documents
from edgekit.errors import BadInputError, EdgekitError

if TYPE_CHECKING:
    from edgekit.assistant.tools.mcp_servers import McpServer

Allowed = Literal["", "once", "always"]


@dataclass(frozen=True)
class ServerInfo:
    """A tool server for the interface.

    Attributes:
        command: as configured, whole.
        resolved: the same with the program's absolute path, which is what would run; empty when
            the program is not there.
        variables: names of the variables given to it; their values may be secrets.
        confirmed: whether a person agreed to run exactly this command.
        state: "unconfirmed", "stopped", "ready" or "failed".
        problem: one sentence, or "".
        tools: what it offered last.
    """

    name: str
    command: tuple[str, ...]
    resolved: tuple[str, ...]
    variables: tuple[str, ...]
    confirmed: bool
    state: str
    problem: str
    tools: tuple[ToolInfo, ...]


class ToolBox:
    """Built-in tools and MCP servers. For one event loop; the methods are not for threads."""

    def __init__(
        self,
        config_path: Path,
        library_search: Search | None,
        policy: Policy,
        clock: Callable[[], datetime.datetime] = lambda: datetime.datetime.now().astimezone(),
        limits: Any = None,
    ) -> None:
        """``library_search(query, limit)`` finds passages; ``None`` offers no document search.

        ``limits`` is a :class:`~edgekit.assistant.tools.bounded_stdio.Limits`.
        """
        self._config = ToolConfig(config_path)
        self._folder = config_path.parent / "mcp"
        self._search, self._policy, self._clock = library_search, policy, clock
        self._limits = limits
        self._running: dict[str, McpServer] = {}
        self._offered: dict[str, ToolInfo] = {tool.name: tool for tool in self._built_in()}

    @property
    def problem(self) -> str:
        """One sentence when the configuration cannot be read, or ""."""
        return self._config.problem

    # Servers ------------------------------------------------------------------------------------

    def servers(self) -> list[ServerInfo]:
        """The configured servers in the order of their names. Starts nothing."""
        return [self._info(name, entry) for name, entry in sorted(self._config.servers().items())]

    def add_server(
        self, name: str, command: Sequence[str], env: Mapping[str, str] | None = None
    ) -> ServerInfo:
        """Add a server; it does not run before :meth:`tools` is called with ``confirm``.

        Raises:
            BadInputError: the name, the command or a variable cannot be used, the program is not
                there, or the policy forbids it.
        """
        program = resolved(command)
        _refuse(self._policy.refuses_mcp(program))
        return self._info(name, self._config.add(name, command, env or {}))

    async def remove_server(self, name: str) -> None:
        """End a server and forget it with every consent given to it.

        Raises:
            BadInputError: there is no such server.
        """
        entry = self._entry(name)
        await self._end(name)
        self._config.forget(entry.confirmed)
        self._config.remove(name)
        self._offered = {key: tool for key, tool in self._offered.items() if tool.server != name}

    async def tools(self, name: str, confirm: bool = False) -> list[ToolInfo]:
        """Start a server if need be, and list its tools.

        ``confirm`` says that a person has seen the whole command and agrees to run it; this is
        remembered for exactly this command. A server that failed is tried again.

        Raises:
            BadInputError: there is no such server, nobody confirmed its command, or the policy
                forbids it.
            MissingRuntimeError: it does not start or answer.
        """
        entry = self._entry(name)
        command = resolved(entry.command)
        _refuse(self._policy.refuses_mcp(command))
        who = identity(command, entry.env)
        if entry.confirmed != who:
            if not confirm:
                raise BadInputError(
                    f"nobody has confirmed the command of the tool server {name}; look at it and "
                    "confirm it first"
                )
            await self._end(name)
            self._config.confirm(name, who)
        server = self._server(name, command, entry)
        if server.state == "failed":
            await self._end(name)
            server = self._server(name, command, entry)
        return self._offer(name, await server.tools())

    async def restart(self, name: str) -> None:
        """End a server; it starts again at its next use.

        Raises:
            BadInputError: there is no such server.
        """
        self._entry(name)
        await self._end(name)

    def server_log(self, name: str) -> str:
        """The last of what a server wrote to stderr since it was started."""
        server = self._running.get(name)
        return server.log.text() if server else ""

    def forget_consents(self, name: str) -> None:
        """Take back every "always" given to the tools of a server.

        Raises:
            BadInputError: there is no such server.
        """
        self._config.forget(self._entry(name).confirmed)

    async def close(self) -> None:
        """End every server; when this returns, none of their processes is left."""
        await asyncio.gather(*(self._end(name) for name in list(self._running)))

    # Calls --------------------------------------------------------------------------------------

    async def definitions(self) -> list[dict[str, Any]]:
        """The tools in OpenAI's form, in a fixed order: built-in ones, then by server.

        A server that nobody confirmed, that the policy forbids or that does not answer is left
        out; :meth:`servers` says why.
        """
        names = sorted(self._config.servers())
        await asyncio.gather(*(self._offer_if_possible(name) for name in names))
        return [tool.function() for tool in self._offered.values()]

    def describe(self, name: str) -> ToolInfo | None:
        """The tool as it was last offered; what a person who is asked should be shown."""
        return self._offered.get(name)

    def check(self, name: str, arguments: str | Mapping[str, Any]) -> ToolResult | None:
        """The error to give back to the model when it cannot call this so; ``None`` when it can."""
        checked = self._checked(name, arguments)
        return checked if isinstance(checked, ToolResult) else None

    def needs_consent(self, name: str) -> bool:
        """Whether a person must be asked before this call.

        Built-in tools read and change nothing outside; a server's tool needs consent unless
        "always" was said to this definition of this tool at this command.
        """
        tool = self._offered.get(name)
        if tool is None:
            return True
        if not tool.server:
            return False
        entry = self._config.servers().get(tool.server)
        return entry is None or not self._config.allowed(entry.confirmed, tool)

    async def call(
        self, name: str, arguments: str | Mapping[str, Any], allowed: Allowed = ""
    ) -> ToolResult:
        """Call a tool; whatever goes wrong is a result with ``is_error``, for the model to read.

        ``allowed`` is what a person said to this call: "once", or "always" for this tool as it is
        defined now. Without it a tool that needs consent is not called.
        """
        checked = self._checked(name, arguments)
        if isinstance(checked, ToolResult):
            return checked
        tool = self._offered[name]
        if not tool.server:
            return await self._call_built_in(tool, checked)
        if self.needs_consent(name) and not allowed:
            return ToolResult(f"the person did not allow {name}", is_error=True)
        try:
            return await self._call_server(tool, checked, allowed)
        except EdgekitError as error:
            return ToolResult(str(error), is_error=True)

    def _checked(
        self, name: str, arguments: str | Mapping[str, Any]
    ) -> dict[str, Any] | ToolResult:
        tool = self._offered.get(name)
        if tool is None:
            offered = ", ".join(self._offered) or "none"
            text = f"there is no tool {name[:80]!r}; tools: {offered}"
            return ToolResult(text, is_error=True)
        parsed = parse_arguments(arguments)
        if isinstance(parsed, str):
            return ToolResult(parsed, is_error=True)
        problem = schema_problem(tool.schema, parsed)
        return ToolResult(problem, is_error=True) if problem else parsed

    async def _call_built_in(self, tool: ToolInfo, arguments: dict[str, Any]) -> ToolResult:
        if tool is CALCULATOR:
            return calculate(arguments["expression"])
        if tool is CLOCK:
            return tell_time(self._clock(), arguments)
        assert self._search is not None
        try:
            return await search_documents(self._search, arguments["query"])
        except EdgekitError as error:
            return ToolResult(str(error), is_error=True)

    async def _call_server(
        self, tool: ToolInfo, arguments: dict[str, Any], allowed: Allowed
    ) -> ToolResult:
        entry = self._entry(tool.server)
        command = resolved(entry.command)
        _refuse(self._policy.refuses_mcp(command))
        who = identity(command, entry.env)
        if entry.confirmed != who:
            raise BadInputError(f"the command of {tool.server} has changed; confirm it again")
        server = self._server(tool.server, command, entry)
        now = {one.name: one for one in await server.tools()}.get(tool.name)
        if now is None or now.digest != tool.digest:
            raise BadInputError(
                f"{tool.name} was not called: its server changed its definition since it was "
                "offered; ask again"
            )
        if allowed == "always":
            self._config.allow(who, tool)
        return await server.call(tool.tool, arguments)

    # Parts --------------------------------------------------------------------------------------

    def _built_in(self) -> list[ToolInfo]:
        return [CALCULATOR, CLOCK, *([SEARCH_DOCUMENTS] if self._search else [])]

    def _entry(self, name: str) -> ServerEntry:
        entry = self._config.servers().get(name)
        if entry is None:
            raise BadInputError(f"there is no tool server {name[:40]!r}; add it first")
        return entry

    def _server(self, name: str, command: list[str], entry: ServerEntry) -> McpServer:
        from edgekit.assistant.tools.bounded_stdio import Limits
        from edgekit.assistant.tools.mcp_servers import McpServer

        if name not in self._running:
            folder = self._folder / name
            limits = self._limits or Limits()
            self._running[name] = McpServer(name, command, entry.env, folder, limits)
        return self._running[name]

    async def _end(self, name: str) -> None:
        server = self._running.pop(name, None)
        if server is not None:
            await server.close()

    async def _offer_if_possible(self, name: str) -> None:
        """A server that failed is not tried again in every turn, which would cost its time."""
        running = self._running.get(name)
        try:
            if running is None or running.state != "failed":
                await self.tools(name)
                return
        except EdgekitError:
            pass
        self._offer(name, [])

    def _offer(self, name: str, tools: list[ToolInfo]) -> list[ToolInfo]:
        kept = [tool for tool in self._offered.values() if tool.server != name]
        ordered = sorted([*kept, *tools], key=lambda tool: tool.server)  # stable: "" comes first
        self._offered = {tool.name: tool for tool in ordered}
        return tools

    def _info(self, name: str, entry: ServerEntry) -> ServerInfo:
        problem = ""
        command: list[str] = []
        try:
            command = resolved(entry.command)
            problem = self._policy.refuses_mcp(command)
        except BadInputError as error:
            problem = str(error)
        confirmed = bool(command) and entry.confirmed == identity(command, entry.env)
        server = self._running.get(name)
        state = "stopped" if confirmed else "unconfirmed"
        return ServerInfo(
            name=name,
            command=tuple(entry.command),
            resolved=tuple(command),
            variables=tuple(entry.env),
            confirmed=confirmed,
            state=server.state if server and confirmed else state,
            problem=problem or (server.problem if server else ""),
            tools=tuple(tool for tool in self._offered.values() if tool.server == name),
        )


def _refuse(reason: str) -> None:
    if reason:
        raise BadInputError(reason)
