"""Documents in the page: adding, asking, the cited passage, and that nothing was found."""

from __future__ import annotations

from pathlib import Path

from harness import Running
from visits import Open

MANUAL = """# Outdoor unit

## Clearances

Leave at least 30 cm between the outdoor unit and the wall behind it.

## Night mode

夜间模式会降低风扇转速。
"""


def test_a_question_is_answered_from_a_document_and_the_citation_opens_its_passage(
    assistant: Running, visit: Open, tmp_path: Path
) -> None:
    manual = tmp_path / "manual.md"
    manual.write_text(MANUAL)
    assistant.script({"text": "At least 30 cm [1]. Not [7]."})
    here = visit(assistant, path="documents")
    here.page.get_by_role("button", name="Add a file").click()
    here.page.get_by_label("Full path on this computer").fill(str(manual))
    here.page.get_by_role("dialog").get_by_role("button", name="Add").click()
    card = here.page.locator(".card", has_text="manual.md")
    card.get_by_text("ready").wait_for()
    assert "1 file" in card.inner_text()

    here.page.get_by_role("button", name="New conversation").click()
    toggle = here.page.get_by_role("button", name="Documents")
    assert toggle.get_attribute("aria-pressed") == "true"
    answer = here.finished(here.ask("How far from the wall must the outdoor unit be?"))
    assert answer.locator(".citation").all_inner_texts() == ["1"]  # [7] points nowhere
    assert "manual.md" in answer.locator(".sources").inner_text()
    answer.locator(".citation").click()
    sheet = here.page.get_by_role("dialog", name="Source 1")
    assert "30 cm" in sheet.locator("mark").inner_text()
    assert "manual.md" in sheet.inner_text()
    here.page.keyboard.press("Escape")
    focused = "document.activeElement.className"
    assert here.page.evaluate(focused) == "citation"  # back where one was reading

    unknown = here.finished(here.ask("zyzzyva quux?"))
    assert "Nothing was found in your documents." in unknown.inner_text()


def test_a_copy_is_uploaded_and_a_file_that_cannot_be_read_says_so(
    assistant: Running, visit: Open, tmp_path: Path
) -> None:
    broken = tmp_path / "broken.pdf"
    broken.write_bytes(b"%PDF-1.7 nothing else")
    here = visit(assistant, path="documents")
    with here.page.expect_file_chooser() as chooser:
        here.page.get_by_role("button", name="Upload a copy").click()
    chooser.value.set_files(broken)
    card = here.page.locator(".card", has_text="broken.pdf")
    card.locator(".problems summary").wait_for()
    card.locator(".problems summary").click()
    assert "broken.pdf" in card.locator(".problems li").inner_text()
    card.get_by_role("button", name="Remove").click()
    here.page.get_by_role("dialog").get_by_role("button", name="Remove").click()
    here.page.get_by_text("No documents yet.").wait_for()
