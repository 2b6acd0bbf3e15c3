"""Requests to a server that may be busy, restarting or gone: a few at a time, and again later.

What passes (429, 5xx, a lost connection, no answer in time) is asked again after a pause that
doubles, as long as the server asks for at least (``Retry-After``). What does not pass is the
caller's to read. The key comes from the environment and leaves it in one header only.
"""

from __future__ import annotations

import asyncio
import datetime
import email.utils
import os
import random
import re
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import httpx

from edgekit.errors import BadInputError, MissingRuntimeError

KEY_VARIABLES = ("EDGEKIT_API_KEY", "OPENAI_API_KEY")  # the first that is set
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 60.0  # seconds
LONGEST_ASKED_PAUSE = 3600.0  # seconds that a server may ask for
SILENCE, CONNECT = 600.0, 30.0  # seconds; a long queue answers late
LONGEST_WORDS = 300  # of a server's explanation in a message

Sleep = Callable[[float], Awaitable[None]]


@dataclass(frozen=True)
class Server:
    """Where a model is served, and how hard it may be asked.

    ``url`` is the server's root, with or without ``/v1``. ``concurrency`` requests are under way at
    once, ``requests_per_second`` begin at most (0: no limit), each is tried ``tries`` times.
    """

    url: str
    model: str
    concurrency: int = 8
    requests_per_second: float = 0.0
    tries: int = 8

    @property
    def address(self) -> str:
        """``url`` in one spelling, without ``/v1``.

        Raises:
            BadInputError: it is no address of http or https, or holds a name, key or query.
        """
        try:
            url = httpx.URL(self.url.strip())
        except (httpx.InvalidURL, UnicodeError):
            url = httpx.URL("")
        if url.scheme not in ("http", "https") or not url.host:
            raise BadInputError("the server's address must be http://… or https://…; correct it")
        if url.userinfo or url.query or url.fragment:
            raise BadInputError(
                f"{url.scheme}://{url.host}: the address may have no user name, query or fragment; "
                f"give the key in the environment variable {KEY_VARIABLES[0]}"
            )
        path = url.raw_path.decode("ascii").rstrip("/").removesuffix("/v1")
        return f"{url.scheme}://{url.netloc.decode('ascii')}{path}"

    @property
    def host(self) -> str:
        """Host, and port where one is written."""
        return httpx.URL(self.address).netloc.decode("ascii")


@dataclass(frozen=True)
class Answer:
    """A status that asking again would not change, and the JSON with it, or None."""

    status: int
    value: Any

    @property
    def is_success(self) -> bool:
        """Whether it is what was asked for."""
        return self.status == 200


class Requests:
    """Requests to one server; a context in which they can be made.

    Args:
        server: where, and how hard.
        sleep: how a pause is made.
        clock: seconds, for the limit of requests per second.
    """

    def __init__(
        self,
        server: Server,
        sleep: Sleep = asyncio.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.address = server.address
        self._tries, self._sleep, self._clock = server.tries, sleep, clock
        self._under_way = asyncio.Semaphore(server.concurrency)
        rate = server.requests_per_second
        self._interval, self._next = (1 / rate if rate else 0.0), 0.0
        self._key = api_key()
        headers = {"authorization": f"Bearer {self._key}"} if self._key else {}
        self._client = httpx.AsyncClient(
            headers=headers,
            timeout=httpx.Timeout(SILENCE, connect=CONNECT),
            limits=httpx.Limits(max_connections=server.concurrency),
        )

    async def __aenter__(self) -> Requests:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._client.aclose()

    async def get(self, path: str) -> Answer:
        """What lies at a path."""
        return await self._ask("GET", path, None)

    async def post(self, path: str, body: Mapping[str, Any]) -> Answer:
        """The answer to a JSON body.

        Raises:
            BadInputError: the key is not accepted, or the server sends elsewhere.
            MissingRuntimeError: the server is lost.
        """
        return await self._ask("POST", path, body)

    def words(self, answer: Answer) -> str:
        """Status and explanation of a refusal, cut, without control characters or the key."""
        error = answer.value
        for name in ("error", "message", "detail"):  # OpenAI's form, SGLang's and FastAPI's
            error = error.get(name, error) if isinstance(error, dict) else error
        if not isinstance(error, str):
            return str(answer.status)
        words = " ".join(re.sub(r"[\x00-\x1f\x7f-\x9f]", " ", error).split())
        words = words.replace(self._key, "…") if self._key else words
        return f"{answer.status}: {words[:LONGEST_WORDS].rstrip('. ')}"

    async def _ask(self, method: str, path: str, body: Mapping[str, Any] | None) -> Answer:
        async with self._under_way:
            for failures in range(1, self._tries + 1):
                await self._turn()
                asked_pause = 0.0
                try:
                    response = await self._client.request(method, self.address + path, json=body)
                    if not _passes(response.status_code):
                        return self._answer(response)
                    reason = f"it answered {response.status_code}"
                    asked_pause = _asked_pause(response)
                except httpx.RequestError as error:
                    reason = type(error).__name__
                except ValueError:
                    reason = "its answer is not JSON"
                if failures < self._tries:
                    await self._sleep(max(asked_pause, _pause(failures)))
        raise MissingRuntimeError(
            f"{self.address} is lost after {self._tries} tries ({reason}); what was finished is "
            "kept, and the same command continues once the server is back"
        )

    def _answer(self, response: httpx.Response) -> Answer:
        """Raises ValueError where a success is not JSON, as a half answer is not."""
        status = response.status_code
        if status in (401, 403):
            raise BadInputError(
                f"{self.address} does not accept the key (it answered {status}); set the "
                f"environment variable {KEY_VARIABLES[0]}"
            )
        if response.has_redirect_location:
            raise BadInputError(
                f"{self.address} redirects, which is not followed; give the address behind it"
            )
        try:
            return Answer(status, response.json())
        except ValueError:
            if status == 200:
                raise
            return Answer(status, None)

    async def _turn(self) -> None:
        """Wait until another request may begin."""
        if self._interval:
            now = self._clock()
            begin = max(now, self._next)
            self._next = begin + self._interval
            if begin > now:
                await self._sleep(begin - now)


def api_key() -> str:
    """The key for a server, "" where the environment has none.

    Raises:
        BadInputError: it cannot be sent in a header.
    """
    for name in KEY_VARIABLES:
        if key := os.environ.get(name, "").strip():
            if not (key.isascii() and key.isprintable()):
                raise BadInputError(f"{name}: a key is printable ASCII; set it again")
            return key
    return ""


def _passes(status: int) -> bool:
    return status in (408, 429) or status >= 500


def _pause(failures: int) -> float:
    """Doubles, and differs between requests that failed together."""
    longest: float = min(FIRST_PAUSE * 2.0 ** (failures - 1), LONGEST_PAUSE)
    return longest * random.uniform(0.5, 1.0)


def _asked_pause(response: httpx.Response) -> float:
    """Seconds of ``Retry-After``, which is a number or a date; 0 where there is none."""
    value = response.headers.get("retry-after", "")
    try:
        seconds = float(value)
    except ValueError:
        try:
            date = email.utils.parsedate_to_datetime(value)
            seconds = (date - datetime.datetime.now(datetime.UTC)).total_seconds()
        except (TypeError, ValueError):
            return 0.0
    return min(max(seconds, 0.0), LONGEST_ASKED_PAUSE) if seconds == seconds else 0.0
