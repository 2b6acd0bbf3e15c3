"""MCP servers over stdio: consent, policy, and servers that misbehave."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import stat
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from edgekit.assistant.policy import Policy
from edgekit.assistant.tools.arguments import schema_problem
from edgekit.assistant.tools.bounded_stdio import Limits
from edgekit.assistant.tools.commands import resolved
from edgekit.assistant.tools.mcp_servers import McpServer
from edgekit.assistant.tools.toolbox import ToolBox
from edgekit.errors import BadInputError, MissingRuntimeError

SERVER = Path(__file__).with_name("mcp_server.py")
LIMITS = Limits(start_seconds=20, answer_seconds=20, exit_seconds=0.3)
QUICK_TO_START = Limits(start_seconds=1, answer_seconds=20, exit_seconds=0.3)
QUICK_TO_ANSWER = Limits(start_seconds=20, answer_seconds=1.5, exit_seconds=0.3)
SMALL = Limits(20, 20, 0.3, line_bytes=200_000, answer_bytes=2_000_000)


def command(mode: str = "honest", *more: object) -> list[str]:
    return [sys.executable, str(SERVER), mode, *map(str, more)]


def with_box(
    folder: Path,
    act: Callable[[ToolBox], Awaitable[Any]],
    policy: Policy = Policy(),  # noqa: B008
    limits: Limits = LIMITS,
) -> Any:
    """Run ``act`` with a tool box, close it, and see that none of its processes is left."""

    async def run() -> Any:
        box = ToolBox(folder / "mcp.json", None, policy, limits=limits)
        try:
            return await act(box)
        finally:
            await box.close()

    result = asyncio.run(run())
    assert servers_alive() == []
    return result


def servers_alive() -> list[psutil.Process]:
    """Server processes below this one, zombies included."""
    children = psutil.Process().children(recursive=True)
    return [c for c in children if c.status() == "zombie" or str(SERVER) in " ".join(c.cmdline())]


def with_server(
    folder: Path, mode: str, *more: object, limits: Limits = LIMITS, name: str = "echo"
) -> Any:
    """Confirm a server and call one of its tools once."""

    async def act(box: ToolBox) -> Any:
        box.add_server("t", command(mode, *more))
        await box.tools("t", confirm=True)
        return await box.call(f"t__{name}", {"text": "hi"} if name == "echo" else {}, "once")

    return with_box(folder, act, limits=limits)


def test_server_runs_only_after_its_command_was_confirmed(tmp_path: Path) -> None:
    async def act(box: ToolBox) -> None:
        info = box.add_server("t", command())
        assert (info.state, info.confirmed, info.command) == ("unconfirmed", False, info.resolved)
        with pytest.raises(BadInputError, match="nobody has confirmed"):
            await box.tools("t")
        assert [d["function"]["name"] for d in await box.definitions()] == ["calculator", "clock"]
        assert servers_alive() == []
        tools = await box.tools("t", confirm=True)
        assert [t.name for t in tools] == ["t__echo", "t__add", "t__environment"]
        assert len(servers_alive()) == 1

    with_box(tmp_path, act)

    async def later(box: ToolBox) -> None:
        assert len(await box.definitions()) == 5  # confirmed once is confirmed
        assert box.servers()[0].state == "ready"

    with_box(tmp_path, later)


def test_command_changed_in_the_file_is_not_confirmed(tmp_path: Path) -> None:
    async def confirm(box: ToolBox) -> None:
        box.add_server("t", command())
        await box.tools("t", confirm=True)

    with_box(tmp_path, confirm)
    path = tmp_path / "mcp.json"
    path.write_text(path.read_text().replace('"honest"', '"crash"'))

    async def look(box: ToolBox) -> None:
        assert box.servers()[0].state == "unconfirmed"
        assert len(await box.definitions()) == 2

    with_box(tmp_path, look)


def test_tool_is_called_only_with_consent(tmp_path: Path) -> None:
    async def act(box: ToolBox) -> None:
        box.add_server("t", command())
        await box.tools("t", confirm=True)
        assert box.needs_consent("t__add")
        refused = await box.call("t__add", {"a": 1, "b": 2})
        assert refused.is_error and "did not allow" in refused.text
        assert (await box.call("t__add", {"a": 1, "b": 2}, "once")).text == "3"
        assert box.needs_consent("t__add")
        assert (await box.call("t__add", '{"a": 2, "b": 2}', "always")).text == "4"
        assert not box.needs_consent("t__add") and box.needs_consent("t__echo")
        assert (await box.call("t__add", {"a": 3, "b": 2})).text == "5"
        wrong = await box.call("t__add", {"a": "3", "b": 2})
        assert wrong.is_error and "is not of type 'number'" in wrong.text

    with_box(tmp_path, act)

    async def later(box: ToolBox) -> None:
        await box.definitions()
        assert not box.needs_consent("t__add")
        box.forget_consents("t")
        assert box.needs_consent("t__add")

    with_box(tmp_path, later)


def test_changed_definition_needs_consent_again(tmp_path: Path) -> None:
    state = tmp_path / "state"

    async def act(box: ToolBox) -> None:
        box.add_server("t", command("changing", state))
        await box.tools("t", confirm=True)
        assert (await box.call("t__echo", {"text": "a"}, "always")).text == "a"
        state.touch()  # from now on the server describes its tool differently
        sly = await box.call("t__echo", {"text": "b"})
        assert sly.is_error and "changed its definition" in sly.text
        assert not box.needs_consent("t__echo")  # of the definition that was offered
        await box.definitions()
        assert box.needs_consent("t__echo")
        info = box.describe("t__echo")
        assert info is not None and "sends it to a friend" in info.description
        refused = await box.call("t__echo", {"text": "c"})
        assert refused.is_error and "did not allow" in refused.text
        assert (await box.call("t__echo", {"text": "d"}, "once")).text == "d"
        assert (await box.call("t__add", {"a": 1, "b": 1}, "once")).text == "2"

    with_box(tmp_path, act)


def test_nothing_is_read_by_a_shell(tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    sly = f"$(touch {canary}); `touch {canary}` && touch {canary} | x > {canary} * ~ %PATH% '\"\n"

    async def act(box: ToolBox) -> None:
        box.add_server("t", command("honest", sly))
        await box.tools("t", confirm=True)
        assert (await box.call("t__echo", {"text": sly}, "once")).text == sly
        result = await box.call("t__environment", {}, "once")
        assert json.loads(result.text)["argv"][2] == sly

    with_box(tmp_path, act)
    assert not canary.exists()


def test_server_gets_a_small_environment_and_a_private_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    monkeypatch.setenv("EDGEKIT_TOKEN", "secret")

    async def act(box: ToolBox) -> None:
        box.add_server("t", command(), {"MY_TOKEN": "given"})
        assert box.servers()[0].variables == ("MY_TOKEN",)
        await box.tools("t", confirm=True)
        seen = json.loads((await box.call("t__environment", {}, "once")).text)
        assert seen["env"]["MY_TOKEN"] == "given" and "PATH" in seen["env"]
        assert not {"OPENAI_API_KEY", "EDGEKIT_TOKEN", "PYTHONPATH"} & set(seen["env"])
        assert Path(seen["cwd"]) == (tmp_path / "mcp" / "t").resolve()

    with_box(tmp_path, act)
    if os.name == "posix":
        assert stat.S_IMODE((tmp_path / "mcp" / "t").stat().st_mode) == 0o700
        assert stat.S_IMODE((tmp_path / "mcp.json").stat().st_mode) == 0o600


def test_crash_in_a_call_is_told_and_the_next_call_starts_the_server_again(tmp_path: Path) -> None:
    async def act(box: ToolBox) -> None:
        box.add_server("t", command("crash"))
        await box.tools("t", confirm=True)
        for _ in range(2):
            result = await box.call("t__echo", {"text": "x"}, "once")
            assert result.is_error and "ended while it was asked" in result.text
            assert "about to fall over" in result.text  # what it last wrote

    with_box(tmp_path, act)


def test_server_killed_between_two_calls_is_started_again(tmp_path: Path) -> None:
    async def act(box: ToolBox) -> None:
        box.add_server("t", command())
        await box.tools("t", confirm=True)
        [process] = servers_alive()
        process.kill()
        result = await box.call("t__echo", {"text": "back"}, "once")
        if result.is_error:  # it may have been asked in the moment of its death
            result = await box.call("t__echo", {"text": "back"}, "once")
        assert result.text == "back"

    with_box(tmp_path, act)


def test_hanging_call_is_given_up_and_the_server_ended(tmp_path: Path) -> None:
    result = with_server(tmp_path, "hang", limits=QUICK_TO_ANSWER)
    assert result.is_error and "did not answer within 1.5 s and was ended" in result.text


def test_silent_server_does_not_start_and_is_not_tried_in_every_turn(tmp_path: Path) -> None:
    async def act(box: ToolBox) -> None:
        box.add_server("t", command("silent"))
        with pytest.raises(MissingRuntimeError, match="did not start within 1 s"):
            await box.tools("t", confirm=True)
        assert servers_alive() == []
        await box.definitions()  # starts nothing
        [info] = box.servers()
        assert (info.state, servers_alive()) == ("failed", [])
        assert "did not start" in info.problem
        await box.restart("t")
        assert box.servers()[0].state == "stopped"

    with_box(tmp_path, act, limits=QUICK_TO_START)


def test_server_that_ends_at_once_says_why(tmp_path: Path) -> None:
    with pytest.raises(MissingRuntimeError, match=r"ended before.*the licence has expired"):
        with_server(tmp_path, "no-start")


@pytest.mark.parametrize(
    ("mode", "sentence"),
    [("endless-line", "a line of its output is larger"), ("flood", "an answer of its output is")],
)
def test_huge_output_ends_the_server(tmp_path: Path, mode: str, sentence: str) -> None:
    result = with_server(tmp_path, mode, limits=SMALL)
    assert result.is_error and sentence in result.text


def test_long_result_is_cut_and_says_so(tmp_path: Path) -> None:
    result = with_server(tmp_path, "long")
    assert len(result.text) < 70_000 and "the result had 500000 characters" in result.text


def test_lines_that_are_no_messages_are_passed_over(tmp_path: Path) -> None:
    assert with_server(tmp_path, "garbage").text == "hi"


def test_answer_against_the_protocol_is_an_error(tmp_path: Path) -> None:
    result = with_server(tmp_path, "nonsense")
    assert result.is_error and "is no CallToolResult of the protocol" in result.text


def test_listing_without_an_end_is_bounded(tmp_path: Path) -> None:
    assert with_server(tmp_path, "endless-pages").text == "hi"


def test_names_and_texts_of_a_server_are_not_trusted(tmp_path: Path) -> None:
    async def act(box: ToolBox) -> None:
        box.add_server("t", command("shifty"))
        tools = {tool.tool: tool for tool in await box.tools("t", confirm=True)}
        assert set(tools) == {"ok", "hidden", "dotted.name/part", "n" * 100}
        assert len(tools["ok"].description) == 1024
        assert tools["hidden"].description == "beforeafter"
        names = [tool.name for tool in tools.values()]
        assert "t__dotted_name_part" in names and max(map(len, names)) == 64
        [info] = box.servers()
        for words in ("name is not valid", "has this name already", "is larger than"):
            assert words in info.problem
        offered = {d["function"]["name"]: d["function"] for d in await box.definitions()}
        text = offered["t__hidden"]["description"]
        assert text.startswith("(described by the tool server t)")

    with_box(tmp_path, act)


def test_log_keeps_the_last_of_a_chatty_server(tmp_path: Path) -> None:
    async def act(box: ToolBox) -> None:
        box.add_server("t", command("chatty"))
        await box.tools("t", confirm=True)
        async with asyncio.timeout(10):
            while "the end of the log" not in box.server_log("t"):
                await asyncio.sleep(0.01)
        assert len(box.server_log("t")) <= LIMITS.log_bytes

    with_box(tmp_path, act)


def test_server_that_ignores_the_end_is_killed(tmp_path: Path) -> None:
    async def act(box: ToolBox) -> None:
        box.add_server("t", command("stubborn"))
        await box.tools("t", confirm=True)
        assert len(servers_alive()) == 1

    with_box(tmp_path, act)  # looks for processes after closing


def test_children_of_a_server_end_with_it(tmp_path: Path) -> None:
    state = tmp_path / "child"

    async def act(box: ToolBox) -> int:
        box.add_server("t", command("family", state))
        await box.tools("t", confirm=True)
        return int(state.read_text())

    child = with_box(tmp_path, act)
    deadline = time.monotonic() + 10
    while not ended(child):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def ended(pid: int) -> bool:
    """Whether a process is gone, or waits for a parent that does not care."""
    try:
        return psutil.Process(pid).status() == "zombie"
    except psutil.NoSuchProcess:
        return True


def test_removed_server_takes_its_consents_along(tmp_path: Path) -> None:
    async def act(box: ToolBox) -> None:
        box.add_server("t", command())
        await box.tools("t", confirm=True)
        await box.call("t__echo", {"text": "x"}, "always")
        await box.remove_server("t")
        assert box.servers() == [] and servers_alive() == []
        gone = await box.call("t__echo", {"text": "x"}, "once")
        assert gone.is_error and "there is no tool" in gone.text
        box.add_server("t", command())
        assert not box.servers()[0].confirmed
        await box.tools("t", confirm=True)
        assert box.needs_consent("t__echo")

    with_box(tmp_path, act)


def test_policy_is_held_when_adding_starting_and_calling(tmp_path: Path) -> None:
    async def prepare(box: ToolBox) -> None:
        box.add_server("t", command())
        await box.tools("t", confirm=True)
        await box.call("t__echo", {"text": "x"}, "always")
        box._policy = Policy(mcp="forbidden", source="p")  # tightened while it runs
        result = await box.call("t__echo", {"text": "x"})
        assert result.is_error and "owner of this machine forbids" in result.text

    with_box(tmp_path, prepare)

    async def forbidden(box: ToolBox) -> None:
        assert len(await box.definitions()) == 2
        with pytest.raises(BadInputError, match="owner of this machine"):
            await box.tools("t", confirm=True)
        with pytest.raises(BadInputError, match="owner of this machine"):
            box.add_server("u", command("long"))
        assert "owner" in box.servers()[0].problem and servers_alive() == []

    with_box(tmp_path, forbidden, Policy(mcp="forbidden", source="p"))
    other = Policy(mcp="listed", mcp_commands=(("/bin/other",),), source="p")
    with_box(tmp_path, forbidden, other)

    async def listed(box: ToolBox) -> None:
        assert len(await box.definitions()) == 5

    mine = Policy(mcp="listed", mcp_commands=(tuple(resolved(command())),), source="p")
    with_box(tmp_path, listed, mine)


def test_two_calls_at_once_start_one_server(tmp_path: Path) -> None:
    async def act(box: ToolBox) -> None:
        box.add_server("t", command())
        await box.tools("t", confirm=True)
        await box.restart("t")
        calls = [box.call("t__echo", {"text": str(n)}, "once") for n in range(5)]
        results = await asyncio.gather(*calls)
        assert [r.text for r in results] == list("01234")
        assert len(servers_alive()) == 1

    with_box(tmp_path, act)


def test_server_of_the_protocols_own_package_is_understood(tmp_path: Path) -> None:
    script = tmp_path / "server.py"
    script.write_text(
        "from mcp.server import MCPServer\n"
        "server = MCPServer('weather')\n"
        "@server.tool()\n"
        "def forecast(city: str, days: int = 1) -> str:\n"
        "    '''The forecast for a city.'''\n"
        "    return f'{city}: sun for {days} days'\n"
        "server.run()\n"
    )

    async def act(box: ToolBox) -> None:
        box.add_server("weather", [sys.executable, str(script)])
        [tool] = await box.tools("weather", confirm=True)
        assert (tool.name, tool.description) == ("weather__forecast", "The forecast for a city.")
        result = await box.call(tool.name, {"city": "成都", "days": 2}, "once")
        assert (result.text, result.is_error) == ("成都: sun for 2 days", False)
        wrong = await box.call(tool.name, {"days": 2}, "once")
        assert wrong.is_error and "'city' is a required property" in wrong.text

    with_box(tmp_path, act)


def test_what_ends_a_connection_that_nobody_waits_for_reaches_standard_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    @contextlib.asynccontextmanager
    async def connection(_: McpServer) -> AsyncIterator[None]:
        yield
        raise RuntimeError("lost while it was idle")

    async def run() -> None:
        server = McpServer("notes", command(), {}, tmp_path, LIMITS)
        await server._start()
        await server.close()

    monkeypatch.setattr(McpServer, "_connection", connection)
    asyncio.run(run())
    assert "RuntimeError: lost while it was idle" in capsys.readouterr().err


def test_a_handshake_that_fails_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where it comes in a group, whose own words say nothing."""

    @contextlib.asynccontextmanager
    async def connection(_: McpServer) -> AsyncIterator[None]:
        raise ExceptionGroup("unhandled errors", [ValueError("it greeted in HTTP")])
        yield

    monkeypatch.setattr(McpServer, "_connection", connection)
    server = McpServer("notes", command(), {}, tmp_path, LIMITS)
    with pytest.raises(MissingRuntimeError, match=r"notes .*\(ValueError: it greeted in HTTP\)"):
        asyncio.run(server._start())


def test_what_breaks_the_validator_is_told() -> None:
    said = schema_problem({"type": "object", "required": 7}, {"a": 1})
    assert "is not a JSON schema (TypeError: 'int' object is not iterable)" in said
