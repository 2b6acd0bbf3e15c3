"""Chatting in the page: streaming, stopping, branches, devices, code, links."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from harness import Running, running, wait, write_script
from visits import Open

CODE = "Here:\n\n```python\nprint(1)\n```\n\n| a | b |\n|---|---|\n| 1 | 2 |\n"


@pytest.mark.parametrize(
    ("language", "question", "reply", "title"),
    [
        ("en", "How is the weather?", "Sunny **all day**.", "New conversation"),
        ("zh-CN", "今天天气怎么样？", "今天**晴朗**。", "新对话"),
    ],
)
def test_a_question_is_answered_in_the_person_s_language(
    assistant: Running, visit: Open, language: str, question: str, reply: str, title: str
) -> None:
    assistant.script({"text": reply, "thinking": "Hmm."})
    here = visit(assistant, locale=language)
    assert here.page.locator("html").get_attribute("lang") == language
    assert here.page.locator("h1").inner_text() == title
    answer = here.finished(here.ask(question))
    assert answer.locator(".rich strong").count() == 1
    assert answer.locator(".rich").inner_text().strip() == reply.replace("*", "")
    assert not answer.locator(".thinking-text").is_visible()  # folded
    assert here.composer.input_value() == ""
    assert question in here.page.locator(".row-title").first.inner_text()
    spoken = here.page.locator("#spoken").inner_text()
    assert reply.replace("*", "") in spoken  # whole sentences, once


def test_an_answer_that_streams_is_stopped_by_escape_and_keeps_what_came(
    assistant: Running, visit: Open, tmp_path: Path
) -> None:
    assistant.script({"text": "One two three four five six.", "hold": str(tmp_path / "never")})
    here = visit(assistant)
    answer = here.ask("count")
    answer.locator(".rich", has_text="One").wait_for()
    assert here.page.locator(".send.stops").is_visible()
    here.page.keyboard.press("Escape")
    answer.get_by_text("Stopped here.").wait_for()
    here.finished(answer)
    assert "six" not in answer.inner_text()
    assert here.page.locator(".send.stops").count() == 0


def test_a_page_that_is_reloaded_reads_on_and_can_still_stop(
    assistant: Running, visit: Open, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    assistant.script({"text": "First second third fourth.", "hold": str(gate)})
    here = visit(assistant)
    here.ask("count").locator(".rich", has_text="First").wait_for()
    here.page.reload()
    here.page.locator(".send.stops").wait_for()
    gate.touch()
    here.page.locator(".answer .rich", has_text="fourth.").wait_for()
    here.finished(here.page.locator(".answer"))
    assert here.page.locator(".answer").count() == 1


def test_an_edited_question_becomes_a_branch_and_both_can_be_shown(
    assistant: Running, visit: Open
) -> None:
    assistant.script({"when": "dogs", "text": "Dogs bark."}, {"when": "cats", "text": "Cats purr."})
    here = visit(assistant)
    here.finished(here.ask("What about dogs?"))
    question = here.page.locator(".question")
    question.hover()
    question.get_by_role("button", name="Edit and ask again").click()
    question.locator("textarea").fill("What about cats?")
    question.locator("textarea").press("Control+Enter")
    here.page.locator(".answer", has_text="Cats purr.").wait_for()
    here.finished(here.page.locator(".answer"))
    branches = here.page.get_by_role("group", name="Versions")
    assert branches.inner_text().strip() == "2/2"
    branches.get_by_role("button", name="Previous version").click()
    here.page.locator(".answer", has_text="Dogs bark.").wait_for()
    assert here.page.locator(".question-text").inner_text() == "What about dogs?"
    assert here.page.get_by_role("group", name="Versions").inner_text().strip() == "1/2"


def test_an_answer_is_made_again_and_on_another_device(assistant: Running, visit: Open) -> None:
    assistant.script({"text": "Number one."})
    here = visit(assistant)
    answer = here.finished(here.ask("a number"))
    assistant.script({"text": "Number two."})
    answer.get_by_role("button", name="Answer again", exact=True).click()
    second = here.page.locator(".answer", has_text="Number two.")
    here.finished(second)
    assert second.get_by_role("group", name="Versions").inner_text().strip() == "2/2"
    assistant.script({"text": "Number three."})
    second.get_by_role("button", name="Answer again on another device").click()
    with here.page.expect_request("**/turns") as request:
        here.page.get_by_role("menuitem", name="ONNX Runtime").click()
    assert request.value.post_data_json["target"] == "onnx-cpu"
    third = here.finished(here.page.locator(".answer", has_text="Number three."))
    assert third.get_by_role("group", name="Versions").inner_text().strip() == "3/3"


def test_the_device_is_named_explained_and_changed_with_a_click_each(
    assistant: Running, visit: Open
) -> None:
    assistant.script({"text": "Fast."})
    here = visit(assistant)
    here.finished(here.ask("go"))
    line = here.page.locator(".device-line")
    assert "CPU · OpenVINO · fake · 20 tokens/s" in line.inner_text()
    line.get_by_role("button", name="Change").click()
    with here.page.expect_request("**/api/engine") as request:
        here.page.get_by_role("menuitemradio", name="ONNX Runtime").click()
    assert request.value.post_data_json == {"target": "onnx-cpu"}
    wait(lambda: here.page.wait_for_timeout(20) or assistant.state()["settings"]["target"])
    assert assistant.state()["settings"]["target"] == "onnx-cpu"


def test_code_is_framed_tables_scroll_and_links_ask_first(assistant: Running, visit: Open) -> None:
    assistant.script({"text": CODE + "\nSee [this](https://example.org/a?b=1)."})
    here = visit(assistant)
    opened: list[Any] = []
    here.page.route(
        "**/api/open-link", lambda r: (opened.append(r.request.post_data_json), r.fulfill(json={}))
    )
    answer = here.finished(here.ask("code"))
    assert answer.locator(".code figcaption").inner_text().strip() == "python"
    assert answer.get_by_role("button", name="Copy the code").is_visible()
    assert answer.locator(".table td").first.inner_text() == "1"
    answer.get_by_role("link", name="this").click()
    dialog = here.page.get_by_role("dialog")
    assert "https://example.org/a?b=1" in dialog.inner_text()
    here.page.keyboard.press("Escape")
    assert opened == []
    answer.get_by_role("link", name="this").click()
    dialog.get_by_role("button", name="Open in the browser").click()
    wait(lambda: here.page.wait_for_timeout(10) or opened)
    assert opened == [{"url": "https://example.org/a?b=1"}]


def test_hostile_markdown_shows_no_image_runs_no_script_and_asks_nothing_of_the_network(
    assistant: Running, visit: Open
) -> None:
    hostile = (
        "![x](https://evil.example/a.png) <img src=https://evil.example/b onerror=alert(1)>"
        "<script>window.owned = 1</script> [run](javascript:window.owned=1) "
        "<a href='https://evil.example' style='position:fixed;inset:0'>x</a>\n\n"
        "```\n<script>window.owned = 1</script>\n```\n"
        "<iframe src=https://evil.example></iframe><form action=https://evil.example><button>go"
    )
    assistant.script({"text": hostile})
    policy = assistant.http.get("/").headers["content-security-policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy
    here = visit(assistant)
    here.page.on("dialog", lambda dialog: here.problems.append(f"dialog: {dialog.message}"))
    answer = here.finished(here.ask("be evil"))
    for tag in ("img", "script", "iframe", "form", "[style]", "[onerror]", "[href^=javascript]"):
        assert answer.locator(f".rich {tag}").count() == 0, tag
    for link in answer.locator(".rich a").all():
        link.click(force=True)
        here.page.keyboard.press("Escape")
    assert here.page.evaluate("window.owned") is None
    assert here.page.url.startswith(assistant.url)


def test_a_model_that_dies_leaves_a_sentence_and_the_words_that_came(
    assistant: Running, visit: Open
) -> None:
    assistant.script({"text": "One two three four five six.", "die": True})
    here = visit(assistant)
    answer = here.ask("count")
    answer.locator(".note.error").wait_for()
    assert "No complete answer" in answer.locator(".note.error").inner_text()
    assert "One" in answer.locator(".rich").inner_text()
    here.page.locator(".device-line[data-state=ready]").wait_for()


def test_a_message_written_while_the_model_loads_is_sent_when_it_is_ready(
    visit: Open, tmp_path: Path
) -> None:
    script = tmp_path / "script" / "script.json"
    write_script(script, load_seconds=3600)
    with running(tmp_path) as assistant:
        here = visit(assistant)
        here.page.locator(".device-line[data-state=loading]").wait_for()
        here.composer.fill("Are you there?")
        here.composer.press("Enter")
        here.page.get_by_text("Your message goes out as soon as it is ready").wait_for()
        assistant.script({"text": "Here I am."})  # and loaded
        here.page.locator(".answer", has_text="Here I am.").wait_for()
        here.close()


def test_a_huge_paste_is_asked_about_and_not_poured_into_the_page(
    assistant: Running, visit: Open
) -> None:
    here = visit(assistant)
    paste = """text => {
        const data = new DataTransfer();
        data.setData("text/plain", text);
        document.querySelector("textarea.composer-text").dispatchEvent(
            new ClipboardEvent("paste", {clipboardData: data, bubbles: true, cancelable: true}));
    }"""
    here.page.evaluate(paste, "words " * 200_000)
    dialog = here.page.get_by_role("dialog")
    assert "1,200,000 characters" in dialog.inner_text()
    dialog.get_by_role("button", name="Insert the first").click()
    assert len(wait(here.composer.input_value)) <= 8000
