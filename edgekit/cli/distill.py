"""``edgekit distill train``, and the verbs that make a cache."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Annotated

import typer

from edgekit.atomic import atomic_directory
from edgekit.cli.common import Force, Json, Model, Out, print_json
from edgekit.cli.distill_capture import capture_app, verify_app
from edgekit.progress import default_progress
from edgekit.recipe import DistillSection, checked
from edgekit.sources import resolve_model

app = typer.Typer(add_completion=False, help="Capture a teacher's logits; train a student on them.")


app.add_typer(capture_app)
app.add_typer(verify_app)


@app.command()
def train(
    student: Model,
    out: Out,
    cache: Annotated[Path, typer.Option(help="A cache made by `distill capture`.")],
    steps: Annotated[int, typer.Option(help="Optimizer steps.")],
    batch_tokens: int = 1024,
    learning_rate: float = 1e-4,
    loss: Annotated[
        str,
        typer.Option(
            help="forward_kl, reverse_kl, jsd, skew_forward, skew_reverse or total_variation."
        ),
    ] = "forward_kl",
    cross_entropy: Annotated[float, typer.Option(help="Share of the text itself.")] = 0.0,
    temperature: float = 1.0,
    skip_missing: Annotated[
        bool, typer.Option("--skip-missing", help="Go on without shards that are not there.")
    ] = False,
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
        trainable=parts, loss=loss, cross_entropy=cross_entropy, temperature=temperature,
        seed=seed,
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
        report = train_student(
            model, cache, section, directory, progress, scratch, skip_missing=skip_missing
        )
    shutil.rmtree(scratch, ignore_errors=True)
    if json:
        print_json(report)
    else:
        print(
            f"held-out KL {report.held_out_kl_before:.4f} to {report.held_out_kl_after:.4f} nats "
            f"per token in {report.steps} steps: {out}"
        )
