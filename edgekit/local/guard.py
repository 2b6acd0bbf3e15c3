"""The one gate that every request passes: who may talk to a server on this machine, and how.

A web page open in a browser can send requests to loopback, and after rebinding its own name to
127.0.0.1 it can read the answers. So, in this order, before any byte of a body is read:

1. the Host header names this server exactly (421), which rebinding cannot forge;
2. an Origin header, where there is one, is this server's own (403, ``null`` included);
3. the browser does not say that another site asks (``Sec-Fetch-Site``, 403);
4. the credential is right, unless the path is public (401);
5. a body is JSON and not compressed (415), so that a form can never send one;
6. a body is no larger than the limit (413), and does not stop arriving (408).

No answer carries a CORS header, whatever the application adds: no other origin may read one.
Every answer carries the security headers of :data:`HEADERS`.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from http import cookies
from typing import Any

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

Headers = list[tuple[bytes, bytes]]
Check = Callable[[Headers], bool]
MEGABYTE = 1 << 20
SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
OWN_SITES = frozenset({b"same-origin", b"none"})  # "same-site" is another port of this machine
HEADERS = {
    "content-security-policy": "default-src 'none'; frame-ancestors 'none'",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "cache-control": "no-store",
}


def json_error(path: str, status: int, code: str, message: str) -> dict[str, Any]:
    """The body of a refusal where the API of ``path`` has no form of its own."""
    return {"error": {"code": code, "message": message}}


@dataclass(frozen=True)
class Rules:
    """What the gate lets through.

    Attributes:
        hosts: allowed Host headers, lower case, with the port (``Listener.hosts``).
        origins: allowed Origin headers (``Listener.origins``).
        check: whether the credential in the headers is right: :class:`Bearer`, :class:`Cookie`.
        public: paths that need no credential.
        admin: prefixes of paths that ``admin_check`` guards instead of ``check``.
        body_limit: bytes of a JSON body.
        raw_paths: paths whose body is ``application/octet-stream`` instead, with their limits
            in bytes; such a body is not buffered.
        body_seconds: longest silence while a body arrives.
        headers: added to every answer that does not set them itself.
        error: makes the body of a refusal.
    """

    hosts: frozenset[str]
    origins: frozenset[str]
    check: Check
    public: Callable[[str], bool] = lambda path: False
    admin: tuple[str, ...] = ()
    admin_check: Check = lambda headers: False
    body_limit: int = 8 * MEGABYTE
    raw_paths: Mapping[str, int] = field(default_factory=dict)
    body_seconds: float = 30.0
    headers: Mapping[str, str] = field(default_factory=lambda: HEADERS)
    error: Callable[[str, int, str, str], dict[str, Any]] = json_error


class Bearer:
    """The credential of programs: ``Authorization: Bearer TOKEN`` or ``x-api-key: TOKEN``.

    Both headers go through this one comparison, in constant time; one right value is enough.
    """

    def __init__(self, tokens: Collection[str]) -> None:
        self._digests = [_digest(token.encode()) for token in tokens if token]

    def __call__(self, headers: Headers) -> bool:
        given = [value.strip() for value in values(headers, b"x-api-key")]
        for value in values(headers, b"authorization"):
            scheme, _, token = value.strip().partition(b" ")
            if scheme.lower() == b"bearer":
                given.append(token.strip())
        return _any_equal(given, self._digests)


class Cookie:
    """The credential of a page: a cookie whose value :meth:`issue` made.

    Browsers give a cookie to every port of a host, so the name should tell the port.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._digests: list[bytes] = []

    def issue(self, token: str, secure: bool = False) -> str:
        """Accept ``token`` from now on; returns the value of the Set-Cookie header."""
        self._digests.append(_digest(token.encode()))
        flags = "; Secure" if secure else ""
        return f"{self.name}={token}; Path=/; HttpOnly; SameSite=Strict{flags}"

    def __call__(self, headers: Headers) -> bool:
        given = []
        for value in values(headers, b"cookie"):
            jar: cookies.SimpleCookie = cookies.SimpleCookie()
            try:
                jar.load(value.decode("latin-1"))
            except cookies.CookieError:
                continue
            if self.name in jar:
                given.append(jar[self.name].value.encode())
        return _any_equal(given, self._digests)


