"""``edgekit doctor``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgekit.cli.common import Json, console, print_json, table
from edgekit.doctor import check_pack, diagnose
from edgekit.errors import GateFailedError
from edgekit.progress import default_progress
from edgekit.self_check import SelfCheck

app = typer.Typer(add_completion=False)


@app.command()
def command(
    pack: Annotated[
        Path | None, typer.Option(help="Run a pack's graphs here against its stored reference.")
    ] = None,
    json: Json = False,
) -> None:
    """Versions, extras, devices, memory and disk, and what to do about each problem.

    With --pack: whether a pack's graphs compute on this machine what they computed when built.
    """
    if pack:
        _check_pack(pack, json)
        return
    checks = diagnose()
    if json:
        print_json(checks)
        return
    rows = [(c.name, "ok" if c.ok else "–", c.detail, c.remedy) for c in checks]
    console().print(table("", ["", "", "found", "what to do"], rows))


def _check_pack(pack: Path, json: bool) -> None:
    results = check_pack(pack, default_progress())
    sizes = {r.num_experts for r in results}
    if json:
        print_json(results)
    else:
        rows = [
            (_name(r, sizes), "wrong" if r.failure else "ok", f"{r.top1_agreement:.3f}",
             f"{r.deviation:.3f}", f"{r.built_deviation:.3f}")
            for r in results
        ]  # fmt: skip
        head = ["target", "", "top-1", "off by, nats", "where it was built"]
        console().print(table(f"{pack} against its stored reference", head, rows))
    for result in results:
        if result.failure:
            raise GateFailedError(f"{_name(result, sizes)}: {result.failure}")


def _name(result: SelfCheck, sizes: set[int]) -> str:
    """The target, and the size where there are several."""
    return f"{result.target}, {result.num_experts} experts" if len(sizes) > 1 else result.target
