"""One person's visit to the page: a browser profile, what is done there often, and what is watched.

Also used by ``screenshots.py`` and by the program that runs without a network.
"""

from __future__ import annotations

import contextlib
import importlib.util
import shutil
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from harness import Running
    from playwright.sync_api import Browser, ConsoleMessage, Locator, Page, Request

DEADLINE_MS = 15_000
VIEWS = (  # every main view, by its address after "#/"
    "", "welcome", "documents", "settings/model", "settings/answers", "settings/appearance",
    "settings/assistants", "settings/prompts", "settings/cloud", "settings/tools",
    "settings/endpoint", "settings/data",
)  # fmt: skip
BREACHES = """
window.breaches = [];
addEventListener("securitypolicyviolation", (event) => {
    breaches.push(`${event.violatedDirective} ${event.blockedURI}`);
});
"""


def why_no_browser() -> str:
    """Why browser tests cannot run here, or ""."""
    if importlib.util.find_spec("playwright") is None:
        return 'playwright is not installed: pip install "edgekit[dev]"'
    if shutil.which("chromium") is None:
        return "chromium is not installed: apt-get install chromium fonts-noto-cjk"
    return ""


@contextlib.contextmanager
def launch() -> Iterator[Browser]:
    """The system's Chromium without a window."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox"]
        )
        yield browser
        browser.close()


class Visit:
    """A page that has started.

    Args:
        path: the view to go to after the start, as in the address after ``#/``.
        options: of the browser's context: locale, color_scheme, viewport, forced_colors …

    Attributes:
        problems: what went wrong without anybody looking: script errors, breaches of the policy,
            requests to another origin.
    """

    def __init__(
        self, browser: Browser, assistant: Running, path: str = "", **options: Any
    ) -> None:
        self.assistant = assistant
        self.problems: list[str] = []
        size = {"width": 1100, "height": 760}
        settings = {"locale": "en-US", "viewport": size, "reduced_motion": "reduce", **options}
        self._context = browser.new_context(**settings)
        self._context.set_default_timeout(DEADLINE_MS)
        self._context.add_init_script(BREACHES)
        self.page: Page = self._context.new_page()
        self.page.on("console", self._console)
        self.page.on("pageerror", lambda error: self.problems.append(f"error: {error}"))
        self._pending: set[Request] = set()
        self._context.on("request", self._request)
        self._context.on("requestfinished", lambda request: self._pending.discard(request))
        self._context.on("requestfailed", lambda request: self._pending.discard(request))
        self.page.goto(assistant.address())
        self.page.wait_for_selector("body.started")
        if path:
            self.go(path)

    def go(self, path: str) -> None:
        """Open a view by its address, and wait until what it asks for has come."""
        self.page.evaluate("path => { location.hash = `#/${path}`; }", path)
        quiet = 0
        while quiet < 2:
            self.page.wait_for_timeout(15)  # also lets the browser's events in
            quiet = 0 if self._pending else quiet + 1

    def ask(self, text: str) -> Locator:
        """Send a message and give the newest answer's element, which may still be growing."""
        answers = self.page.locator(".answer")
        before = answers.count()
        self.composer.fill(text)
        self.composer.press("Enter")
        answers.nth(before).wait_for()
        return answers.nth(before)

    def finished(self, answer: Locator) -> Locator:
        """Wait until an answer is complete."""
        answer.locator(".message-actions").wait_for()
        return answer

    @property
    def composer(self) -> Locator:
        """Where a message is written."""
        return self.page.locator("textarea.composer-text")

    def close(self) -> None:
        """End the visit and collect what was seen; once is enough."""
        if not self.page.is_closed():
            self.problems += self.page.evaluate("window.breaches")
            self._context.close()

    def _console(self, message: ConsoleMessage) -> None:
        refused_by_host = message.text.startswith("Failed to load resource")
        if message.type == "error" and not refused_by_host:
            self.problems.append(f"console: {message.text}")

    def _request(self, request: Request) -> None:
        here = request.url.startswith(self.assistant.url) or request.url.startswith("data:")
        if not here:
            self.problems.append(f"request to {request.url}")
        elif "/api/" in request.url and not request.url.endswith("/api/events"):
            self._pending.add(request)


Open = Callable[..., Visit]
