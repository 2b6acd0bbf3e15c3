"""Asking a cloud model, by a person's act alone, with exactly what the person saw.

1. A person configures an address (:meth:`Cloud.set`); without that nothing here does anything.
2. :meth:`Cloud.preview` makes the body of the request, byte for byte, with what is sensitive
   replaced if wanted, and keeps it. The person sees it.
3. :meth:`Cloud.send` sends those bytes: once, within ten minutes, and only while the
   configuration is the one of the preview. The log has its line before the first byte leaves.
4. The answer streams back with the replaced values put in again, on this machine.

The owner's policy is asked at each step. Redirects are not followed, so the words and the key go
to the host of the preview or nowhere.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import hashlib
import re
import secrets
import ssl
import time
import urllib.request
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import certifi
import httpx

from edgekit.assistant.cloud_answer import AnswerLimits, answer_texts, error_of
from edgekit.assistant.cloud_config import (
    CloudConfig,
    checked_config,
    read_config,
    write_config,
)
from edgekit.assistant.cloud_log import CloudLog, LogEntry
from edgekit.assistant.cloud_request import (
    CloudMessage,
    Part,
    Preview,
    cloud_request,
    request_body,
    shown_headers,
)
from edgekit.assistant.key_store import KeyStore
from edgekit.assistant.policy import Policy
from edgekit.assistant.redaction import Redactor, Restorer
from edgekit.assistant.set_aside import set_aside
from edgekit.errors import BadInputError, EdgekitError, MissingRuntimeError

EXPIRY = 600.0  # seconds from the preview to the last moment of sending it
MOST_PREVIEWS = 8  # kept at once; the oldest is forgotten
LARGEST_BODY = 4 << 20  # bytes
_KEY = re.compile(r"[\x21-\x7e]{1,4096}")
_HALF_CHARACTER = re.compile(r"[\ud800-\udfff]")


@dataclass(frozen=True)
class _Kept:
    preview: Preview
    originals: dict[str, str]
    deadline: float


class Cloud:
    """The cloud model of this person, if any.

    Attributes:
        problem: one sentence when the configuration cannot be read, or "".
    """

    def __init__(
        self,
        config_path: Path,
        log_path: Path,
        policy: Policy,
        keys: KeyStore | None = None,
        clock: Callable[[], float] = time.monotonic,
        limits: AnswerLimits = AnswerLimits(),  # noqa: B008, frozen
    ) -> None:
        """``clock`` gives seconds and never goes back; ``keys`` is beside the configuration."""
        self._path, self._policy, self._clock, self._limits = config_path, policy, clock, limits
        self._keys = keys or KeyStore(config_path.with_name("cloud-key.json"))
        self._log = CloudLog(log_path)
        self._previews: dict[str, _Kept] = {}
        self.problem = ""
        self._config: CloudConfig | None = None
        try:
            self._config = read_config(config_path)
        except BadInputError as error:
            self.problem = str(error)

    def configured(self) -> CloudConfig | None:
        """The configuration, or ``None``; the key is not part of it."""
        return self._config

    def has_key(self) -> bool:
        """Whether there is a key for the configured address."""
        return self._config is not None and bool(self._keys.get(self._config.origin))

    def set(
        self,
        name: str,
        base_url: str,
        model: str,
        key: str | None = None,
        proxies: bool = False,
    ) -> CloudConfig:
        """Configure the address, the model and the key; every preview becomes void.

        ``key`` ``None`` keeps the key that is there for the same scheme, host and port; "" removes
        it. Nothing is sent.

        Raises:
            BadInputError: a value cannot be used, or the policy forbids the host.
        """
        config = checked_config(name, base_url, model, proxies)
        _refuse(self._policy.refuses_cloud(config.host))
        if key and not _KEY.fullmatch(key):
            raise BadInputError(
                "cloud: the key must be one word of plain characters; paste it again"
            )
        before = self._config
        if self.problem:
            set_aside(self._path)
        if before is not None and before.origin != config.origin:
            self._keys.remove(before.origin)
        if key is not None:
            self._keys.remove(config.origin)
            if key:
                self._keys.set(config.origin, key)
        write_config(self._path, config)
        self._config, self.problem = config, ""
        self._previews.clear()
        return config

    def clear(self) -> None:
        """Forget the configuration, the key and every preview. The log stays."""
        self._previews.clear()
        if self._config is not None:
            self._keys.remove(self._config.origin)
        if self.problem:
            set_aside(self._path)
        self._path.unlink(missing_ok=True)
        self._config, self.problem = None, ""

    def preview(self, messages: Sequence[CloudMessage], redact: bool = True) -> Preview:
        """Make and keep exactly what would be sent.

        Raises:
            BadInputError: no cloud model is configured, the policy forbids it, or the messages
                are empty or too long.
        """
        config = self._allowed()
        if not messages:
            raise BadInputError("there is nothing to send; write a message first")
        texts = [_HALF_CHARACTER.sub("\ufffd", message.content) for message in messages]
        if sum(len(text.encode()) for text in texts) > LARGEST_BODY:  # before work is done on it
            raise BadInputError(f"at most {LARGEST_BODY} bytes are sent at once; send less")
        redactor = Redactor(texts)
        redacted = [redactor.redact(text) for text in texts]
        leaving = redacted if redact else texts
        body = request_body(config, messages, leaving)
        if len(body) > LARGEST_BODY:
            raise BadInputError(f"at most {LARGEST_BODY} bytes are sent at once; send less")
        now = datetime.datetime.now(datetime.UTC)
        preview = Preview(
            id=secrets.token_hex(16),
            config=config,
            headers=shown_headers(cloud_request(config, body, self._keys.get(config.origin))),
            body=body,
            sha256=hashlib.sha256(body).hexdigest(),
            found=redactor.counts(),
            redacted=redact,
            parts=tuple(
                Part(message.part, message.role, text)
                for message, text in zip(messages, leaving, strict=True)
            ),
            expires=(now + datetime.timedelta(seconds=EXPIRY)).isoformat(timespec="seconds"),
        )
        while len(self._previews) >= MOST_PREVIEWS:
            del self._previews[next(iter(self._previews))]
        originals = redactor.originals() if redact else {}
        self._previews[preview.id] = _Kept(preview, originals, self._clock() + EXPIRY)
        return preview

    def send(self, preview_id: str) -> AsyncGenerator[str, None]:
        """Send a preview and stream the text of the answer, replaced values put back.

        The preview is used up by this call, whatever comes of it. Close the iterator to stop.

        Raises:
            BadInputError: the preview is not there, was sent already, is too old, or is of
                another configuration; the policy forbids it; the log cannot be written.
            MissingRuntimeError: while iterating: the host cannot be reached or does not answer
                as it should.
        """
        kept = self._previews.pop(preview_id, None)
        if kept is None or self._clock() > kept.deadline:
            raise BadInputError(
                "this preview was sent already or is older than ten minutes; look at a new one"
            )
        if self._allowed() != kept.preview.config:
            raise BadInputError("the cloud model has changed since the preview; look at a new one")
        return self._sent(kept)

    def log(self) -> list[LogEntry]:
        """What left this machine, the newest first."""
        return self._log.entries()

    async def _sent(self, kept: _Kept) -> AsyncGenerator[str, None]:
        preview = kept.preview
        self._log.begin(_log_entry(preview))
        restorer, size, outcome = Restorer(kept.originals), 0, "failed by a defect of edgekit"
        texts = self._answer(preview)
        try:
            async for text in texts:
                size += len(text.encode("utf-8", "replace"))
                if shown := restorer.push(text):
                    yield shown
            if shown := restorer.finish():
                yield shown
            outcome = "answered"
        except (GeneratorExit, asyncio.CancelledError):
            outcome = "stopped"
            raise
        except EdgekitError as error:
            outcome = str(error)
            raise
        finally:
            await texts.aclose()
            with contextlib.suppress(EdgekitError):  # that it left is in the log already
                self._log.end(preview.id, outcome, size)

    async def _answer(self, preview: Preview) -> AsyncGenerator[str, None]:
        config, limits = preview.config, self._limits
        key = self._keys.get(config.origin)
        request = cloud_request(config, preview.body, key)
        try:
            async with httpx.AsyncClient(
                follow_redirects=False,
                trust_env=False,
                verify=_certificates(),
                proxy=_proxy(config),
                timeout=httpx.Timeout(limits.silence_seconds, connect=limits.connect_seconds),
            ) as client:
                response = await client.send(request, stream=True)
                try:
                    if not response.is_success:
                        raise await error_of(response, config.host, key)
                    async for text in answer_texts(response, config.host, limits, self._clock):
                        yield text
                finally:
                    await response.aclose()
        except httpx.TimeoutException as error:
            raise MissingRuntimeError(
                f"{config.host} did not answer in time; try again later"
            ) from error
        except (httpx.HTTPError, httpx.InvalidURL, OSError, ImportError, ValueError) as error:
            raise MissingRuntimeError(
                f"{config.host} cannot be reached ({_kind(error)}); check the address and the "
                "network"
            ) from error

    def _allowed(self) -> CloudConfig:
        config = self._config
        if config is None:
            raise BadInputError(
                self.problem or "no cloud model is configured; add one in the settings"
            )
        _refuse(self._policy.refuses_cloud(config.host))
        return config


def _log_entry(preview: Preview) -> LogEntry:
    return LogEntry(
        id=preview.id,
        time=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        host=preview.config.host,
        model=preview.config.model,
        bytes=preview.size,
        sha256=preview.sha256,
        redactions=preview.redactions,
    )


def _proxy(config: CloudConfig) -> str | None:
    """The environment's proxy for this host, if the person wants proxies at all."""
    if not config.proxies or config.base_url.startswith("http:"):
        return None
    if urllib.request.proxy_bypass(config.host):
        return None
    proxies = urllib.request.getproxies()
    return proxies.get("https") or proxies.get("all")


def _certificates() -> ssl.SSLContext:
    """The system's authorities, which a company may have added to; else those of certifi."""
    context = ssl.create_default_context()
    if not context.get_ca_certs():
        context.load_verify_locations(certifi.where())
    return context


def _kind(error: Exception) -> str:
    """What went wrong; the words of a connection only, others may hold a proxy's password."""
    if isinstance(error, httpx.ConnectError):
        return " ".join(str(error).split())[:200]
    return type(error).__name__


def _refuse(reason: str) -> None:
    if reason:
        raise BadInputError(reason)
