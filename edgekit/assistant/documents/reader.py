"""The process that opens documents: one path in, passages out, within limits it sets itself.

Documents are not to be trusted, and PDFium is a large native library. So files are opened here and
nowhere else: without the index, without writing files (the limit on file size is zero), with a
limit on address space and on processor time per file where the system has them (POSIX; elsewhere
the parent's watch on time and resident memory is what there is, `child.py`).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import stat
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from edgekit.assistant.documents import chunks
from edgekit.assistant.documents.child import serve_frames
from edgekit.assistant.documents.clean import hidden_characters, repair_ideographs, visible
from edgekit.assistant.documents.limits import MB, Limits
from edgekit.assistant.documents.parsers.code import parse_code
from edgekit.assistant.documents.parsers.docx import parse_docx
from edgekit.assistant.documents.parsers.html import parse_html
from edgekit.assistant.documents.parsers.pdf import parse_pdf
from edgekit.assistant.documents.parsers.plain import parse_markdown, parse_text
from edgekit.assistant.documents.records import Block, Parsed, UnreadableError
from edgekit.errors import EdgekitError

# Raised when a change here or in a parser changes what is indexed: files are then read again.
VERSION = 1

Parser = Callable[[bytes, Limits], Parsed]
PARSERS: Mapping[str, Parser] = {
    "text": parse_text,
    "markdown": parse_markdown,
    "html": parse_html,
    "pdf": parse_pdf,
    "docx": parse_docx,
    "code": parse_code,
}


def main(parsers: Mapping[str, Parser] = PARSERS) -> None:
    """Answer requests ``{"path", "kind"}``; the limits are the first argument."""
    limits = Limits.from_json(sys.argv[1] if len(sys.argv) > 1 else "")
    _limit_this_process(limits)

    def answer(request: bytes) -> bytes:
        question = json.loads(request)
        _allow_processor_time(limits.processor_seconds)
        try:
            reply = read(Path(question["path"]), question["kind"], limits, parsers)
            return json.dumps(reply).encode("ascii")
        except MemoryError:
            reason = f"reading it needs more than {limits.memory_bytes // MB} MB of memory"
            return json.dumps({"reason": reason}).encode("ascii")

    serve_frames(answer, MB)


def read(
    path: Path, kind: str, limits: Limits, parsers: Mapping[str, Parser] = PARSERS
) -> dict[str, object]:
    """``{"reason"}`` or ``{"digest", "size", "mtime_ns", "problems", "passages"}``.

    Digest, size and time are those of the bytes that were read, whatever happened to the file
    since it was found.
    """
    try:
        data, status = _bytes_of(path, limits.file_bytes)
        parsed = parsers[kind](data, limits)
        blocks, problems = _cleaned(parsed)
        cuts, cut_problems = chunks.cut(blocks, limits.text_characters)
        if not cuts:
            return {"reason": "it holds no text"}
    except UnreadableError as error:
        return {"reason": str(error)}
    except EdgekitError as error:  # a parser's package is not installed
        return {"reason": str(error), "missing": True}
    except MemoryError:
        raise  # `main` answers: there may be no memory here to do it
    except RecursionError:
        return {"reason": "it is nested too deeply"}
    except OSError as error:
        return {"reason": f"it cannot be opened ({error.strerror or type(error).__name__})"}
    except Exception as error:  # a defect of a parser: one file is lost to it, not the process
        return {"reason": f"reading it failed ({type(error).__name__}: {error})"}
    return {
        "digest": hashlib.sha256(data).hexdigest(),
        "size": status.st_size,
        "mtime_ns": status.st_mtime_ns,
        "problems": problems + cut_problems,
        "passages": [[c.text, c.heading, c.page, c.start, c.end] for c in cuts],
    }


def _bytes_of(path: Path, most: int) -> tuple[bytes, os.stat_result]:
    """The whole file; a link, device or pipe that took its place meanwhile is not opened."""
    flags = os.O_RDONLY
    for name in ("O_NOFOLLOW", "O_NONBLOCK", "O_CLOEXEC", "O_BINARY"):
        flags |= getattr(os, name, 0)
    with os.fdopen(os.open(path, flags), "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise UnreadableError("it is not a regular file")
        data = file.read(most + 1)
    if len(data) > most:
        raise UnreadableError(f"it is larger than {most // MB} MB")
    return data, status


def _cleaned(parsed: Parsed) -> tuple[list[Block], list[str]]:
    hidden = 0
    blocks = []
    for block in parsed.blocks:
        hidden += hidden_characters(block.text)
        text = repair_ideographs(visible(block.text))
        title = repair_ideographs(visible(block.title))
        if text.strip():
            blocks.append(Block(text, block.level, title, block.page, block.line))
    problems = list(parsed.problems)
    if hidden:
        problems.append(f"{hidden} invisible characters were taken out")
    return blocks, problems


def _limit_this_process(limits: Limits) -> None:
    try:
        import resource
    except ModuleNotFoundError:  # Windows
        return
    for name, value in (
        ("RLIMIT_AS", limits.memory_bytes),
        ("RLIMIT_FSIZE", 0),
        ("RLIMIT_CORE", 0),
    ):
        with contextlib.suppress(OSError, ValueError, AttributeError):  # macOS refuses some
            resource.setrlimit(getattr(resource, name), (value, value))


def _allow_processor_time(seconds: int) -> None:
    """From now; what follows beyond it is killed by the system (SIGXCPU)."""
    try:
        import resource
    except ModuleNotFoundError:  # Windows
        return
    used = resource.getrusage(resource.RUSAGE_SELF)
    now = int(used.ru_utime + used.ru_stime) + 1
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_CPU, (now + seconds, resource.RLIM_INFINITY))


if __name__ == "__main__":
    main()
