"""Text of four domains that every machine with edgekit's build extra has, as bytes.

code: Python's standard library. headers: the C++ headers that torch and numpy ship. pages: what
pydoc renders of the standard library. text: Python's language topics, and descriptions and licences
of installed packages. Every tenth document is held out, so a held-out sequence shares no document
with training.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import pydoc
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgekit.sequences import TokenSequence

DOMAINS = ("code", "headers", "pages", "text")
LENGTH = 128  # bytes of a sequence
BYTES = 3_000_000  # of a domain, at most
HELD_OUT_EVERY = 10
SMALLEST, LARGEST = 1000, 60_000  # bytes of a document; longer ones are cut
RENDERED = [
    "argparse",
    "ast",
    "asyncio",
    "base64",
    "bdb",
    "calendar",
    "cmd",
    "codecs",
    "collections",
    "configparser",
    "csv",
    "datetime",
    "decimal",
    "difflib",
    "dis",
    "email.message",
    "enum",
    "fractions",
    "ftplib",
    "functools",
    "gettext",
    "gzip",
    "heapq",
    "html.parser",
    "http.client",
    "http.server",
    "inspect",
    "io",
    "ipaddress",
    "json",
    "logging",
    "mailbox",
    "optparse",
    "os",
    "pathlib",
    "pickle",
    "platform",
    "plistlib",
    "pprint",
    "queue",
    "random",
    "re",
    "sched",
    "selectors",
    "shelve",
    "shlex",
    "shutil",
    "smtplib",
    "socket",
    "socketserver",
    "statistics",
    "string",
    "subprocess",
    "tarfile",
    "tempfile",
    "textwrap",
    "threading",
    "timeit",
    "tokenize",
    "trace",
    "traceback",
    "types",
    "typing",
    "unittest.case",
    "unittest.mock",
    "urllib.parse",
    "urllib.request",
    "uuid",
    "wave",
    "weakref",
    "xml.dom.minidom",
    "xml.etree.ElementTree",
    "zipfile",
]


@dataclass(frozen=True)
class Corpus:
    """``train`` and ``held_out`` uint8 [n] of every domain."""

    train: dict[str, NDArray[np.uint8]]
    held_out: dict[str, NDArray[np.uint8]]

    def windows(self, count: int, seed: int, *, held_out: bool = False) -> list[TokenSequence]:
        """``count`` sequences of each domain from random places, domains in turn."""
        rng = np.random.default_rng(seed)
        source = self.held_out if held_out else self.train
        found = []
        for _ in range(count):
            for domain in DOMAINS:
                text = source[domain]
                begin = int(rng.integers(len(text) - LENGTH))
                tokens = text[begin : begin + LENGTH].astype(np.int32)
                found.append(TokenSequence(tokens, domain, held_out))
        return found


def read_corpus() -> Corpus:
    """Collect the text; a few seconds."""
    sources = {"code": _code, "headers": _headers, "pages": _pages, "text": _text}
    train, held_out = {}, {}
    for domain in DOMAINS:
        parts: tuple[list[bytes], list[bytes]] = ([], [])
        size = 0
        for number, document in enumerate(sources[domain]()):
            parts[number % HELD_OUT_EVERY == HELD_OUT_EVERY - 1].append(document)
            size += len(document)
            if size >= BYTES:
                break
        train[domain], held_out[domain] = (
            np.frombuffer(b"\n\n".join(documents), np.uint8) for documents in parts
        )
    return Corpus(train, held_out)


def _code() -> Iterator[bytes]:
    return _files(Path(sysconfig.get_paths()["stdlib"]), "*.py")


def _headers() -> Iterator[bytes]:
    import torch

    yield from _files(Path(np.get_include()), "**/*.h")
    yield from _files(Path(torch.__file__).parent / "include" / "ATen" / "core", "**/*.h")
    yield from _files(Path(torch.__file__).parent / "include" / "c10", "**/*.h")
    yield from _files(Path(torch.__file__).parent / "include" / "torch", "**/*.h")


def _files(root: Path, pattern: str) -> Iterator[bytes]:
    for path in sorted(root.glob(pattern)):
        yield from _document(path.read_bytes())


def _pages() -> Iterator[bytes]:
    for name in RENDERED:
        try:
            rendered = pydoc.html.document(importlib.import_module(name))
        except Exception:  # a module that this Python lacks, or that pydoc cannot render
            continue
        yield from _document(rendered.encode())


def _text() -> Iterator[bytes]:
    from pydoc_data.topics import topics

    for name in sorted(topics):
        yield from _document(topics[name].encode())
    packages = importlib.metadata.distributions()
    for package in sorted(packages, key=lambda p: str(p.metadata["Name"]).lower()):
        description = package.metadata.get_payload()
        if isinstance(description, str):
            yield from _document(description.encode())


def _document(text: bytes) -> Iterator[bytes]:
    if len(text) >= SMALLEST and b"\0" not in text:
        yield text[:LARGEST]
