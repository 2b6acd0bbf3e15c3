"""``edgekit distill compare`` and ``follow``: keeping up with a teacher that is trained on."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Annotated

import typer

from edgekit.atomic import atomic_directory
from edgekit.cli.common import Force, Json, Model, Out, console, print_json, table
from edgekit.cli.distill_stages import Beta, Skew
from edgekit.progress import default_progress
from edgekit.recipe import DistillSection, checked
from edgekit.sources import resolve_model

compare_app = typer.Typer(add_completion=False)
follow_app = typer.Typer(add_completion=False)


@compare_app.command()
def compare(
    old: Annotated[str, typer.Argument(help="A cache of the earlier teacher.")],
    new: Annotated[str, typer.Argument(help="One of the same text and the later teacher.")],
    json: Json = False,
) -> None:
    """Say how far a teacher moved between two caches of the same text."""
    from edgekit.distill.cache import LogitCache
    from edgekit.distill.teacher_move import compare as compare_caches

    moved = compare_caches(LogitCache(old), LogitCache(new))
    if json:
        print_json(moved)
        return
    rows = {"all": moved.kl.all, **moved.kl.domains}
    title = f"KL(new || old) in nats per token, at least; {moved.positions} held-out positions"
    columns = ["text", "KL (95 % interval)"]
    console().print(table(title, columns, [[d, kl.text(4)] for d, kl in rows.items()]))
    print(f"compared token by token: {moved.compared_mass:.1%} of the new teacher's mass")


@follow_app.command()
def follow(
    teacher: Model,
    out: Out,
    previous: Annotated[str, typer.Option("--from", help="The previous student.")],
    cache: Annotated[Path, typer.Option(help="The cache that it was trained on.")],
    steps: Annotated[int, typer.Option(min=1, help="Steps that it was trained for.")],
    student_kl: Annotated[
        float | None,
        typer.Option(min=0, help="Its held-out KL before those steps; unknown: what it is now."),
    ] = None,
    batch_tokens: int = 1024,
    learning_rate: float = 1e-4,
    loss: Annotated[str, typer.Option(help="As `distill train`.")] = "forward_kl",
    beta: Beta = 0.5,
    skew: Skew = 0.1,
    trainable: Annotated[
        list[str] | None, typer.Option(help="router, norms, attention, experts, mlp, all.")
    ] = None,
    streamed: Annotated[
        bool, typer.Option("--streamed", help="A layer of the teacher in memory at a time.")
    ] = False,
    device: Annotated[str, typer.Option(help="Of torch.")] = "cpu",
    seed: int = 0,
    force: Force = False,
    json: Json = False,
) -> None:
    """Bring a student to a teacher that moved on: capture the same text again, see how far it
    moved, train for a share of the earlier steps; interrupted, the same command continues."""
    parts = tuple(trainable or ("router", "norms", "attention"))
    section = checked(
        DistillSection, steps=0, batch_tokens=batch_tokens, learning_rate=learning_rate,
        trainable=parts, loss=loss, beta=beta, skew=skew, seed=seed,
    )  # fmt: skip
    from edgekit.digests import json_digest
    from edgekit.distill.cache import INDEX, read_index
    from edgekit.distill.collect import PassOptions, checkpoint_digest
    from edgekit.distill.follow import FollowOptions, Previous
    from edgekit.distill.follow import follow as follow_teacher
    from edgekit.estimate import require_model

    progress = default_progress()
    model, student = resolve_model(teacher, progress), resolve_model(previous, progress)
    require_model(student, force, parts)
    running = PassOptions(device=device, mode="streamed" if streamed else "auto", force=force)
    options = FollowOptions(Previous(steps, student_kl), section, running)
    out = out.absolute()
    key = json_digest(
        [checkpoint_digest(model), checkpoint_digest(student), steps, student_kl,
         read_index(cache / INDEX).model_dump(mode="json"), section.model_dump(mode="json")]
    )[:12]  # fmt: skip
    scratch = out.with_name(f".{out.name}.follow-{key}")
    with atomic_directory(out) as directory:
        report = follow_teacher(model, student, cache, options, directory, progress, scratch)
    shutil.rmtree(scratch, ignore_errors=True)
    if json:
        print_json(report)
        return
    print(
        f"the teacher moved by {report.moved.kl.all.text(4)} nats per token, against the "
        f"{report.student_kl:.4f} of the student: {report.steps} of {steps} steps"
    )
    print(
        f"held-out KL to the new teacher {report.before.all.value:.4f} to "
        f"{report.after.all.value:.4f} nats per token: {out}"
    )
