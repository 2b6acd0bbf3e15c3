"""``edgekit shrink``."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated

import typer

from edgekit.atomic import atomic_directory
from edgekit.cli.common import Force, Json, Model, Out, count, print_json
from edgekit.progress import default_progress
from edgekit.recipe import DataSection, ShrinkSection, checked
from edgekit.sources import resolve_model

app = typer.Typer(add_completion=False)


@app.command()
def command(
    model: Model,
    out: Out,
    keep: Annotated[float, typer.Option(help="Fraction of the experts that stays.")] = 0.5,
    criterion: Annotated[str, typer.Option(help="reap, frequency or random.")] = "reap",
    data: Annotated[list[str] | None, typer.Option(help=".txt, .jsonl, .parquet.")] = None,
    tokens: Annotated[int, typer.Option(help="Calibration tokens.")] = 8192,
    sequence_length: Annotated[int, typer.Option(help="Tokens per sequence.")] = 256,
    seed: int = 0,
    force: Force = False,
    json: Json = False,
) -> None:
    """One step alone: fewer experts."""
    section = checked(ShrinkSection, keep=keep, criterion=criterion, seed=seed)
    sampling = checked(
        DataSection, files=tuple(data or ()), tokens=tokens, held_out_tokens=0,
        sequence_length=sequence_length, seed=seed,
    )  # fmt: skip
    from edgekit.distill.calibration import make_sequences
    from edgekit.distill.shrink import shrink
    from edgekit.estimate import require_model

    progress = default_progress()
    teacher = resolve_model(model, progress)
    require_model(teacher, force)
    with atomic_directory(out) as directory, tempfile.TemporaryDirectory() as samples:
        make_sequences(teacher, sampling, Path(samples), progress)
        report = shrink(teacher, Path(samples), section, directory, progress)
    if json:
        print_json(report)
    else:
        print(
            f"{report.experts_before} to {report.experts_after} experts per layer, "
            f"{count(report.parameters_before)} to {count(report.parameters_after)} parameters: "
            f"{out}"
        )