class Refused(HTTPException):
    """A refusal found while the application reads a body; Starlette answers it by itself."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(status, message)
        self.code = code


class Guard:
    """The gate around an ASGI application."""

    def __init__(self, app: ASGIApp, rules: Rules) -> None:
        self._app = app
        self._rules = rules

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            return await self._app(scope, receive, send)
        if scope["type"] != "http":  # no web sockets here
            return await send({"type": "websocket.close", "code": 1008})
        started = False

        async def guarded_send(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                message = {**message, "headers": self._with_headers(message.get("headers", ()))}
            await send(message)

        try:
            self._judge(scope)
            body = await self._body(scope, receive)
            await self._app(scope, body, guarded_send)
        except Refused as refusal:
            if started:
                raise
            await self._refuse(scope, refusal, guarded_send)

    def _judge(self, scope: Scope) -> None:
        """Everything that the request's head decides."""
        rules, headers, path = self._rules, scope["headers"], scope["path"]
        hosts = [v.lower() for v in values(headers, b"host")]
        if len(hosts) != 1 or hosts[0].decode("latin-1") not in rules.hosts:
            raise Refused(
                421,
                "wrong_host",
                "the Host header is not this server's address; use the printed URL",
            )
        for origin in values(headers, b"origin"):
            if origin.decode("latin-1").lower() not in rules.origins:
                raise Refused(403, "foreign_origin", "web pages of other origins may not use this")
        if any(v.lower() not in OWN_SITES for v in values(headers, b"sec-fetch-site")):
            raise Refused(403, "cross_site", "web pages of other sites may not use this")
        admin = any(path.startswith(prefix) for prefix in rules.admin)
        if admin and not rules.admin_check(headers):
            raise Refused(401, "invalid_api_key", "this needs the admin token of the state file")
        if not admin and not rules.public(path) and not rules.check(headers):
            raise Refused(
                401, "invalid_api_key",
                "the token is missing or wrong; send it as 'Authorization: Bearer TOKEN'",
            )  # fmt: skip
        if _may_have_body(scope):
            self._judge_body(path, headers)

    def _judge_body(self, path: str, headers: Headers) -> None:
        limit = self._rules.raw_paths.get(path)
        expected = b"application/json" if limit is None else b"application/octet-stream"
        kinds = [v.partition(b";")[0].strip().lower() for v in values(headers, b"content-type")]
        if kinds != [expected]:
            raise Refused(
                415, "wrong_content_type", f"send the header 'Content-Type: {expected.decode()}'"
            )
        if any(v.strip().lower() != b"identity" for v in values(headers, b"content-encoding")):
            raise Refused(415, "compressed_body", "send the body without compression")
        for length in values(headers, b"content-length"):
            if not length.isdigit() or int(length) > (limit or self._rules.body_limit):
                raise _too_large(limit or self._rules.body_limit)

    async def _body(self, scope: Scope, receive: Receive) -> Receive:
        """A ``receive`` whose body is within the limits; JSON is read whole before it is given."""
        raw_limit = self._rules.raw_paths.get(scope["path"])
        bounded = self._bounded(receive, raw_limit or self._rules.body_limit)
        if raw_limit is not None:
            return bounded
        parts: list[bytes] = []
        while True:
            message = await bounded()
            if message["type"] != "http.request":
                raise _incomplete()
            parts.append(message.get("body", b""))
            if not message.get("more_body", False):
                break
        whole: list[Message] = [{"type": "http.request", "body": b"".join(parts)}]

        async def replay() -> Message:
            return whole.pop() if whole else await receive()

        return replay

    def _bounded(self, receive: Receive, limit: int) -> Receive:
        seen, more = 0, True

        async def read() -> Message:
            nonlocal seen, more
            if not more:
                return await receive()  # waits for the disconnect
            try:
                message = await asyncio.wait_for(receive(), self._rules.body_seconds)
            except TimeoutError:
                raise Refused(408, "slow_body", "the body stopped arriving; try again") from None
            if message["type"] == "http.request":
                seen += len(message.get("body", b""))
                more = message.get("more_body", False)
                if seen > limit:
                    raise _too_large(limit)
            return message

        return read

    async def _refuse(self, scope: Scope, refusal: Refused, send: Send) -> None:
        error = self._rules.error(
            scope["path"], refusal.status_code, refusal.code, str(refusal.detail)
        )
        body = json.dumps(error).encode()
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
        ]
        if _may_have_body(scope):
            headers.append((b"connection", b"close"))  # what was not read may follow
        if refusal.status_code == 401:
            headers.append((b"www-authenticate", b"Bearer"))
        start = {"type": "http.response.start", "status": refusal.status_code, "headers": headers}
        await send(start)
        await send({"type": "http.response.body", "body": b"" if _is_head(scope) else body})

    def _with_headers(self, headers: Iterable[tuple[bytes, bytes]]) -> Headers:
        kept = [
            (name, value) for name, value in headers
            if not name.lower().startswith(b"access-control-")
        ]  # fmt: skip
        present = {name.lower() for name, _ in kept}
        own = ((n.encode("latin-1"), v.encode("latin-1")) for n, v in self._rules.headers.items())
        return kept + [(name, value) for name, value in own if name not in present]


def values(headers: Headers, name: bytes) -> list[bytes]:
    """Every value of a header; ASGI gives names in lower case."""
    return [value for key, value in headers if key == name]


def _may_have_body(scope: Scope) -> bool:
    if scope["method"] in SAFE_METHODS:
        return False
    lengths = [v for v in values(scope["headers"], b"content-length") if v != b"0"]
    present = bool(lengths or values(scope["headers"], b"transfer-encoding"))
    return present or scope["method"] != "DELETE"


def _is_head(scope: Scope) -> bool:
    return bool(scope["method"] == "HEAD")


def _digest(value: bytes) -> bytes:
    """Digests have one length, so comparing them tells nothing about that of the token."""
    return hashlib.sha256(value).digest()


def _any_equal(given: Iterable[bytes], digests: Iterable[bytes]) -> bool:
    known = list(digests)
    found = False
    for value in given:
        for digest in known:
            found |= hmac.compare_digest(_digest(value), digest)
    return found


def _too_large(limit: int) -> Refused:
    return Refused(413, "body_too_large", f"the body is larger than {limit} bytes; send less")


def _incomplete() -> Refused:
    return Refused(400, "incomplete_body", "the connection closed before the body was whole")
