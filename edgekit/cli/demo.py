"""``edgekit demo``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from edgekit.cli.chat import ask, converse
from edgekit.cli.common import Force, Json, console, count, notifier, print_json, size, table
from edgekit.demo import QUESTION, DemoResult, demo
from edgekit.pack import variant_directory
from edgekit.progress import default_progress
from edgekit.runtimes.engine import Sampling, load_engine

app = typer.Typer(add_completion=False)


@app.command()
def command(
    out: Annotated[Path, typer.Option("--out", help="Where everything goes.")] = Path(
        "edgekit-demo"
    ),
    no_chat: Annotated[bool, typer.Option("--no-chat", help="Stop after one answer.")] = False,
    force: Force = False,
    json: Json = False,
) -> None:
    """The whole road on a small real model: a stand-in MoE, shrunk, healed, quantized, packed."""
    result = demo(out, default_progress(), notifier(json), force)
    manifest = result.build.manifest
    variant = variant_directory(result.build.pack, manifest, "openvino-cpu")
    engine = load_engine(variant, "openvino-cpu")
    sampling = Sampling(temperature=0.0, repetition_penalty=1.0, max_tokens=200)
    if json:
        print_json(
            {**summary(result), "question": QUESTION, "answer": ask(engine, QUESTION, sampling)}
        )
        return
    show(result)
    print(f"\n> {QUESTION}")
    ask(engine, QUESTION, sampling, echo=True)
    if not no_chat and sys.stdin.isatty() and sys.stdout.isatty():
        converse(engine, Sampling())


def summary(result: DemoResult) -> dict[str, Any]:
    """The demo's figures as JSON values."""
    build = result.build
    return {
        "source": result.source,
        "standin": result.standin,
        "seconds": round(result.seconds, 1),
        "skipped": list(build.skipped),
        "evaluation": build.evaluation.model_dump(mode="json"),
        "peak_memory_bytes": max(s["peak_memory_bytes"] for s in build.steps.values()),
        "gates": [g.model_dump() for g in build.manifest.gates],
        "pack": str(build.pack),
        "report": str(build.report),
    }


def show(result: DemoResult) -> None:
    """The one table."""
    build, standin = result.build, result.standin
    student, evaluation = build.manifest.student, build.evaluation
    quality = evaluation.worst_quality()
    speeds = {r.target: r.speed for r in evaluation.results}
    rows = [
        ("parameters", count(standin["parameters"]), count(student.parameters)),
        ("experts per layer", str(standin["options"]["experts"]), str(student.num_experts)),
        ("size on disk", size(evaluation.teacher_bytes), size(evaluation.size_bytes)),
        ("perplexity, held-out text", f"{quality.teacher_perplexity.value:.2f}",
         quality.perplexity.text(2)),
        ("KL to the teacher, nats/token", "0", quality.kl.text(3)),
        ("top-1 agreement", "1", quality.top1_agreement.text(3)),
    ]  # fmt: skip
    for target, speed in speeds.items():
        if speed:
            text = f"{speed.tokens_per_second:.0f} tokens/s, {speed.time_to_first_token_ms:.0f} ms"
            rows.append((f"{target}: decode, first token", "", text))
            rows.append((f"{target}: peak memory", "", size(speed.peak_memory_bytes)))
    peak = max(s["peak_memory_bytes"] for s in build.steps.values())
    rows.append(("peak memory of the build", "", size(peak)))
    screen = console()
    screen.print(f"\n{standin['note']}", markup=False, style="dim")
    ratio = standin["perplexity"] / standin["dense_perplexity"]
    screen.print(
        f"Perplexity {standin['dense_perplexity']:.2f} dense, {standin['perplexity']:.2f} as MoE "
        f"({ratio - 1:+.1%}).\n", markup=False, style="dim",
    )  # fmt: skip
    screen.print(table("", ["", "teacher (stand-in MoE)", "student"], rows))
    for name, reason in evaluation.skipped.items():
        screen.print(f"{name} was not measured: {reason}", markup=False, highlight=False)
    screen.print(f"{result.seconds:.0f} s. Pack: {build.pack}", markup=False, highlight=False)
    screen.print(f"Report: {build.report}", markup=False, highlight=False)
