"""``edgekit assistant``."""

from __future__ import annotations

import json as json_module
from pathlib import Path
from typing import Annotated, Any

import typer

from edgekit.cli.common import Json

app = typer.Typer(add_completion=False)


@app.command()
def command(
    pack: Annotated[
        Path | None, typer.Argument(help="A pack; the one used last by default.")
    ] = None,
    device: Annotated[
        str, typer.Option("--device", help="Target to run on; the best one here by default.")
    ] = "",
    browser: Annotated[
        bool, typer.Option("--browser", help="Use the default browser instead of a window.")
    ] = False,
    no_window: Annotated[
        bool, typer.Option("--no-window", help="Print the address and open nothing.")
    ] = False,
    data_dir: Annotated[
        Path | None, typer.Option("--data-dir", help="Folder of history, settings and packs.")
    ] = None,
    port: Annotated[int, typer.Option("--port", help="Port of this machine; 0 is a free one.")] = 0,
    json: Json = False,
) -> None:
    """The desktop assistant: chat, documents and history, private and offline."""
    from edgekit.assistant.folders import Folders
    from edgekit.assistant.host import Options, run
    from edgekit.assistant.packs import user_path

    options = Options(
        folders=Folders.of(data_dir),
        pack=user_path(str(pack)) if pack else None,
        target=checked_target(device),
        port=port,
        window="none" if no_window else "browser" if browser else "auto",
    )
    run(options, print_line if json else say)


def checked_target(device: str) -> str:
    """A target's name.

    Raises:
        BadInputError: there is no such target.
    """
    from edgekit.errors import BadInputError
    from edgekit.rules import TARGETS

    if device and device not in TARGETS:
        raise BadInputError(f"no target {device!r}; choose one of {', '.join(TARGETS)}")
    return device


def print_line(told: dict[str, Any]) -> None:
    """One line of JSON, at once: a program may wait for it."""
    print(json_module.dumps(told), flush=True)


def say(told: dict[str, Any]) -> None:
    """The same for a person."""
    if told["state"] == "raised":
        text = "the assistant runs already; its window was raised"
        if told["window"] == "none":
            text = f"the assistant runs already; open {told['url']}"
    elif told["window"] == "none":
        text = f"open {told['url']} in a browser of this machine (it works once); Ctrl-C ends"
    else:
        text = "the assistant is open; close its window or press Ctrl-C to end it"
        if told["window"] == "browser":
            text = "the assistant is open in your browser; Ctrl-C ends it"
    print(text, flush=True)
