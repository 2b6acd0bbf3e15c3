"""What the verbs share: options, tables and JSON output."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer
from pydantic import BaseModel
from rich.console import Console
from rich.table import Table
from rich.text import Text

from edgekit.atomic import atomic_directory, require_absent
from edgekit.errors import BadInputError

T = TypeVar("T")
WIDTH = 100
Json = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]
Out = Annotated[Path, typer.Option("--out", help="Directory to write; must not exist.")]
Model = Annotated[
    str, typer.Argument(help="Directory, hf://owner/name, FILE.gguf or package:NAME.")
]
AsFamily = Annotated[
    str, typer.Option("--as", metavar="FAMILY", help="Read an unknown model_type as this family.")
]
Force = Annotated[bool, typer.Option("--force", help="Ignore the memory check.")]


def notifier(json: bool = False) -> Callable[[str], None]:
    """Says on standard error what begins now; silent for machines and away from a terminal."""
    if json or not sys.stderr.isatty():
        return lambda _: None
    return lambda text: print(f"· {text}", file=sys.stderr, flush=True)


def console() -> Console:
    """Standard output, at most 100 columns wide, and 100 where it is not a terminal."""
    probe = Console()
    return Console(width=min(probe.width, WIDTH) if probe.is_terminal else WIDTH)


def write_once(out: Path, workers: int, write: Callable[[Path], T]) -> T | None:
    """What ``write`` returns for a directory that becomes ``out``; None where another of several
    ``workers``, each of which may be the last to finish, has made it."""

    def whole() -> T:
        with atomic_directory(out) as directory:
            return write(directory)

    return None if workers > 1 and out.is_dir() else unless_written(out, workers, whole)


def written_already(out: Path, workers: int) -> bool:
    """Whether another of several ``workers`` has written ``out``, which it says.

    Raises:
        BadInputError: ``out`` exists and this process is alone.
    """
    if workers == 1:
        require_absent(out)
    elif out.exists():
        print(f"{out}: written by another process, or earlier; remove it to begin anew")
        return True
    return False


def unless_written(out: Path, workers: int, act: Callable[[], T]) -> T | None:
    """What ``act`` returns; None where it failed and another of several ``workers`` has written
    ``out``, because that one then removes what all of them read."""
    try:
        return act()
    except (BadInputError, OSError):
        if workers > 1 and out.is_dir():
            return None
        raise


def given(context: typer.Context, *names: str) -> list[str]:
    """Those of the options ``names`` that are on the command line, as they are written there."""
    sources = {name: context.get_parameter_source(name) for name in names}
    return [
        f"--{name.replace('_', '-')}"
        for name, source in sources.items()
        if source is not None and source.name == "COMMANDLINE"
    ]


def refuse_unused(context: typer.Context, reason: str, *names: str) -> None:
    """Refuse those of the options ``names`` that are on the command line and would do nothing.

    Raises:
        BadInputError: names the first, with the ``reason``.
    """
    for option in given(context, *names):
        raise BadInputError(f"{option}: {reason}; leave it out")


def to_json(value: Any) -> Any:
    """Reports as JSON values."""
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_json(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {str(k): to_json(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [to_json(v) for v in value]
    return str(value) if isinstance(value, Path) else value


def print_json(value: Any) -> None:
    """One JSON document on standard output."""
    print(json.dumps(to_json(value), indent=2, ensure_ascii=False))


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """A table whose first column is text and whose other columns are figures."""
    result = Table(title=Text(title) if title else None, title_justify="left", title_style="bold")
    for index, column in enumerate(columns):
        result.add_column(column, justify="left" if index == 0 else "right", overflow="fold")
    for row in rows:
        result.add_row(*map(Text, row))  # text, not markup: file names may hold brackets
    return result


def size(value: float) -> str:
    """Bytes for people: "85.9 MB"."""
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"


def count(value: float) -> str:
    """Parameters for people: "134.5 M"."""
    for unit in ("", " k", " M", " B"):
        if value < 1000:
            return f"{value:.0f}{unit}" if not unit else f"{value:.1f}{unit}"
        value /= 1000
    return f"{value:.1f} T"


def parse_bytes(text: str) -> int:
    """Bytes of "16GB", "512 MB" or a plain number.

    Raises:
        BadInputError: anything else.
    """
    from edgekit.errors import BadInputError

    units = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12,
             "kib": 2**10, "mib": 2**20, "gib": 2**30}  # fmt: skip
    lowered = text.strip().lower()
    number = lowered.rstrip("bgikmt ").strip()
    unit = lowered[len(number) :].strip()
    try:
        value = float(number) * units[unit]
    except (ValueError, KeyError):
        raise BadInputError(f"{text!r} is not a size; write it like 16GB") from None
    if not 0 < value < 1e18:
        raise BadInputError(f"{text!r} is not a sensible size; write it like 16GB")
    return int(value)
