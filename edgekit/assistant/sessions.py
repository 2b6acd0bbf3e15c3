"""How a page gets in: a one-time token in the address' fragment is exchanged for a cookie.

A fragment never reaches a server, a log or a ``Referer``. Each token opens one session, once, and
no longer than :data:`LIFETIME`; every window that is opened gets a new one.
"""

from __future__ import annotations

import hashlib
import time

from edgekit.local.guard import Cookie
from edgekit.local.private import new_token

LIFETIME = 3600.0  # seconds; an address that was printed may be opened a while later
MOST = 32  # tokens that were not used


class Sessions:
    """One-time tokens and the sessions that they opened."""

    def __init__(self, port: int) -> None:
        self.cookie = Cookie(f"edgekit-{port}")
        self._tokens: dict[str, float] = {}

    def ticket(self) -> str:
        """A new one-time token."""
        token = new_token()
        while len(self._tokens) >= MOST:
            del self._tokens[next(iter(self._tokens))]
        self._tokens[_digest(token)] = time.monotonic() + LIFETIME
        return token

    def open(self, token: str) -> str | None:
        """The Set-Cookie header for a token that is right, else None; it is right only once."""
        deadline = self._tokens.pop(_digest(token), None)
        if deadline is None or time.monotonic() > deadline:
            return None
        return self.cookie.issue(new_token())


def _digest(token: str) -> str:
    """Tokens are kept as digests: looking one up tells nothing about the others by its time."""
    return hashlib.sha256(token.encode("utf-8", "replace")).hexdigest()
