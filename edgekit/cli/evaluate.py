"""``edgekit evaluate``."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated

import typer

from edgekit.cli.common import Force, Json, console, print_json, table
from edgekit.progress import default_progress
from edgekit.recipe import DataSection, checked
from edgekit.sources import resolve_model

app = typer.Typer(add_completion=False)


@app.command()
def command(
    variant: Annotated[Path, typer.Argument(help="A compiled variant.")],
    teacher: Annotated[str, typer.Option("--teacher", help="The model to compare with.")],
    text: Annotated[list[str] | None, typer.Option(help=".txt, .jsonl, .parquet.")] = None,
    target: Annotated[list[str] | None, typer.Option(help="Repeatable.")] = None,
    tokens: Annotated[int, typer.Option(help="Tokens to evaluate on.")] = 4096,
    sequence_length: Annotated[int, typer.Option(help="Tokens per sequence.")] = 128,
    seed: int = 1,
    force: Force = False,
    json: Json = False,
) -> None:
    """KL, agreement and perplexity of what will run, against a teacher; speed and memory."""
    section = checked(
        DataSection,
        files=tuple(text or ()),
        tokens=0,
        held_out_tokens=tokens,
        sequence_length=sequence_length,
        seed=seed,
    )
    from edgekit.checkpoint import Checkpoint
    from edgekit.distill.calibration import make_sequences
    from edgekit.distill.same_tokenizer import real_tokens
    from edgekit.distill.teacher import teacher_logits
    from edgekit.estimate import require_model
    from edgekit.evaluate import evaluate
    from edgekit.sequences import FILE_NAME, read_sequences

    progress = default_progress()
    model = resolve_model(teacher, progress)
    require_model(model, force)
    with Checkpoint(model) as checkpoint:
        teacher_bytes, outputs = checkpoint.nbytes, checkpoint.architecture.vocab_size
    with tempfile.TemporaryDirectory() as scratch:
        directory = Path(scratch)
        make_sequences(model, section, directory, progress)
        report = evaluate(
            variant, teacher_logits(model), teacher_bytes, read_sequences(directory / FILE_NAME),
            target or ["openvino-cpu"], directory, progress, real_tokens(model, outputs),
        )  # fmt: skip
    if json:
        print_json(report)
        return
    measured = [(r.target, r) for r in report.results]
    measured += [
        (f"{r.target}, {n.num_experts} experts", r) for n in report.nested for r in n.results
    ]
    rows = [
        (f"{name} {domain}", q.kl.text(3), q.top1_agreement.text(3),
         q.perplexity.text(2), f"{q.teacher_perplexity.value:.2f}")
        for name, r in measured for domain, q in r.quality.items()
    ]  # fmt: skip
    console().print(table("", ["", "KL, nats/token", "top-1", "perplexity", "teacher"], rows))
    for name, reason in report.skipped.items():
        print(f"{name} was not measured: {reason}")
    for name, result in measured:
        if result.speed:
            print(f"{name}: {result.speed.tokens_per_second:.1f} tokens/s")
