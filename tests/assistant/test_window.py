"""What shows the page, and what happens where it cannot be shown."""

from __future__ import annotations

import sys
import threading
import webbrowser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from edgekit.assistant import host, window
from edgekit.assistant.refusals import RefusalError
from edgekit.assistant.window import AppWindow, BrowserTab, WebviewWindow, Window, make_window


def program(folder: Path, body: str) -> Path:
    """A browser that notes its arguments and does ``body``."""
    path = folder / "browser.py"
    path.write_text(
        f"#!{sys.executable}\nimport sys, time, pathlib\n"
        f"pathlib.Path({str(folder / 'seen')!r}).write_text('\\n'.join(sys.argv[1:]))\n{body}\n"
    )
    path.chmod(0o700)
    return path


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(window, "GONE", 0.05)
    monkeypatch.setattr(window, "SETTLING", 0.5)


def test_a_machine_without_a_display_shows_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    assert make_window("auto", tmp_path).kind == "none"
    assert make_window("browser", tmp_path).kind == "none"
    with pytest.raises(RefusalError) as refused:
        Window().pick("file")
    assert refused.value.code == "no_dialog" and refused.value.status == 404


def test_the_web_view_is_preferred_then_a_browsers_window_then_a_tab(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DISPLAY", ":99")
    monkeypatch.setattr(window, "_webview", lambda: SimpleNamespace())
    monkeypatch.setattr(window, "_browser", lambda: Path("/usr/bin/chromium"))
    assert make_window("auto", tmp_path).kind == "webview"
    assert make_window("browser", tmp_path).kind == "browser"
    assert make_window("none", tmp_path).kind == "none"
    monkeypatch.setattr(window, "_webview", lambda: None)
    assert make_window("auto", tmp_path).kind == "app"
    monkeypatch.setattr(window, "_browser", lambda: None)
    assert make_window("auto", tmp_path).kind == "browser"


def test_a_web_view_whose_backend_is_missing_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("no GTK")

    fake = SimpleNamespace(guilib=SimpleNamespace(initialize=broken))
    monkeypatch.setitem(sys.modules, "webview", fake)
    monkeypatch.setitem(sys.modules, "webview.guilib", fake.guilib)
    assert window._webview() is None
    # Windows without WebView2 would show the page in a browser of twenty years ago
    fake.guilib.initialize = lambda: SimpleNamespace(renderer="mshtml")
    assert window._webview() is None
    fake.guilib.initialize = lambda: SimpleNamespace(renderer="edgechromium")
    assert window._webview() is fake


def test_confined_browsers_are_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    confined = tmp_path / "snap" / "chromium"
    confined.parent.mkdir()
    confined.touch()
    found = {"chromium": str(confined), "google-chrome": str(tmp_path / "chrome")}
    monkeypatch.setattr(window.shutil, "which", found.get)
    assert window._browser() == tmp_path / "chrome"


def test_a_browsers_window_has_a_private_profile_and_ends_with_it(tmp_path: Path) -> None:
    shown = AppWindow(program(tmp_path, "time.sleep(0.2)"), tmp_path / "profile")
    assert shown.open("http://127.0.0.1:1/#t=x")
    shown.wait(threading.Event())
    arguments = (tmp_path / "seen").read_text().splitlines()
    assert "--app=http://127.0.0.1:1/#t=x" in arguments
    assert f"--user-data-dir={tmp_path / 'profile'}" in arguments
    assert "--disable-background-networking" in arguments
    assert (tmp_path / "profile").stat().st_mode & 0o777 == 0o700


def test_a_browser_that_hands_the_page_to_another_one_is_waited_for_by_its_page(
    tmp_path: Path,
) -> None:
    shown = AppWindow(program(tmp_path, ""), tmp_path / "profile")
    pages = iter([0, 1, 1, 1])
    seen: list[int] = []

    def count() -> int:
        seen.append(next(pages, 0))
        return seen[-1]

    shown.pages = count
    shown.open("http://127.0.0.1:1/")
    shown.wait(threading.Event())
    assert 1 in seen and seen[-1] == 0


def test_telling_it_to_stop_closes_the_browsers_window(tmp_path: Path) -> None:
    shown = AppWindow(program(tmp_path, "time.sleep(600)"), tmp_path / "profile")
    shown.open("http://127.0.0.1:1/")
    stop = threading.Event()
    stop.set()
    shown.wait(stop)
    assert shown._process is not None and shown._process.poll() is not None


def test_a_window_that_does_not_open_gives_way_to_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    monkeypatch.setattr(webbrowser, "open", lambda url: opened.append(url) or bool(url))
    number = iter(range(10))
    assistant = SimpleNamespace(address=lambda: f"#t={next(number)}", window=None)
    failing = AppWindow(program(tmp_path, "sys.exit(1)"), tmp_path / "profile")
    fake: Any = SimpleNamespace(assistant=assistant, window=failing)
    assert host._shown(fake).kind == "browser"
    assert opened == ["#t=1"] and assistant.window.kind == "browser"  # a fresh address each time
    monkeypatch.setattr(webbrowser, "open", lambda url: False)
    fake.window = AppWindow(tmp_path / "missing", tmp_path / "profile")
    assert host._shown(fake).kind == "none"


def test_the_web_views_window_is_made_raised_and_asked_for_paths() -> None:
    calls: list[Any] = []
    view = SimpleNamespace(
        restore=lambda: calls.append("restore"),
        show=lambda: calls.append("show"),
        create_file_dialog=lambda kind, **more: ("/a", "/b") if kind == "open" else None,
    )
    webview = SimpleNamespace(
        settings={},
        create_window=lambda title, url, **more: calls.append(url) or view,
        FileDialog=SimpleNamespace(OPEN="open", FOLDER="folder"),
    )
    shown = WebviewWindow(webview)
    shown.open("http://127.0.0.1:1/#t=x")
    shown.bring_forward(lambda: "unused")
    assert calls == ["http://127.0.0.1:1/#t=x", "restore", "show"]
    assert webview.settings["ALLOW_DOWNLOADS"] is True
    assert shown.pick("file") == ["/a", "/b"] and shown.pick("folder") == []


def test_a_tab_is_opened_again_when_the_program_is_started_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    opened: list[str] = []
    monkeypatch.setattr(webbrowser, "open", lambda url: opened.append(url) or True)
    BrowserTab().bring_forward(lambda: "fresh")
    assert opened == ["fresh"]
