"""Commands, variables and the file of the tool servers."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from edgekit.assistant.policy import Policy
from edgekit.assistant.tools import commands
from edgekit.assistant.tools.commands import environment, resolved
from edgekit.assistant.tools.toolbox import ToolBox
from edgekit.errors import BadInputError


def box(folder: Path) -> ToolBox:
    return ToolBox(folder / "mcp.json", None, Policy())


@pytest.mark.parametrize(
    "command",
    [
        "python server.py",
        [],
        [""],
        ["./server"],
        ["../bin/server"],
        ["sub/server"],
        ["no-such-program-anywhere"],
        ["/no/such/program"],
        [sys.executable, "a\0b"],
        [sys.executable, 5],
        [sys.executable] + ["x"] * 100,
        [sys.executable, "x" * 5000],
    ],
)
def test_command_that_cannot_be_one_is_refused(tmp_path: Path, command: Any) -> None:
    with pytest.raises(BadInputError):
        box(tmp_path).add_server("t", command)
    assert not (tmp_path / "mcp.json").exists()


@pytest.mark.parametrize("name", ["", "A", "a_b", "a b", "-a", "a" * 17, "../x", "服务", "a/b"])
def test_name_that_cannot_be_one_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(BadInputError, match="cannot name a tool server"):
        box(tmp_path).add_server(name, [sys.executable])


def test_name_is_given_once(tmp_path: Path) -> None:
    tools = box(tmp_path)
    tools.add_server("t", [sys.executable])
    with pytest.raises(BadInputError, match="already"):
        tools.add_server("t", [sys.executable, "x"])


@pytest.mark.parametrize("env", [{"A=B": "x"}, {"": "x"}, {"A": "x\0"}, {"A": 5}, {"A B": "x"}])
def test_variable_that_cannot_be_one_is_refused(tmp_path: Path, env: Any) -> None:
    with pytest.raises(BadInputError, match="env:"):
        box(tmp_path).add_server("t", [sys.executable], env)


def test_program_is_found_on_absolute_folders_of_the_path_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "my-server"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", ":.::")
    with pytest.raises(BadInputError, match="not a program"):
        resolved(["my-server"])
    monkeypatch.setenv("PATH", str(tmp_path))
    assert resolved(["my-server", "x"]) == [str(program), "x"]


@pytest.mark.parametrize("word", ["a&b", "%PATH%", "x|y", 'say "hi"', "a^b", "a\nb"])
def test_batch_file_takes_no_word_that_its_shell_would_interpret(tmp_path: Path, word: str) -> None:
    batch = tmp_path / "npx.cmd"
    batch.write_text("")
    batch.chmod(0o755)
    assert resolved([str(batch), "-y", "pkg@1"]) == [str(batch), "-y", "pkg@1"]
    with pytest.raises(BadInputError, match=r"cmd\.exe would interpret"):
        resolved([str(batch), word])


def test_given_variables_win_and_nothing_else_is_inherited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSH_AUTH_SOCK", "/run/agent")
    monkeypatch.setenv("HOME", "/home/a")
    given = environment({"HOME": "/elsewhere", "X": "1"})
    assert given["HOME"] == "/elsewhere" and given["X"] == "1"
    assert set(given) <= {*commands.INHERITED, "X", "HOME"}


DAMAGED = {
    "no JSON": "{",
    "a list": "[]",
    "another version": '{"version": 2}',
    "an unknown field": '{"version": 1, "shell": true}',
    "a command line": '{"version": 1, "servers": {"t": {"command": "rm -rf /"}}}',
    "a relative program": '{"version": 1, "servers": {"t": {"command": ["./x"]}}}',
    "a bad name": '{"version": 1, "servers": {"T/": {"command": ["x"]}}}',
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_damaged_file_is_told_and_kept_when_a_new_one_is_written(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "mcp.json"
    path.write_text(DAMAGED[kind])
    tools = box(tmp_path)
    assert str(path) in tools.problem and "is kept" in tools.problem
    assert tools.servers() == [] and path.read_text() == DAMAGED[kind]
    tools.add_server("t", [sys.executable])
    assert tools.problem == ""
    assert (tmp_path / "mcp.json.damaged-0").read_text() == DAMAGED[kind]
    assert json.loads(path.read_text())["servers"]["t"]["command"] == [sys.executable]
    assert [s.name for s in box(tmp_path).servers()] == ["t"]


def test_values_of_variables_are_not_shown(tmp_path: Path) -> None:
    tools = box(tmp_path)
    tools.add_server("t", [sys.executable], {"TOKEN": "hush-hush"})
    assert "hush-hush" not in repr(tools.servers())
