"""The assistant's process from its start to its end.

1. The data folder's lock: a second start asks the first to show itself and ends.
2. The port, the parts, the application; it answers in a thread of its own from here on.
3. The page is shown while the model loads in its child process.
4. The window is closed, or Ctrl-C, SIGTERM or the page's "quit": answers are stored as far as they
   came, children end, the lock is let go.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from starlette.types import ASGIApp

from edgekit.assistant.app import make_app
from edgekit.assistant.engine_host import ServeCommand, serve_command
from edgekit.assistant.folders import Folders
from edgekit.assistant.instance import Instance, announce, only_instance, raise_window, running
from edgekit.assistant.packs import describe_pack
from edgekit.assistant.policy import Policy
from edgekit.assistant.state import Assistant
from edgekit.assistant.window import BrowserTab, Window, make_window
from edgekit.errors import BadInputError, EdgekitError
from edgekit.local.listen import LocalServer, bind
from edgekit.local.private import new_token

START_SECONDS = 20.0
END_SECONDS = 30.0
GRACE = 0.2  # seconds that requests have to finish at the end; streams are ended


@dataclass(frozen=True)
class Options:
    """How to start.

    Attributes:
        pack: a pack to load instead of the one of the settings.
        target: likewise for the device.
        window: "auto", "browser" for the default browser, "none" to print the address alone.
        serve, policy: stand in for the real ones in tests.
    """

    folders: Folders
    pack: Path | None = None
    target: str = ""
    port: int = 0
    window: Literal["auto", "browser", "none"] = "auto"
    serve: ServeCommand = serve_command
    policy: Policy | None = None


@dataclass
class Host:
    """The running application; use :func:`hosted`."""

    options: Options
    window: Window
    stop: threading.Event = field(default_factory=threading.Event)
    assistant: Assistant = field(init=False)
    _error: BaseException | None = None

    def start(self) -> None:
        """Bind the port and answer from a thread; returns once it answers.

        Raises:
            BadInputError: the port is taken, or the data folder cannot be used.
        """
        options = self.options
        listener = bind(port=options.port)
        try:
            self.assistant = Assistant(
                options.folders, listener.url, self.window, self.stop.set, options.serve,
                options.policy,
            )  # fmt: skip
            token = new_token()
            app = make_app(self.assistant, listener, token, self._lifespan)
            self._server = LocalServer(app, listener, GRACE, self.assistant.hang_up)
        except BaseException:
            listener.socket.close()
            raise
        self.window.pages = lambda: self.assistant.bus.pages
        self._thread = threading.Thread(target=self._serve, name="assistant", daemon=True)
        self._thread.start()
        deadline = time.monotonic() + START_SECONDS
        while not self._server.started:
            if not self._thread.is_alive() or time.monotonic() > deadline:
                raise self._error or EdgekitError("the assistant did not start; see above")
            time.sleep(0.01)
        announce(options.folders.data, Instance(listener.url, token, os.getpid()))

    def end(self) -> None:
        """Stop answering, store what runs, end the children."""
        self._server.stop()
        self._thread.join(END_SECONDS)

    def _serve(self) -> None:
        try:
            self._server.serve_until_stopped()
        except BaseException as error:  # told to the thread that waits for the start
            self._error = error
        finally:
            self.stop.set()

    @contextlib.asynccontextmanager
    async def _lifespan(self, app: ASGIApp) -> AsyncIterator[None]:
        await self.assistant.open(self.options.pack, self.options.target)
        try:
            yield
        finally:
            await self.assistant.close()


@contextlib.contextmanager
def hosted(options: Options, window: Window | None = None) -> Iterator[Host | None]:
    """A running assistant for the block; None where another process has the data folder."""
    with only_instance(options.folders.data) as first:
        if not first:
            yield None
            return
        profile = options.folders.data / "browser"
        host = Host(options, window or make_window(options.window, profile))
        host.start()
        try:
            yield host
        finally:
            host.end()


def run(options: Options, tell: Callable[[dict[str, Any]], None]) -> None:
    """Run until the window is closed; ``tell`` is given what a person should know.

    It is told ``{"state": "running" | "raised", "url": fresh one-time address, "window": kind}``.

    Raises:
        BadInputError: the pack given is none, the port is taken, the folder cannot be used.
    """
    if options.pack is not None:
        problem = describe_pack(options.pack).problem
        if problem:
            raise BadInputError(problem)
    with hosted(options) as host:
        if host is None:
            tell({"state": "raised", **_raise_first(options)})
            return
        with _signals(host.stop):
            window = _shown(host)
            url = host.assistant.address() if window.kind == "none" else ""
            tell({"state": "running", "url": url, "window": window.kind})
            window.wait(host.stop)


def _shown(host: Host) -> Window:
    """Open the window; what does not open gives way to the browser, then to nothing."""
    assistant = host.assistant
    for window in (host.window, BrowserTab(), Window()):
        window.pages = host.window.pages
        host.window = assistant.window = window
        if window.open(assistant.address()) and not window.failed():
            break
    return host.window


def _raise_first(options: Options) -> dict[str, Any]:
    wish: dict[str, Any] = {"show": options.window != "none"}
    if options.pack is not None:
        wish |= {"pack": str(options.pack.absolute()), "target": options.target}
    return raise_window(running(options.folders.data), wish)


@contextlib.contextmanager
def _signals(stop: threading.Event) -> Iterator[None]:
    """Ctrl-C and the system's request to end set ``stop``."""
    names = [signal.SIGINT, signal.SIGTERM]
    before = {s: signal.signal(s, lambda *_: stop.set()) for s in names}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
