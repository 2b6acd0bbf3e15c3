"""The history in the sidebar: search in two languages, names, pins, folders, export, deletion."""

from __future__ import annotations

import json
from pathlib import Path

from harness import Running
from visits import Open


def filled(assistant: Running) -> list[str]:
    """Two conversations: one in English, one in Chinese."""
    ids = [assistant.conversation(), assistant.conversation()]
    vinegar = {"when": "kettle", "text": "Descale it with vinegar."}
    assistant.script(vinegar, {"text": "热泵很安静。"})
    assistant.ask(ids[0], "How do I clean a kettle?")
    assistant.ask(ids[1], "室外机的噪声大吗？")
    return ids


def test_search_finds_an_english_word_and_a_chinese_word_of_two_characters(
    assistant: Running, visit: Open
) -> None:
    filled(assistant)
    here = visit(assistant)
    search = here.page.get_by_role("searchbox", name="Search in conversations")
    search.fill("vinegar")
    hit = here.page.locator(".hit")
    hit.first.wait_for()
    assert [m.lower() for m in hit.locator("mark").all_inner_texts()] == ["vinegar"]
    search.fill("噪声")
    here.page.locator(".hit .hit-text mark", has_text="噪声").first.wait_for()
    assert set(hit.locator("mark").all_inner_texts()) == {"噪声"}
    search.press("ArrowDown")  # the title
    here.page.keyboard.press("ArrowDown")  # the message
    here.page.keyboard.press("Enter")
    here.page.locator(".message.found", has_text="室外机的噪声大吗？").wait_for()
    search.fill("nowhere-to-be-found")
    here.page.get_by_text("Nothing found.").wait_for()


def test_a_conversation_is_renamed_pinned_put_into_a_folder_and_deleted(
    assistant: Running, visit: Open
) -> None:
    filled(assistant)
    here = visit(assistant)
    page = here.page

    def act(title: str, action: str) -> None:
        row = page.locator(".row", has_text=title)
        row.hover()
        row.get_by_role("button").click()
        page.get_by_role("menuitem", name=action).click()

    act("kettle", "Rename")
    page.get_by_role("dialog").get_by_label("Title").fill("Kitchen <b>notes</b>")
    page.keyboard.press("Enter")
    page.locator(".row-title", has_text="Kitchen <b>notes</b>").wait_for()
    act("Kitchen", "Pin")
    page.locator(".group", has_text="Pinned").locator(".row-title").wait_for()
    page.get_by_role("button", name="History and folders").click()
    page.get_by_role("menuitem", name="New folder").click()
    page.get_by_role("dialog").get_by_label("Name").fill("House")
    page.keyboard.press("Enter")
    page.get_by_role("button", name="House", exact=True).wait_for()
    act("室外机", "Move to “House”")
    page.locator(".group", has_text="House").locator(".row-title", has_text="室外机").wait_for()
    act("室外机", "Delete conversation")
    dialog = page.get_by_role("dialog")
    dialog.get_by_role("button", name="Cancel").click()
    assert page.locator(".row", has_text="室外机").count() == 1
    act("室外机", "Delete conversation")
    dialog.get_by_role("button", name="Delete for good").click()
    page.locator(".row", has_text="室外机").wait_for(state="detached")
    assert len(assistant.http.get("/api/conversations").json()) == 1


def test_what_is_exported_can_be_imported_again(
    assistant: Running, visit: Open, tmp_path: Path
) -> None:
    filled(assistant)
    here = visit(assistant)
    page = here.page
    page.get_by_role("button", name="History and folders").click()
    with page.expect_download() as download:
        page.get_by_role("menuitem", name="Export everything").click()
    saved = tmp_path / "all.json"
    download.value.save_as(saved)
    assert "vinegar" in json.dumps(json.loads(saved.read_text()))
    for conversation in assistant.http.get("/api/conversations").json():
        assistant.http.delete(f"/api/conversations/{conversation['id']}")
    page.get_by_role("button", name="History and folders").click()
    with page.expect_file_chooser() as chooser:
        page.get_by_role("menuitem", name="Import conversations").click()
    chooser.value.set_files(saved)
    page.get_by_text("2 conversations were imported.").wait_for()
    assert page.locator(".row").count() == 2
