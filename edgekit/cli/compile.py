"""``edgekit compile``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgekit.atomic import atomic_directory
from edgekit.cli.common import Json, Out, print_json, size
from edgekit.progress import default_progress

app = typer.Typer(add_completion=False)


@app.command()
def command(
    model: Annotated[Path, typer.Argument(help="A quantized checkpoint.")],
    out: Out,
    target: Annotated[list[str] | None, typer.Option(help="Repeatable.")] = None,
    json: Json = False,
) -> None:
    """Write the runtimes' graphs over the weights file."""
    from edgekit.runtimes.compile import compile_variant

    with atomic_directory(out) as directory:
        report = compile_variant(model, target or ["openvino-cpu"], directory, default_progress())
    if json:
        print_json(report)
    else:
        graphs = ", ".join(f"{name} {size(value)}" for name, value in report.graph_bytes.items())
        print(f"weights {size(report.weights_bytes)}, graphs {graphs}: {out}")
