"""``edgekit distill capture`` and ``edgekit distill train``."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from edgekit.atomic import atomic_directory
from edgekit.cli.common import Force, Json, Model, Out, print_json, size
from edgekit.progress import default_progress
from edgekit.recipe import DataSection, DistillSection, checked
from edgekit.sources import resolve_model

app = typer.Typer(add_completion=False, help="Capture a teacher's logits; train a student on them.")


@app.command()
def capture(
    model: Model,
    out: Out,
    data: Annotated[list[str] | None, typer.Option(help=".txt, .jsonl, .parquet.")] = None,
    tokens: int = 8192,
    held_out_tokens: int = 2048,
    sequence_length: int = 256,
    top_k: Annotated[int, typer.Option(min=1, help="Logits kept per position.")] = 64,
    seed: int = 0,
    force: Force = False,
    json: Json = False,
) -> None:
    """Run the teacher once and keep its logits."""
    section = checked(
        DataSection, files=tuple(data or ()), tokens=tokens, held_out_tokens=held_out_tokens,
        sequence_length=sequence_length, seed=seed,
    )  # fmt: skip
    from edgekit.distill.calibration import make_sequences
    from edgekit.distill.capture import capture as capture_logits
    from edgekit.estimate import require_model

    progress = default_progress()
    teacher = resolve_model(model, progress)
    require_model(teacher, force)
    with atomic_directory(out) as directory, tempfile.TemporaryDirectory() as samples:
        make_sequences(teacher, section, Path(samples), progress)
        report = capture_logits(teacher, Path(samples), top_k, directory, progress)
    if json:
        print_json(report)
    else:
        print(f"{report.positions} positions, {size(report.size_bytes)}: {out}")


@app.command()
def train(
    student: Model,
    out: Out,
    cache: Annotated[Path, typer.Option(help="A cache made by `distill capture`.")],
    steps: Annotated[int, typer.Option(help="Optimizer steps.")],
    batch_tokens: int = 1024,
    learning_rate: float = 1e-4,
    trainable: Annotated[
        list[str] | None, typer.Option(help="router, norms, attention, experts, mlp, all.")
    ] = None,
    seed: int = 0,
    force: Force = False,
    json: Json = False,
) -> None:
    """Train a student on a cache; interrupted, the same command continues."""
    parts = tuple(trainable or ("router", "norms", "attention"))
    section = checked(
        DistillSection, steps=steps, batch_tokens=batch_tokens, learning_rate=learning_rate,
        trainable=parts, seed=seed,
    )  # fmt: skip
    from edgekit.distill.train import train as train_student
    from edgekit.distill.train import training_digest
    from edgekit.estimate import require_model

    progress = default_progress()
    model = resolve_model(student, progress)
    require_model(model, force, parts)
    out = out.absolute()
    key = training_digest(model, cache, section)
    scratch = out.with_name(f".{out.name}.state-{key[:12]}")
    with atomic_directory(out) as directory:
        report = train_student(model, cache, section, directory, progress, scratch)
    shutil.rmtree(scratch, ignore_errors=True)
    if json:
        print_json(report)
    else:
        print(
            f"held-out KL {report.held_out_kl_before:.4f} to {report.held_out_kl_after:.4f} nats "
            f"per token in {report.steps} steps: {out}"
        )
