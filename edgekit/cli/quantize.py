"""``edgekit quantize``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgekit.atomic import atomic_directory
from edgekit.cli.common import AsFamily, Json, Model, Out, print_json, size
from edgekit.progress import default_progress
from edgekit.recipe import QuantizeSection, checked
from edgekit.scheme import Scheme
from edgekit.sources import resolve_model

app = typer.Typer(add_completion=False)


@app.command()
def command(
    model: Model,
    out: Out,
    scheme: Annotated[
        str, typer.Option(help="none, int8, int4-g32/g64/g128/channel.")
    ] = "int4-g64",
    method: Annotated[str, typer.Option(help="mse searches each scale; rtn does not.")] = "mse",
    for_transformers: Annotated[
        Path | None, typer.Option(help="Also write a copy that transformers loads, here.")
    ] = None,
    family: AsFamily = "",
    json: Json = False,
) -> None:
    """Write a quantized checkpoint."""
    section = checked(QuantizeSection, scheme=scheme, method=method)
    from edgekit.quantize.write import quantize

    progress = default_progress()
    source = resolve_model(model, progress, family=family)
    with atomic_directory(out) as directory:
        report = quantize(source, Scheme.parse(scheme), directory, progress, section.method, family)
    if for_transformers:
        from edgekit.quantize.reference import transformers_checkpoint

        with atomic_directory(for_transformers) as directory:
            transformers_checkpoint(out, directory, progress)
    if json:
        print_json(report)
    else:
        print(
            f"{size(report.size_bytes)}, {report.bits_per_weight:.2f} bits per weight, relative "
            f"squared error {report.relative_error:.2e}: {out}"
        )
        if report.taken_over:
            print(f"{report.taken_over / report.parameters:.0%} kept the checkpoint's integers")
