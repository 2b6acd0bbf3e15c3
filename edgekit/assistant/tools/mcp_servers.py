"""One MCP server: started when it is needed, asked for its tools, called, and ended for certain.

The connection lives in a task of its own, because it must be opened and closed by the same task;
callers only hand it requests. Every request has a time limit, and a server that let one pass is
ended and starts anew at the next use. What a server asks of its client (to sample from the model,
to question the person) is refused by not being offered.
"""

from __future__ import annotations

import asyncio
import contextlib
import traceback
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from mcp.client import Client
from mcp.shared.exceptions import MCPError
from mcp_types import (
    CallToolRequest,
    CallToolRequestParams,
    CallToolResult,
    Implementation,
    ListToolsRequest,
    ListToolsResult,
    PaginatedRequestParams,
)
from pydantic import ValidationError

from edgekit import __version__
from edgekit.assistant.tools.bounded_stdio import Limits, ServerLog, bounded_stdio
from edgekit.assistant.tools.commands import environment
from edgekit.assistant.tools.definitions import ToolInfo, ToolResult, bounded, clean, server_tool
from edgekit.assistant.tools.results import result_text
from edgekit.errors import MissingRuntimeError
from edgekit.local.private import private_directory

MOST_TOOLS, MOST_PAGES = 64, 16  # of one server

State = Literal["stopped", "ready", "failed"]


