"""``edgekit parity``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgekit.cli.common import Json, console, print_json, table
from edgekit.errors import MissingRuntimeError
from edgekit.progress import default_progress

app = typer.Typer(add_completion=False)


@app.command()
def command(
    variant: Annotated[Path, typer.Argument(help="A compiled variant.")],
    reference: Annotated[
        Path | None,
        typer.Option(help="An unquantized checkpoint, in place of the variant's own weights."),
    ] = None,
    target: Annotated[list[str] | None, typer.Option(help="Repeatable.")] = None,
    longest: Annotated[int, typer.Option(help="Tokens of the longest prompt.")] = 1024,
    json: Json = False,
) -> None:
    """Compare the compiled graphs with transformers in float32; exit code 3 where they differ."""
    from edgekit.parity import check_parity, compiled_targets

    targets = target or compiled_targets(variant)
    report, _ = check_parity(variant, targets, default_progress(), reference, longest)
    if report.skipped:
        raise MissingRuntimeError(
            f"{variant}: {report.skipped}; `edgekit doctor --pack` checks it without a reference"
        )
    if json:
        print_json(report)
    else:
        rows = [
            (r.target, f"{r.mean_kl:.1e}", f"{r.top1_agreement:.3f}", f"{r.max_relative_error:.1e}",
             f"{r.shipped_mean_kl:.1e}", f"{r.shipped_top1_agreement:.3f}")
            for r in report.results
        ]  # fmt: skip
        head = ["target", "KL, nats/token", "top-1", "relative error", "KL as shipped", "top-1"]
        console().print(table(report.reference, head, rows))
        print(f"cases: {', '.join(report.results[0].cases)}")
    report.require()
