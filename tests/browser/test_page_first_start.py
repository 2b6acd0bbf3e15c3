"""The first start: no model yet, two ways to one, each explained."""

from __future__ import annotations

import sys
from pathlib import Path

from harness import fake_pack, running, write_script
from playwright.sync_api import Browser
from visits import Open

from edgekit.assistant.demo_job import DemoJob

MAKE_DEMO = """
import json, pathlib, shutil, sys, time
gate, pack, out = sys.argv[1:]
print(json.dumps({"detail": "download", "fraction": 0.4}), flush=True)
while not pathlib.Path(gate).exists():
    time.sleep(0.02)
shutil.copytree(pack, out)
"""


def test_a_pack_is_chosen_by_its_path_and_then_one_can_chat(
    browser: Browser, visit: Open, tmp_path: Path
) -> None:
    pack = fake_pack(tmp_path / "elsewhere" / "pack")
    with running(tmp_path, pack=None) as assistant:
        here = visit(assistant)
        here.page.get_by_role("heading", name="A private assistant on this computer").wait_for()
        ways = here.page.locator(".way").all_inner_texts()
        assert len(ways) == 2 and "93 MB" in ways[0] and "Every byte is checked" in ways[1]
        here.page.get_by_role("button", name="Choose a model…").click()
        dialog = here.page.get_by_role("dialog")
        dialog.get_by_label("Full path of the pack").fill(str(pack / "missing"))
        dialog.get_by_role("button", name="Add").click()
        refusal = here.page.locator(".notice.error")
        refusal.wait_for()
        assert "missing" in refusal.inner_text()
        here.page.get_by_role("button", name="Choose a model…").click()
        dialog.get_by_label("Full path of the pack").fill(str(pack))
        dialog.get_by_role("button", name="Add").click()
        here.page.locator(".device-line[data-state=ready]").wait_for()
        assistant.script({"text": "Hello."})
        here.finished(here.ask("Hi"))
        here.close()


def test_the_demo_model_is_made_with_progress_and_used_when_it_is_ready(
    browser: Browser, visit: Open, tmp_path: Path
) -> None:
    pack, gate = fake_pack(tmp_path / "elsewhere" / "pack"), tmp_path / "gate"
    with running(tmp_path, pack=None) as assistant:
        inner = assistant.assistant
        command = (sys.executable, "-c", MAKE_DEMO, str(gate), str(pack))
        inner.demo = DemoJob(inner.folders.packs, inner._demo_changed, command)
        here = visit(assistant)
        here.page.get_by_role("button", name="Make the demo model").click()
        here.page.get_by_text("Downloading the model…").wait_for()
        here.page.locator("progress[value='0.4']").wait_for()
        gate.touch()
        here.page.locator(".device-line[data-state=ready]").wait_for()
        here.close()


def test_a_damaged_model_is_told_in_a_sentence_with_ways_out(
    browser: Browser, visit: Open, tmp_path: Path
) -> None:
    write_script(tmp_path / "script" / "script.json", load_error="the weights are damaged")
    with running(tmp_path) as assistant:
        here = visit(assistant)
        banner = here.page.locator(".banner.warning")
        banner.wait_for()
        assert "The model could not be loaded:" in banner.inner_text()
        assert "the weights are damaged" in banner.inner_text()
        assert here.page.locator(".send").is_disabled()
        banner.get_by_role("button", name="Choose another model or device").click()
        here.page.get_by_role("heading", name="Models").wait_for()
        here.close()


def test_a_page_without_a_key_shows_nothing_but_how_to_get_one(
    browser: Browser, tmp_path: Path
) -> None:
    with running(tmp_path) as assistant:
        context = browser.new_context(locale="en-US")
        page = context.new_page()
        page.goto(assistant.url)
        page.get_by_role("heading", name="This page is locked").wait_for()
        assert "Conversations" not in page.locator("main").inner_text()
        context.close()