class McpServer:
    """A server process and the connection to it.

    Attributes:
        state: "failed" when it could not be started; it is then tried again only when asked to.
        problem: one sentence when it failed, or what of its tools cannot be offered; or "".
        log: the last of its stderr.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        env: Mapping[str, str],
        folder: Path,
        limits: Limits = Limits(),  # noqa: B008, frozen
    ) -> None:
        self.name = name
        self.state: State = "stopped"
        self.problem = ""
        self.log = ServerLog(limits.log_bytes)
        self._command, self._env, self._folder = list(command), dict(env), folder
        self._limits = limits
        self._task: asyncio.Task[None] | None = None
        self._client: Client | None = None
        self._starting = asyncio.Lock()
        self._stop = asyncio.Event()

    async def tools(self) -> list[ToolInfo]:
        """The tools as the server defines them now; those that cannot be offered are left out.

        Raises:
            MissingRuntimeError: the server does not start or does not answer.
        """
        found: dict[str, ToolInfo] = {}
        problems: list[str] = []
        async for raw in self._listed():
            tool = server_tool(self.name, raw)
            if isinstance(tool, str):
                problems.append(tool)
            elif tool.name in found:
                problems.append(f"{tool.tool}: another tool has this name already")
            elif len(found) == MOST_TOOLS:
                problems.append(f"only the first {MOST_TOOLS} tools are offered")
                break
            else:
                found[tool.name] = tool
        self.problem = clean("; ".join(problems), 500)
        return list(found.values())

    async def call(self, tool: str, arguments: Mapping[str, Any]) -> ToolResult:
        """Call a tool with arguments that fit its schema.

        An error of the tool, of the server or of the connection is a result that says so: the
        model may do something else.
        """
        request = CallToolRequest(
            params=CallToolRequestParams(name=tool, arguments=dict(arguments))
        )
        try:
            result = await self._ask(request, CallToolResult)
        except MissingRuntimeError as error:
            return ToolResult(str(error), is_error=True)
        return ToolResult(bounded(result_text(result)), is_error=bool(result.is_error))

    async def close(self) -> None:
        """End the server; when this returns, its process is gone and reaped."""
        task, self._task = self._task, None
        if task is not None:
            self._stop.set()
            await asyncio.wait([task])
        self.state = "stopped" if self.state == "ready" else self.state

    async def _listed(self) -> AsyncIterator[dict[str, Any]]:
        cursor: str | None = None
        for _ in range(MOST_PAGES):
            request = ListToolsRequest(params=PaginatedRequestParams(cursor=cursor))
            page = await self._ask(request, ListToolsResult)
            for tool in page.tools:
                yield tool.model_dump(by_alias=True, mode="json", exclude_none=True)
            cursor = page.next_cursor
            if cursor is None:
                return

    async def _ask(self, request: Any, kind: type[Any]) -> Any:
        """One request and its answer, within the time limit.

        Raises:
            MissingRuntimeError: there is no answer, or it is an error or not of ``kind``.
        """
        client = await self._connected()
        seconds = self._limits.answer_seconds
        try:
            async with asyncio.timeout(seconds):
                return await client.session.send_request(request, kind)
        except TimeoutError as error:
            await self.close()
            raise MissingRuntimeError(
                f"the tool server {self.name} did not answer within {seconds:g} s and was ended; "
                "it starts again at the next use"
            ) from error
        except ValidationError as error:
            raise MissingRuntimeError(
                f"the tool server {self.name} answered with something that is no "
                f"{kind.__name__} of the protocol; update the server"
            ) from error
        except MCPError as error:
            if self._stop.is_set():
                await self.close()
                raise self._ended("ended while it was asked") from error
            raise MissingRuntimeError(
                f"the tool server {self.name} refused: {clean(error.message, 300)}"
            ) from error
        except Exception as error:  # the connection went away in one of many ways
            await self.close()
            raise self._ended(f"cannot be reached ({_words(error)})") from error

    async def _connected(self) -> Client:
        async with self._starting:
            if self._task is not None and self._stop.is_set():
                await self.close()  # its process ended by itself
            if self._client is None:
                await self._start()
            assert self._client is not None
            return self._client

    async def _start(self) -> None:
        self._stop = asyncio.Event()
        ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._task = asyncio.create_task(self._live(ready), name=f"mcp-{self.name}")
        try:
            await ready
        except MissingRuntimeError as error:
            self.state, self.problem = "failed", str(error)
            await self.close()
            raise
        except asyncio.CancelledError:
            self._stop.set()
            raise
        self.state, self.problem = "ready", ""

    async def _live(self, ready: asyncio.Future[None]) -> None:
        """The life of the connection, in one task."""
        failure: BaseException | None = None
        try:
            async with contextlib.AsyncExitStack() as stack:
                async with asyncio.timeout(self._limits.start_seconds):
                    client = await stack.enter_async_context(self._connection())
                self._client = client
                if not ready.done():
                    ready.set_result(None)
                await self._stop.wait()
        except TimeoutError as error:
            failure = error
            why = f"did not start within {self._limits.start_seconds:g} s"
        except OSError as error:
            failure = error
            why = f"cannot be started ({error.strerror or error})"
        except Exception as error:  # the handshake failed in one of many ways
            failure = error
            how = "ended before it was ready" if self._stop.is_set() else "is no MCP server"
            why = f"{how} ({_words(error)})"
        finally:
            self._client = None
            self._stop.set()
        if failure is None:
            return
        if ready.done():  # nobody waits for it: standard error has it
            traceback.print_exception(failure)
            return
        ended = self._ended(why)
        ended.__cause__ = failure
        ready.set_exception(ended)

    def _connection(self) -> Client:
        cwd = private_directory(self._folder)
        env, stop = environment(self._env), self._stop
        transport = bounded_stdio(self._command, env, cwd, self.log, self._limits, stop.set)
        # The response cache is off: what a server defines is asked each time it matters.
        info = Implementation(name="edgekit", version=__version__)
        return Client(transport, cache=None, client_info=info)

    def _ended(self, what: str) -> MissingRuntimeError:
        last = clean(self.log.last_line(), 200)
        said = f"; it last wrote: {last}" if last else ""
        return MissingRuntimeError(
            f"the tool server {self.name} {what}{said}; check its command and its log"
        )


def _words(error: BaseException) -> str:
    """Kind and text of an error; of a group, which says nothing itself, of its first one."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return clean(f"{type(error).__name__}: {error}".removesuffix(": "), 300)
