"""``edgekit doctor``."""

from __future__ import annotations

import typer

from edgekit.cli.common import Json, console, print_json, table
from edgekit.doctor import diagnose

app = typer.Typer(add_completion=False)


@app.command()
def command(json: Json = False) -> None:
    """Versions, extras, devices, memory and disk, and what to do about each problem."""
    checks = diagnose()
    if json:
        print_json(checks)
        return
    rows = [(c.name, "ok" if c.ok else "–", c.detail, c.remedy) for c in checks]
    console().print(table("", ["", "", "found", "what to do"], rows))
