"""Every main view in light and dark by axe-core, and layouts that must not break.

axe-core is read from the folder that ``EDGEKIT_NODE_MODULES`` names (``npm install axe-core``).
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from harness import Running
from visits import VIEWS, Open, Visit

AXE = Path(os.environ.get("EDGEKIT_NODE_MODULES", "")) / "axe-core" / "axe.min.js"
ANSWER = (
    "## Title\n\nText with `code` and **weight**.\n\n```python\nprint('a long line')\n```\n\n"
    "| a | b |\n|---|---|\n| 1 | 2 |\n\n> quoted\n\n1. one\n2. two\n\n[link](https://example.org)"
)
OVERFLOW = """() => [...document.querySelectorAll("body *")].filter((e) => {
    const box = e.getBoundingClientRect();
    return box.width && box.right > innerWidth + 1 && getComputedStyle(e).position !== "fixed"
        && !e.closest(".table-scroll, .table, pre, .sidebar");
}).map((e) => e.className || e.tagName)"""


def violations(visit: Visit) -> list[str]:
    """What axe finds on the page as it is."""
    found: list[dict[str, Any]] = visit.page.evaluate("async () => (await axe.run()).violations")
    return [f"{v['id']}: {n['html'][:160]}" for v in found for n in v["nodes"]]


@pytest.mark.skipif(not AXE.is_file(), reason="EDGEKIT_NODE_MODULES holds no axe-core")
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_no_violation_in_any_view(assistant: Running, visit: Open, scheme: str) -> None:
    assistant.script({"text": ANSWER, "thinking": "Hmm."})
    here = visit(assistant, color_scheme=scheme)
    here.page.evaluate(AXE.read_text())
    for view in VIEWS:
        here.go(view)
        assert violations(here) == [], view
    here.go("")
    answer = here.finished(here.ask("Show everything"))
    here.finished(here.ask("And again"))
    assert violations(here) == []
    answer.get_by_role("button", name="Answer again on another device").click()
    assert violations(here) == []
    here.page.keyboard.press("Escape")
    for key, name in (("Control+k", "Commands"), ("Enter", None)):
        here.page.keyboard.press(key)
        if name:
            here.page.get_by_role("dialog", name=name).wait_for()
            assert violations(here) == []
    here.page.locator(".device-why").click()
    here.page.get_by_role("dialog").wait_for()
    assert violations(here) == []
    here.page.keyboard.press("Escape")
    nowhere = {"name": "Teacher", "base_url": "http://127.0.0.1:9/v1", "model": "m", "key": "k"}
    assistant.http.put("/api/cloud", json=nowhere)
    here.composer.fill("Tell lin@example.com")
    here.page.get_by_role("button", name="Ask the cloud teacher").click()
    here.page.locator(".exact pre").wait_for()
    assert violations(here) == []


@pytest.mark.parametrize(
    "options",
    [
        {"viewport": {"width": 360, "height": 640}},
        # 200 % zoom of a window of 1280 by 760
        {"viewport": {"width": 640, "height": 380}, "device_scale_factor": 2},
        {"viewport": {"width": 360, "height": 640}, "locale": "zh-CN"},
    ],
    ids=["360 px", "200 %", "360 px Chinese"],
)
def test_nothing_is_cut_off_where_it_is_narrow(
    assistant: Running, visit: Open, options: dict[str, Any]
) -> None:
    assistant.script({"text": ANSWER + "\n\n" + "x" * 300})
    here = visit(assistant, **options)
    here.finished(here.ask("Show everything, " + "y" * 200))
    assert here.page.evaluate(OVERFLOW) == []
    assert here.page.locator(".send").is_visible()
    for view in VIEWS:
        here.go(view)
        assert here.page.evaluate(OVERFLOW) == [], view
    here.page.locator("#open-sidebar").click()
    assert here.page.locator("#search").is_visible()
    assert here.page.locator("#main").get_attribute("inert") is not None
    here.page.keyboard.press("Escape")
    assert here.page.evaluate("document.activeElement.id") == "open-sidebar"


def test_forced_colours_leave_every_control_with_an_outline(
    assistant: Running, visit: Open
) -> None:
    here = visit(assistant, forced_colors="active")
    here.composer.fill("x")
    for control in (".send", ".chip-button[aria-pressed=true]", ".new-chat", ".composer-box"):
        if here.page.locator(control).count():
            width = here.page.locator(control).first.evaluate(
                "e => getComputedStyle(e).borderTopWidth"
            )
            assert width != "0px", control


def test_nothing_moves_for_a_person_who_wants_no_motion(assistant: Running, visit: Open) -> None:
    here = visit(assistant, reduced_motion="reduce")
    assert here.page.evaluate("document.getAnimations().length") == 0
    assert here.page.locator(".button, .sidebar").first.evaluate(
        "e => getComputedStyle(e).transitionDuration"
    ) == "0s"  # fmt: skip
