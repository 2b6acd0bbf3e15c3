"""The cloud teacher in the page: nothing leaves without the preview and the person's word."""

from __future__ import annotations

import json
from pathlib import Path

from fake_cloud import FakeCloud
from harness import Running, running, wait
from playwright.sync_api import Browser
from visits import Open

from edgekit.assistant.policy import Policy

QUESTION = "Please answer lin@example.com about the lease"


def test_a_preview_shows_every_byte_and_refusing_it_sends_none(
    assistant: Running, visit: Open
) -> None:
    with FakeCloud() as cloud:
        here = visit(assistant, path="settings/cloud")
        page = here.page
        page.get_by_label("Name", exact=False).first.fill("Teacher")
        page.get_by_label("Address").fill(cloud.url)
        page.get_by_label("Model", exact=False).last.fill("large-1")
        page.get_by_role("button", name="Save").click()
        page.get_by_text("Saved. Nothing has been sent.").wait_for()
        here.go("")
        here.composer.fill(QUESTION)
        page.get_by_role("button", name="Ask the cloud teacher").click()
        preview = page.get_by_role("dialog", name="Before anything leaves this computer")
        preview.locator(".exact pre").wait_for()
        body = preview.locator(".exact pre").inner_text()
        assert "lin@example.com" not in body and "[EMAIL_1]" in body
        assert "e-mail address × 1" in preview.inner_text()
        assert f"{len(body.encode()):,} bytes" in preview.inner_text()
        preview.get_by_role("button", name="Don’t send").click()
        assert here.composer.input_value() == QUESTION  # nothing lost either
        assert cloud.requests == []
        wait(lambda: not assistant.http.get("/api/conversations").json())  # nor begun

        page.get_by_role("button", name="Ask the cloud teacher").click()
        preview.locator(".exact pre").wait_for()
        preview.get_by_label("Replace addresses").uncheck()
        preview.locator(".exact pre", has_text="lin@example.com").wait_for()
        assert "Goes as it is" in preview.inner_text()
        shown = preview.locator(".exact pre").inner_text()
        preview.get_by_role("button", name="Send to Teacher").click()
        answer = here.finished(page.locator(".answer"))
        assert "Hello there" in answer.inner_text()
        assert "not on this computer" in answer.locator(".cloud-mark").inner_text()
        sent = [json.loads(sent) for _, _, sent in cloud.requests]
        assert sent == [json.loads(shown)]
        here.go("settings/cloud")
        page.locator(".grid tbody tr").wait_for()
        assert page.locator(".grid tbody tr").count() == 1
        here.close()


def test_the_owner_s_policy_leaves_no_way_to_the_cloud(
    browser: Browser, visit: Open, tmp_path: Path
) -> None:
    policy = Policy(cloud="forbidden", mcp="forbidden")
    with running(tmp_path, policy=policy) as assistant:
        here = visit(assistant, path="settings/cloud")
        here.page.get_by_text("Your organisation’s policy forbids sending").wait_for()
        assert here.page.get_by_label("Address").count() == 0
        here.go("settings/tools")
        here.page.get_by_text("Your organisation’s policy forbids tools").wait_for()
        assert here.page.get_by_role("button", name="Add a program").count() == 0
        here.go("")
        assert here.page.get_by_role("button", name="Ask the cloud teacher").count() == 0
        here.close()
