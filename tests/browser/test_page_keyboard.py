"""A whole visit without a mouse: every step is a key, and the focus is where one expects it."""

from __future__ import annotations

from pathlib import Path

from harness import Running
from visits import Open, Visit


def focused(visit: Visit) -> str:
    """The accessible name of the element that has the focus, or its text."""
    return str(visit.page.evaluate(
        """() => { const e = document.activeElement;
        return e.getAttribute("aria-label") || e.innerText || e.placeholder || e.id; }"""
    ))  # fmt: skip


def test_one_can_ask_branch_search_and_change_the_language_with_keys_alone(
    assistant: Running, visit: Open
) -> None:
    assistant.script({"when": "second", "text": "Later."}, {"text": "A first answer."})
    here = visit(assistant)
    keys = here.page.keyboard
    assert focused(here) == "Message"  # one can write at once
    keys.type("The first question")
    keys.press("Shift+Enter")
    keys.type("of two lines")
    keys.press("Enter")
    here.finished(here.page.locator(".answer", has_text="A first answer."))
    assert "question\nof two lines" in here.page.locator(".question-text").inner_text()
    assert focused(here) == "Message"

    keys.press("Shift+Tab")  # back into the conversation
    for _ in range(12):
        if focused(here) == "Edit and ask again":
            break
        keys.press("Shift+Tab")
    keys.press("Enter")
    keys.press("Control+a")
    keys.type("The second question")
    keys.press("Control+Enter")
    here.finished(here.page.locator(".answer", has_text="Later."))

    keys.press("Control+k")
    here.page.get_by_role("dialog", name="Commands").wait_for()
    keys.type("简体")
    keys.press("Enter")
    here.page.locator("html[lang=zh-CN]").wait_for()
    assert here.page.locator(".question-text").inner_text() == "The second question"

    keys.press("Control+k")
    keys.type("设置")
    keys.press("Enter")
    here.page.get_by_role("heading", name="设置", exact=True).wait_for()
    keys.press("/")  # to write, wherever one is
    here.page.locator("textarea.composer-text").wait_for()
    assert focused(here) == "消息"


def test_a_dialog_keeps_the_focus_and_gives_it_back(assistant: Running, visit: Open) -> None:
    here = visit(assistant)
    keys = here.page.keyboard
    line = here.page.locator(".device-why")
    line.focus()
    keys.press("Enter")
    dialog = here.page.get_by_role("dialog", name="Where answers are made, and why")
    dialog.wait_for()
    inside = "document.activeElement.matches('body, dialog *')"  # body: the browser's own bar
    for _ in range(8):
        keys.press("Tab")
        assert here.page.evaluate(inside)
    rows = dialog.locator("tbody tr").all_inner_texts()
    assert any("CPU · OpenVINO" in row and "Chosen" in row for row in rows)
    keys.press("Escape")
    assert here.page.evaluate("document.activeElement.className") == "device-why"


def test_a_menu_opens_moves_and_closes_with_keys(assistant: Running, visit: Open) -> None:
    here = visit(assistant)
    keys = here.page.keyboard
    button = here.page.locator(".composer-row .chip-button").first
    button.focus()
    keys.press("Enter")
    here.page.get_by_role("menu").wait_for()
    assert focused(here).startswith("Assistant")
    keys.press("ArrowDown")
    assert focused(here).startswith("Writer")
    keys.press("End")
    keys.press("ArrowDown")  # around
    assert focused(here).startswith("Assistant")
    keys.press("Escape")
    assert here.page.get_by_role("menu").count() == 0
    assert here.page.evaluate("document.activeElement.getAttribute('aria-expanded')") == "false"
    keys.press("Enter")
    keys.press("ArrowDown")
    keys.press("Enter")
    assert button.inner_text().strip() == "Writer"


def test_the_key_that_sends_is_the_one_that_was_chosen(assistant: Running, visit: Open) -> None:
    assistant.http.put("/api/settings", json={"send_key": "ctrl-enter"})
    assistant.script({"text": "Received."})
    here = visit(assistant)
    keys = here.page.keyboard
    keys.type("one")
    keys.press("Enter")
    keys.type("two")
    assert here.composer.input_value() == "one\ntwo"
    keys.press("Control+Enter")
    here.finished(here.page.locator(".answer", has_text="Received."))


def test_escape_stops_an_answer_also_while_one_writes(
    assistant: Running, visit: Open, tmp_path: Path
) -> None:
    assistant.script({"text": "One two three four five.", "hold": str(tmp_path / "never")})
    here = visit(assistant)
    answer = here.ask("count")
    answer.locator(".rich", has_text="One").wait_for()
    here.page.keyboard.type("my next thought")
    here.page.keyboard.press("Escape")
    answer.get_by_text("Stopped here.").wait_for()
    assert here.composer.input_value() == "my next thought"
