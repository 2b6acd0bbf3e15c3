"""Which cloud model a person configured, if any: ``cloud.json``, without the key.

The address is checked once, here: https (http for this machine alone), a plain host, no user name
and no query. The host is kept in its ASCII spelling, so that one that only looks like another is
seen as what it is.
"""

from __future__ import annotations

import ipaddress
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import httpx
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from edgekit.errors import BadInputError
from edgekit.local.private import write_private_json

VERSION = 1
LARGEST = 1 << 20  # bytes of the file
_HOST = re.compile(r"[a-z0-9][a-z0-9._-]*|[0-9a-f:.]+")  # a name, or an address of version 6


@dataclass(frozen=True)
class CloudConfig:
    """A cloud model that a person may send messages to.

    Attributes:
        name: what the person calls it.
        base_url: the address before ``/chat/completions``, such as ``https://api.example.com/v1``.
        model: the model's name there.
        proxies: whether the proxies of the environment are used.
    """

    name: str
    base_url: str
    model: str
    proxies: bool = False

    @property
    def url(self) -> str:
        """Where messages are sent."""
        return f"{self.base_url}/chat/completions"

    @property
    def host(self) -> str:
        """The host in its ASCII spelling, without a port."""
        return _ascii_host(httpx.URL(self.base_url))

    @property
    def origin(self) -> str:
        """Scheme, host and port: whom a key belongs to."""
        url = httpx.URL(self.base_url)
        return f"{url.scheme}://{url.netloc.decode('ascii')}"


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid")

    version: Literal[1] = 1
    name: str = Field(min_length=1, max_length=80)
    base_url: str = Field(max_length=2000)
    model: str = Field(min_length=1, max_length=200)
    proxies: bool = False


def checked_config(name: str, base_url: str, model: str, proxies: bool = False) -> CloudConfig:
    """The configuration if it can be one.

    Raises:
        BadInputError: the name, the address or the model cannot be used.
    """
    try:
        file = _File(name=name.strip(), base_url=base_url, model=model.strip(), proxies=proxies)
    except ValidationError as error:
        first = error.errors()[0]
        raise BadInputError(f"cloud: {first['loc'][0]}: {first['msg']}; change it") from error
    if not (file.name.isprintable() and file.model.isprintable()):
        raise BadInputError("cloud: name and model must be printable text; change them")
    return CloudConfig(file.name, checked_address(base_url), file.model, proxies)


def checked_address(text: str) -> str:
    """The base address in one spelling, without a slash at its end.

    Raises:
        BadInputError: it is not an address that a message may be sent to.
    """
    try:
        url = httpx.URL(text.strip())
        host = _ascii_host(url)
    except (httpx.InvalidURL, UnicodeError, TypeError) as error:
        raise BadInputError(f"cloud: {text[:80]!r} is not an address; write https://…") from error
    if url.scheme not in ("https", "http") or not _HOST.fullmatch(host):
        raise BadInputError(f"cloud: {text[:80]!r} is not an address; write https://…")
    if url.scheme == "http" and not _is_loopback(host):
        raise BadInputError(
            f"cloud: http would send your words to {host} in the clear; write https://…"
        )
    if url.userinfo or url.query or url.fragment:
        raise BadInputError(
            "cloud: the address may have no user name, query or fragment; give the key by itself"
        )
    path = url.raw_path.decode("ascii").rstrip("/").removesuffix("/chat/completions")
    return f"{url.scheme}://{url.netloc.decode('ascii')}{path}"


def read_config(path: Path) -> CloudConfig | None:
    """What is configured; ``None`` when nothing is.

    Raises:
        BadInputError: the file is there and cannot be used; it is left as it is.
    """
    try:
        with path.open("rb") as file:
            data = file.read(LARGEST + 1)
        value = _File.model_validate(json.loads(data))
        return checked_config(value.name, value.base_url, value.model, value.proxies)
    except FileNotFoundError:
        return None
    except OSError as error:
        reason = str(error.strerror)
    except ValidationError as error:
        first = error.errors()[0]
        reason = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
    except (BadInputError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())
    raise BadInputError(
        f"{path}: the cloud model cannot be read ({reason}); the file is kept, mend it or "
        "configure the model again"
    )


def write_config(path: Path, config: CloudConfig) -> None:
    """Keep a configuration, whole or not at all, mode 0600."""
    fields = {"name": config.name, "base_url": config.base_url, "model": config.model}
    write_private_json(path, {"version": VERSION, **fields, "proxies": config.proxies})


def _ascii_host(url: httpx.URL) -> str:
    return url.raw_host.decode("ascii").lower()


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
