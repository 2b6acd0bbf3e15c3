"""``edgekit plan``."""

from __future__ import annotations

from typing import Annotated

import typer

from edgekit.checkpoint import read_config
from edgekit.cli.common import AsFamily, Json, console, parse_bytes, print_json, size, table
from edgekit.describe import describe
from edgekit.errors import BadInputError
from edgekit.nested import stored_sizes
from edgekit.plan import Plan, make_plan
from edgekit.progress import default_progress
from edgekit.rules import RULES, TARGETS
from edgekit.sources import resolve_config

app = typer.Typer(add_completion=False)


@app.command()
def command(
    model: Annotated[str, typer.Argument(help="As for inspect; config.json is enough.")] = "",
    target: Annotated[list[str] | None, typer.Option(help="Repeatable; default all.")] = None,
    memory: Annotated[str, typer.Option(help="Memory for the model, such as 16GB.")] = "8GB",
    context: Annotated[int, typer.Option(min=1, max=1 << 20, help="Tokens.")] = 8192,
    rules: Annotated[bool, typer.Option("--rules", help="Print every device rule.")] = False,
    family: AsFamily = "",
    json: Json = False,
) -> None:
    """What fits where, what it is likely to cost in quality, and what a device refuses."""
    if rules:
        _rules(json)
        return
    if not model:
        raise BadInputError("plan needs a MODEL (or --rules); give a checkpoint directory")
    targets = target or list(TARGETS)
    for name in targets:
        if name not in TARGETS:
            raise BadInputError(f"--target {name}: not known; choose one of {', '.join(TARGETS)}")
    directory = resolve_config(model, default_progress())
    config, source = read_config(directory), str(directory / "config.json")
    architecture = describe(config, source, family)
    nested = stored_sizes(config, architecture, source)
    plan = make_plan(architecture, targets, parse_bytes(memory), context, nested)
    if json:
        print_json(plan)
    else:
        _show(plan)


def _rules(json: bool) -> None:
    if json:
        print_json([{"id": r.id, "targets": r.targets, "reason": r.reason, "remedy": r.remedy,
                     "source": r.source, "blocks": r.blocks} for r in RULES])  # fmt: skip
        return
    screen = console()
    for rule in RULES:
        kind = "refused" if rule.blocks else "advice"
        screen.print(f"[bold]{rule.id}[/bold] ({kind}) {', '.join(rule.targets)}")
        screen.print(f"  {rule.reason}; {rule.remedy}.", markup=False, highlight=False)
        screen.print(f"  Source: {rule.source}", markup=False, highlight=False, style="dim")


def _show(plan: Plan) -> None:
    screen = console()
    if plan.nested:
        sizes = " and ".join(map(str, plan.nested))
        text = f"One weights file for {sizes} experts: a machine takes the largest that fits."
        screen.print(text, markup=False, highlight=False)
    for target, best in plan.recommended.items():
        rows = [
            ((">" if c == best else " ") + f" {c.scheme}, {c.keep:.0%}", size(c.weights_bytes),
             size(c.kv_cache_bytes), size(c.total_bytes), f"{c.bits_per_original_weight:.2f}",
             "refused" if c.blocked else "yes" if c.fits else "no", c.risk)
            for c in plan.candidates if c.target == target
        ]  # fmt: skip
        head = ["scheme, experts", "weights", "KV cache", "total", "bits", "fits", "risk"]
        screen.print(
            table(f"{target}, {size(plan.memory_bytes)}, {plan.context} tokens", head, rows)
        )
        screen.print(f"  {plan.reasons[target]}.", markup=False, highlight=False)
        if best:
            screen.print(f"  Evidence: {best.evidence}.", markup=False, highlight=False)
            screen.print(
                f"  Building it takes about {size(plan.build_memory_bytes)} of memory and "
                f"{size(best.build_disk_bytes)} of disk.", markup=False, highlight=False,
            )  # fmt: skip
        notes = {f.rule: f for c in plan.candidates if c.target == target for f in c.findings}
        for finding in notes.values():
            text = f"  {finding.rule}: {finding.reason}; {finding.remedy}."
            screen.print(text, markup=False, highlight=False, style="dim")
        screen.print()
