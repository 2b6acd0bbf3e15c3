"""``edgekit build``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgekit.cli.common import Json, console, notifier, print_json, size, table
from edgekit.progress import default_progress
from edgekit.recipe import load_recipe

app = typer.Typer(add_completion=False)


@app.command()
def command(
    recipe: Annotated[Path, typer.Argument(help="The recipe, a TOML file.")],
    out: Annotated[Path, typer.Option("--out", help="Run directory; an old run continues.")],
    start_from: Annotated[
        str, typer.Option("--from", help="Run this step and all later ones again.")
    ] = "",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the resolved recipe, steps and estimates.")
    ] = False,
    override_gate: Annotated[
        list[str] | None, typer.Option(help="Accept a failed gate; recorded in the manifest.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Ignore memory and disk checks.")] = False,
    json: Json = False,
) -> None:
    """Run a recipe: the whole road, resumable."""
    from edgekit.estimate import estimate_build, require_resources
    from edgekit.preflight import preflight

    resolved = load_recipe(recipe)
    if dry_run:  # a build does it by itself
        preflight(resolved, default_progress(), override_gate or ())
    estimates = estimate_build(resolved, default_progress())
    if dry_run:
        if json:
            print_json({"recipe": resolved, "steps": estimates})
            return
        print(resolved.to_toml())
        rows = [(e.step, e.time, size(e.memory_bytes), size(e.disk_bytes)) for e in estimates]
        console().print(table("Steps", ["step", "time", "peak memory", "disk"], rows))
        return
    from edgekit.pipeline import BuildOptions, build

    require_resources(estimates, out, force)
    options = BuildOptions(start_from, tuple(override_gate or ()), notifier(json), force)
    result = build(resolved, out, default_progress(), options)
    if json:
        print_json(
            {"pack": result.pack, "report": result.report, "skipped": result.skipped,
             "evaluation": result.evaluation, "gates": result.manifest.gates}
        )  # fmt: skip
        return
    figures = []
    for target in result.evaluation.results:
        quality, speed = target.quality["all"], target.speed
        figures.append(
            (
                target.target,
                f"{quality.kl.value:.4f}",
                f"{quality.top1_agreement.value:.3f}",
                f"{quality.perplexity.value:.2f}",
                f"{speed.tokens_per_second:.1f}" if speed else "-",
            )
        )
    head = ["target", "KL, nats/token", "top-1", "perplexity", "tokens/s"]
    console().print(table("", head, figures))
    for name, reason in result.evaluation.skipped.items():
        print(f"{name} was not measured: {reason}")
    print(f"Pack: {result.pack}\nReport: {result.report}")
