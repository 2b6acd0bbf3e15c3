"""A real browser on the assistant's page: Debian's Chromium through Playwright.

Every visit is watched: an error of a script, a breach of the content security policy or a request
to another origin fails the test that caused it, whatever else it was about.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "assistant"))

from harness import Running, running, wait
from visits import Open, Visit, launch, why_no_browser

if TYPE_CHECKING:
    from playwright.sync_api import Browser

AS_NEW = {"language": "auto", "theme": "auto", "target": "", "send_key": "enter"}


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """A Chromium for the tests of a file; each visit has a profile of its own.

    No longer than that: while Playwright runs, no other test can run an event loop.
    """
    if missing := why_no_browser():
        pytest.skip(missing)
    with launch() as browser:
        yield browser


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """The assistant of most tests: starting one costs more than most of them."""
    if missing := why_no_browser():
        pytest.skip(missing)
    with running(tmp_path_factory.mktemp("assistant")) as assistant:
        assistant.wait_ready()
        wait(lambda: assistant.state()["engine"]["reasons"])
        yield assistant


@pytest.fixture
def assistant(shared: Running) -> Running:
    """An assistant with a scripted model that is loaded, its history empty, its settings as new."""
    for conversation in shared.http.get("/api/conversations").json():
        shared.http.delete(f"/api/conversations/{conversation['id']}")
    for folder in shared.http.get("/api/folders").json():
        shared.http.delete(f"/api/folders/{folder['id']}")
    for source in shared.http.get("/api/documents").json()["sources"]:
        shared.http.delete(f"/api/documents/{source['id']}")
    shared.http.put("/api/settings", json=AS_NEW)
    shared.http.delete("/api/cloud")
    shared.script()
    shared.wait_ready()
    return shared


@pytest.fixture
def visit(browser: Browser) -> Iterator[Open]:
    """Opens the page of an assistant; what went wrong unseen fails the test at its end."""
    visits: list[Visit] = []

    def open_page(assistant: Running, **options: Any) -> Visit:
        visits.append(Visit(browser, assistant, **options))
        return visits[-1]

    yield open_page
    for one in visits:
        one.close()
    for one in visits:
        assert one.problems == []
