"""What shows the page: a window of the system's web view, else of a browser, else the browser.

1. pywebview, where it and its backend are there (WebView2 on Windows, WebKit on Linux);
2. Chromium, Edge or Chrome as an application window with a profile of its own;
3. the default browser;
4. nothing, where there is no display: the address is printed.

Whichever it is, it runs on the main thread in :meth:`Window.wait`, and its end is the end of the
program, except for a tab of the default browser, whose end nobody can see.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import threading
import time
import webbrowser
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from edgekit.assistant.refusals import RefusalError
from edgekit.local.private import private_directory

TITLE = "EdgeKit"
SIZE = (1180, 800)
SMALLEST = (360, 480)
BROWSERS = (
    "chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "microsoft-edge",
    "microsoft-edge-stable", "brave-browser",
)  # fmt: skip
WINDOWS_BROWSERS = (
    r"Microsoft\Edge\Application\msedge.exe", r"Google\Chrome\Application\chrome.exe",
)  # fmt: skip
FLAGS = (  # a fresh profile would otherwise greet, sync and fetch
    "--no-first-run", "--no-default-browser-check", "--disable-sync", "--disable-extensions",
    "--disable-background-networking", "--disable-background-mode", "--disable-component-update",
    "--disable-default-apps",
    "--disable-domain-reliability", "--disable-client-side-phishing-detection",
)  # fmt: skip
SETTLING = 10.0  # seconds that a page may take to connect
GONE = 3.0  # seconds without a page or a browser after which the window is closed
Kind = Literal["webview", "app", "browser", "none"]


class Window:
    """Shows nothing; the base of the others.

    Attributes:
        pages: tells how many pages listen to the application.
    """

    kind: Kind = "none"

    def __init__(self) -> None:
        self.pages: Callable[[], int] = lambda: 0

    def open(self, url: str) -> bool:
        """Show ``url``; False where it cannot be shown."""
        return True

    def bring_forward(self, make_url: Callable[[], str]) -> None:
        """Show it again to who started the program twice; ``make_url`` gives a fresh address."""

    def failed(self) -> bool:
        """Whether it turned out at once that it cannot be shown."""
        return False

    def pick(self, kind: Literal["file", "folder"]) -> list[str]:
        """Ask for paths with the system's dialog; none when it was cancelled.

        Raises:
            RefusalError: there is no such dialog here.
        """
        raise RefusalError(404, "no_dialog", "there is no file dialog here; type the path instead")

    def wait(self, stop: threading.Event) -> None:
        """Return when the window was closed or ``stop`` is set."""
        while not stop.wait(1.0):  # on Windows a wait without end hears no Ctrl-C
            pass


class BrowserTab(Window):
    """A tab of the default browser."""

    kind: Kind = "browser"

    def open(self, url: str) -> bool:
        """Show ``url``."""
        with contextlib.suppress(webbrowser.Error, OSError):
            return webbrowser.open(url)
        return False

    def bring_forward(self, make_url: Callable[[], str]) -> None:
        """A new tab: a page cannot bring its own tab forward."""
        self.open(make_url())


class AppWindow(Window):
    """A browser without its bars, with a private profile that holds nothing else."""

    kind: Kind = "app"

    def __init__(self, program: Path, profile: Path) -> None:
        super().__init__()
        self._program, self._profile = program, profile
        self._process: subprocess.Popen[bytes] | None = None

    def open(self, url: str) -> bool:
        """Show ``url``."""
        private_directory(self._profile)
        size = f"--window-size={SIZE[0]},{SIZE[1]}"
        profile = f"--user-data-dir={self._profile}"
        try:
            process = subprocess.Popen(
                [str(self._program), f"--app={url}", profile, size, *FLAGS],
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                start_new_session=os.name == "posix",
            )  # fmt: skip
        except OSError:
            return False
        if self._process is None or self._process.poll() is not None:
            self._process = process
        return True

    def bring_forward(self, make_url: Callable[[], str]) -> None:
        """Another window of the same browser: a page cannot bring its own window forward."""
        self.open(make_url())

    def wait(self, stop: threading.Event) -> None:
        """Return when browser and pages are gone; a browser may hand the page to another one."""
        seen, alone_since = False, None
        try:
            while not stop.wait(0.25):
                running = self._process is not None and self._process.poll() is None
                seen |= self.pages() > 0
                if running or self.pages():
                    alone_since = None
                    continue
                now = time.monotonic()
                alone_since = now if alone_since is None else alone_since
                if now - alone_since > (GONE if seen else SETTLING):
                    return
        finally:
            self._end()

    def failed(self) -> bool:
        """Whether the browser ended at once with an error, as it does without a display."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self._process is None or self._process.wait(1.5) != 0
        return False

    def _end(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(5)


class WebviewWindow(Window):
    """The system's own web view, through pywebview."""

    kind: Kind = "webview"

    def __init__(self, webview: Any) -> None:
        super().__init__()
        self._webview = webview
        self._window: Any = None

    def open(self, url: str) -> bool:
        """Make the window; it appears in :meth:`wait`."""
        self._webview.settings["ALLOW_DOWNLOADS"] = True
        self._window = self._webview.create_window(
            TITLE, url, width=SIZE[0], height=SIZE[1], min_size=SMALLEST, text_select=True
        )
        return True

    def bring_forward(self, make_url: Callable[[], str]) -> None:
        """Show the window above the others."""
        self._window.restore()
        self._window.show()
        self._window.on_top = True  # the one way that every system has to raise a window
        self._window.on_top = False

    def pick(self, kind: Literal["file", "folder"]) -> list[str]:
        """The system's dialog."""
        dialogs = self._webview.FileDialog
        if kind == "folder":
            chosen = self._window.create_file_dialog(dialogs.FOLDER)
        else:
            chosen = self._window.create_file_dialog(dialogs.OPEN, allow_multiple=True)
        return [str(path) for path in chosen or ()]

    def wait(self, stop: threading.Event) -> None:
        """Run the window's loop until it is closed."""

        def end_when_told() -> None:
            stop.wait()
            with contextlib.suppress(Exception):  # it may be closing by itself
                self._window.destroy()

        threading.Thread(target=end_when_told, daemon=True).start()
        self._webview.start(private_mode=True)


def make_window(wish: Literal["auto", "browser", "none"], profile: Path) -> Window:
    """The best way to show a page here; ``profile`` is for the browser's private data."""
    if wish == "none" or not _has_display():
        return Window()
    if wish == "auto":
        webview = _webview()
        if webview is not None:
            return WebviewWindow(webview)
        program = _browser()
        if program is not None:
            return AppWindow(program, profile)
    return BrowserTab()


def _has_display() -> bool:
    if sys.platform in ("win32", "darwin"):
        return True
    return bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))


def _webview() -> Any | None:
    """pywebview, if it has a backend that runs a page of today."""
    try:
        import logging

        import webview
        from webview.guilib import initialize

        logging.getLogger("pywebview").setLevel(logging.CRITICAL)  # it prints what it tries
        renderer = initialize().renderer
    except Exception:  # whatever its backends raise, there is another way to show the page
        return None
    return webview if renderer != "mshtml" else None  # the Internet Explorer of old


def _browser() -> Path | None:
    if sys.platform == "win32":
        roots = [os.environ.get(v) for v in ("ProgramFiles(x86)", "ProgramFiles", "LOCALAPPDATA")]
        paths = [Path(root) / name for name in WINDOWS_BROWSERS for root in roots if root]
        return next((path for path in paths if path.is_file()), None)
    found = (shutil.which(name) for name in BROWSERS)
    # confined browsers cannot use a profile in a hidden folder
    return next((Path(p) for p in found if p and "snap" not in Path(p).resolve().parts), None)
