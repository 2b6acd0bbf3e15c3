"""A socket on this machine, and the server that answers on it until it is told to stop.

The socket is bound first, so the port is known (0 takes a free one) before the application is
made and a taken port is one sentence. On SIGTERM or Ctrl-C the server accepts nothing more,
running answers may finish within ``grace`` seconds, then ``on_grace_over`` ends them.
"""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import uvicorn
from starlette.types import ASGIApp

from edgekit.errors import BadInputError

BACKLOG = 128
LOOPBACK_NAMES = ("127.0.0.1", "localhost", "[::1]")
KEEP_ALIVE = 60  # seconds that an idle connection is kept, longer than clients keep theirs
CONNECTIONS = 512
CLOSING = 3.0  # seconds for answers that were ended to reach their clients


@dataclass(frozen=True)
class Tls:
    """Certificate chain and key, both PEM files."""

    certificate: Path
    key: Path


@dataclass(frozen=True)
class Listener:
    """A bound socket; ``host`` is what the user named."""

    socket: socket.socket
    host: str
    tls: Tls | None = None

    @property
    def port(self) -> int:
        """The port, also where 0 was asked for."""
        return int(self.socket.getsockname()[1])

    @property
    def scheme(self) -> str:
        """Either "http" or "https"."""
        return "https" if self.tls else "http"

    @property
    def url(self) -> str:
        """The base address without a path, such as "http://127.0.0.1:51234"."""
        address = self.socket.getsockname()[0]
        name = socket.gethostname() if ipaddress.ip_address(address).is_unspecified else self.host
        return f"{self.scheme}://{_bracketed(name)}:{self.port}"

    @property
    def hosts(self) -> frozenset[str]:
        """Host headers that name this server, lower case."""
        names = [_bracketed(n) for n in _names(self.socket.getsockname()[0], self.host)]
        found = {f"{name}:{self.port}" for name in names}
        if self.port == (443 if self.tls else 80):
            found.update(names)  # clients leave out the scheme's own port
        return frozenset(name.lower() for name in found)

    @property
    def origins(self) -> frozenset[str]:
        """Origin headers of pages that this server gave."""
        return frozenset(f"{self.scheme}://{host}" for host in self.hosts)


def bind(host: str = "127.0.0.1", port: int = 0, tls: Tls | None = None) -> Listener:
    """Take a port of this machine; 0 takes a free one.

    Raises:
        BadInputError: the port is taken, the address is not this machine's, or it is not a
            loopback address and there is no certificate.
    """
    if not 0 <= port <= 65535:
        raise BadInputError(f"port {port} does not exist; choose one from 0 to 65535")
    address = _address(host)
    if not address.is_loopback and tls is None:
        raise BadInputError(
            f"{host} can be reached from other machines: give --tls-cert and --tls-key with it, "
            "or leave --host at 127.0.0.1"
        )
    family = socket.AF_INET6 if address.version == 6 else socket.AF_INET
    # the protocol is named because asyncio turns off the delay of small packets for no other
    sock = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        if os.name == "nt":  # there, reuse would let another program share the port
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_EXCLUSIVEADDRUSE, 1)  # type: ignore[attr-defined]
        else:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((str(address), port))
        sock.listen(BACKLOG)  # from here on clients wait instead of being refused
        sock.setblocking(False)
    except OSError as error:
        sock.close()
        raise _bind_error(host, port, error) from error
    return Listener(sock, host, tls)


class LocalServer(uvicorn.Server):
    """Runs an application on a :class:`Listener`; :meth:`stop` may be called from any thread.

    Args:
        grace: seconds that running answers have to finish after a stop.
        on_grace_over: called in the server's thread when they are over; ends what still runs.
    """

    def __init__(
        self,
        app: ASGIApp,
        listener: Listener,
        grace: float = 10.0,
        on_grace_over: Callable[[], None] = lambda: None,
    ) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                loop="asyncio",
                log_config=None,
                access_log=False,  # nothing of a request is ever written down
                server_header=False,
                proxy_headers=False,
                ws="none",
                http="h11",  # the strictest of its parsers, whatever else is installed
                timeout_keep_alive=KEEP_ALIVE,
                limit_concurrency=CONNECTIONS,
                timeout_graceful_shutdown=int(grace + CLOSING) + 1,
                ssl_certfile=str(listener.tls.certificate) if listener.tls else None,
                ssl_keyfile=str(listener.tls.key) if listener.tls else None,
            )
        )
        self._socket = listener.socket
        self._grace = grace
        self._on_grace_over = on_grace_over

    def serve_until_stopped(self) -> None:
        """Answer requests; returns after :meth:`stop`, SIGTERM or Ctrl-C.

        Signals are heard in the main thread alone.
        """
        self.run(sockets=[self._socket])

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Stop gracefully; a second Ctrl-C stops at once.

        Uvicorn would raise the signal again afterwards and so skip what the caller cleans up.
        """
        self.force_exit = self.should_exit and sig == signal.SIGINT
        self.should_exit = True

    def stop(self) -> None:
        """Stop gracefully, soon."""
        self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop accepting; end what still runs when the grace is over."""
        timer = asyncio.get_running_loop().call_later(self._grace, self._on_grace_over)
        try:
            await super().shutdown(sockets)
        finally:
            timer.cancel()


def stop_with_parent(stop: Callable[[], None]) -> None:
    """Call ``stop`` once standard input is closed, which the end of the parent process does."""

    def watch() -> None:
        try:
            # past the buffer, whose lock would be held when the interpreter ends, which is fatal
            while os.read(sys.stdin.fileno(), 4096):
                pass
        except (OSError, ValueError, AttributeError):
            pass  # no standard input: the parent is no more, or gave none
        stop()

    threading.Thread(target=watch, name="parent-watch", daemon=True).start()


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    name = "127.0.0.1" if host == "localhost" else host.strip("[]")
    try:
        return ipaddress.ip_address(name)
    except ValueError:
        pass
    try:
        found = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        raise BadInputError(
            f"{host!r} is no address of this machine; give an IP address, such as 127.0.0.1"
        ) from None
    return ipaddress.ip_address(found[0][4][0])


def _names(address: str, host: str) -> set[str]:
    """The names under which a client may know the address."""
    ip = ipaddress.ip_address(address)
    if ip.is_loopback:
        return {address, *LOOPBACK_NAMES}
    names = {host, address}
    if ip.is_unspecified:
        import psutil

        every = [a.address for n in psutil.net_if_addrs().values() for a in n]
        names = {a.partition("%")[0] for a in every if _is_ip(a)} | {*LOOPBACK_NAMES}
        names |= {socket.gethostname(), socket.getfqdn()}
    return names


def _is_ip(text: str) -> bool:
    try:
        ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return False
    return True


def _bracketed(name: str) -> str:
    return f"[{name}]" if ":" in name and not name.startswith("[") else name


def _bind_error(host: str, port: int, error: OSError) -> BadInputError:
    if error.errno == errno.EADDRINUSE or getattr(error, "winerror", 0) == 10048:
        return BadInputError(
            f"port {port} of {host} is taken by another program; choose another with --port, or "
            "--port 0 for a free one"
        )
    if error.errno in (errno.EACCES, errno.EPERM):
        return BadInputError(f"port {port} of {host} is reserved; choose one above 1023")
    reason = error.strerror or str(error)
    return BadInputError(f"{host}: cannot listen there ({reason.lower()}); use 127.0.0.1")
