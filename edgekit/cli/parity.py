"""``edgekit parity``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgekit.cli.common import Json, console, print_json, table
from edgekit.progress import default_progress

app = typer.Typer(add_completion=False)


@app.command()
def command(
    variant: Annotated[Path, typer.Argument(help="A compiled variant.")],
    reference: Annotated[Path, typer.Option(help="The quantized checkpoint it was made from.")],
    target: Annotated[list[str] | None, typer.Option(help="Repeatable.")] = None,
    json: Json = False,
) -> None:
    """Compare the compiled graphs with PyTorch on the same integers."""
    from edgekit.parity import check_parity

    targets = target or ["openvino-cpu"]
    results = check_parity(variant, reference, targets, default_progress())
    if json:
        print_json(results)
        return
    rows = [
        (r.target, f"{r.kl:.2e}", f"{r.top1_agreement:.3f}", f"{r.max_logit_difference:.3g}")
        for r in results
    ]
    head = ["target", "KL, nats/token", "top-1", "largest logit difference"]
    console().print(table("", head, rows))
