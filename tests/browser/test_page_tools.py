"""Tools in the page: the whole command before a program starts, the arguments before each call."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from harness import Running
from visits import Open

SERVER = Path(__file__).parents[1] / "assistant" / "mcp_server.py"


@pytest.fixture
def with_server(assistant: Running, visit: Open) -> Running:
    """A server whose command the person has seen and agreed to."""
    here = visit(assistant, path="settings/tools")
    page = here.page
    page.get_by_role("button", name="Add a program").click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_label("Name", exact=True).fill("box")
    dialog.get_by_label("Command, one part a line").fill(f"{sys.executable}\n{SERVER}")
    dialog.get_by_role("button", name="Save").click()
    page.locator(".card", has_text="box").get_by_role("button", name="Show its tools").click()
    question = page.get_by_role("dialog", name="Start this program?")
    shown = question.locator(".verbatim").inner_text()
    assert shown.endswith(str(SERVER)) and "python" in shown
    question.get_by_role("button", name="Start").click()
    page.get_by_role("dialog", name="Tools of box").get_by_text("echo", exact=True).wait_for()
    here.close()
    yield assistant
    assistant.http.delete("/api/mcp/box")


def test_a_call_shows_its_arguments_and_waits_for_a_person(
    with_server: Running, visit: Open
) -> None:
    call = {"name": "box__echo", "arguments": {"text": "a secret"}}
    with_server.script({"when": "please", "calls": [call]}, {"text": "It is done."})
    here = visit(with_server)
    here.page.get_by_role("button", name="Tools").click()
    answer = here.ask("please echo")
    card = answer.locator(".tool.asking")
    card.wait_for()
    assert "a secret" in card.locator(".tool-arguments").inner_text()
    asked = len(with_server.requests())
    card.get_by_role("button", name="Deny").click()
    here.finished(answer)
    results = [m for m in with_server.requests()[asked]["messages"] if m["role"] == "tool"]
    assert "a secret" not in results[0]["content"]  # what the tool would have given back

    answer = here.ask("please echo again")
    answer.get_by_role("button", name="Always allow").click()
    here.finished(answer)
    answer.locator(".tool-result summary").click()
    assert "a secret" in answer.locator(".tool-result pre").inner_text()
    third = here.finished(here.ask("please, a third time"))
    assert third.get_by_role("button", name="Allow once").count() == 0
    here.go("settings/tools")
    here.page.get_by_text("Without asking: echo").wait_for()
    here.page.get_by_role("button", name="Ask again").click()
    here.page.get_by_text("Without asking: echo").wait_for(state="detached")


def test_a_built_in_tool_runs_without_a_question(assistant: Running, visit: Open) -> None:
    call = {"name": "calculator", "arguments": {"expression": "6*7"}}
    assistant.script({"when": "please", "calls": [call]}, {"text": "It is 42."})
    here = visit(assistant, locale="zh-CN")
    here.page.get_by_role("button", name="工具").click()
    answer = here.finished(here.ask("please compute"))
    assert answer.locator(".tool-head strong").inner_text() == "计算器"
    answer.locator(".tool-result summary").click()
    assert "42" in answer.locator(".tool-result pre").inner_text()
