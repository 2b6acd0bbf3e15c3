"""``edgekit distill train``: a student from a cache."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from edgekit.atomic import atomic_directory
from edgekit.cli.common import Force, Json, Model, Out, print_json
from edgekit.errors import BadInputError
from edgekit.progress import Silent, default_progress
from edgekit.recipe import DistillSection, checked
from edgekit.sources import resolve_model

train_app = typer.Typer(add_completion=False)
MICRO_BATCH = 512
PARTS = ("router", "norms", "attention")


@train_app.command()
def train(
    student: Model,
    out: Out,
    cache: Annotated[str, typer.Option(help="Directory or address of a cache.")],
    steps: Annotated[int, typer.Option(help="Optimizer steps.")],
    batch_tokens: Annotated[int, typer.Option(help="Of a step.")] = 1024,
    learning_rate: float = 1e-4,
    loss: Annotated[
        str,
        typer.Option(
            help="forward_kl, reverse_kl, jsd, skew_forward, skew_reverse or total_variation."
        ),
    ] = "forward_kl",
    cross_entropy: Annotated[float, typer.Option(help="Share of the text itself.")] = 0.0,
    beta: Annotated[float, typer.Option(help="Of jsd: near 0 like forward KL.")] = 0.5,
    skew: Annotated[float, typer.Option(help="Of the skewed losses.")] = 0.1,
    temperature: Annotated[float, typer.Option(help="That of the cache, if it has draws.")] = 1.0,
    skip_missing: Annotated[
        bool, typer.Option("--skip-missing", help="Go on without shards that are not there.")
    ] = False,
    trainable: Annotated[
        list[str] | None,
        typer.Option(help="router, norms, attention, experts, mlp, embedding, all."),
    ] = None,
    optimizer: Annotated[str, typer.Option(help="adamw or adafactor.")] = "adamw",
    weight_decay: float = 0.0,
    warm_up: Annotated[float, typer.Option(help="Share of the steps.")] = 0.1,
    decay: Annotated[str, typer.Option(help="cosine, linear or constant.")] = "cosine",
    clip_norm: Annotated[float, typer.Option(help="0: none.")] = 1.0,
    micro_batch_tokens: Annotated[
        int | None, typer.Option(help="Of a forward pass; 0: measured.", show_default="512")
    ] = None,
    precision: Annotated[
        str, typer.Option(help="float32, bfloat16, or auto: bfloat16 where the device has it.")
    ] = "auto",
    trial: Annotated[
        bool,
        typer.Option("--trial", help="Measure which micro-batch, threads and precision are fast."),
    ] = False,
    activation_checkpointing: Annotated[
        bool, typer.Option("--activation-checkpointing", help="Less memory for more time.")
    ] = False,
    lora_rank: Annotated[int, typer.Option(help="Of adapters; 0: whole matrices.")] = 0,
    lora_alpha: float = 32.0,
    evaluate_every: Annotated[int, typer.Option(help="Steps; the best is written.")] = 0,
    patience: Annotated[int, typer.Option(help="Evaluations without gain; 0: any.")] = 0,
    save_every: Annotated[int, typer.Option(help="Steps.")] = 25,
    trackers: Annotated[
        list[str] | None, typer.Option("--tracker", help="Of accelerate, such as tensorboard.")
    ] = None,
    device: Annotated[str, typer.Option(help="Of torch; auto: the GPU, or the CPU.")] = "auto",
    seed: int = 0,
    force: Force = False,
    json: Json = False,
) -> None:
    """Train a student on a cache; interrupted, the same command continues.

    Under `accelerate launch -m edgekit distill train ...` or `torchrun` the processes share the
    work.
    """
    tokens = (0 if trial else MICRO_BATCH) if micro_batch_tokens is None else micro_batch_tokens
    section = checked(
        DistillSection, steps=steps, batch_tokens=batch_tokens, learning_rate=learning_rate,
        trainable=tuple(trainable or PARTS), loss=loss, beta=beta, skew=skew,
        cross_entropy=cross_entropy, temperature=temperature, optimizer=optimizer,
        weight_decay=weight_decay, warm_up=warm_up, decay=decay, clip_norm=clip_norm,
        micro_batch_tokens=tokens, precision=precision,
        activation_checkpointing=activation_checkpointing, lora_rank=lora_rank,
        lora_alpha=lora_alpha, evaluate_every=evaluate_every, patience=patience,
        save_every=save_every, trackers=tuple(trackers or ()), seed=seed,
    )  # fmt: skip
    from edgekit.distill.processes import Processes
    from edgekit.distill.train import train as train_student
    from edgekit.distill.train import training_digest

    processes = Processes.start(device)
    progress = default_progress() if processes.is_main else Silent()
    model = resolve_model(student, progress)
    out = out.absolute()
    key = training_digest(model, cache, section, skip_missing)
    scratch = out.with_name(f".{out.name}.state-{key[:12]}")
    with written_by(processes.is_main, out) as directory:
        report = train_student(
            model, cache, section, directory, progress, scratch, device=device,
            skip_missing=skip_missing, force=force,
            notify=lambda text: print(text, file=sys.stderr, flush=True)
            if processes.is_main else None,
        )  # fmt: skip
    if processes.is_main:
        shutil.rmtree(scratch, ignore_errors=True)
        say(report, out, json)
    processes.stop()


@contextmanager
def written_by(main: bool, out: Path) -> Iterator[Path]:
    """The directory to write; of several processes only the main one makes it."""
    if main:
        with atomic_directory(out) as directory:
            yield directory
        return
    if out.exists():
        raise BadInputError(f"{out} exists already; choose another directory or remove it first")
    yield out


def say(report: Any, out: Path, json: bool) -> None:
    """What came of it."""
    if json:
        print_json(report)
        return
    early = " (stopped early)" if report.stopped_early else ""
    before, after = report.held_out_kl_before, report.held_out_kl_after
    kl = "no held-out text"
    if before is not None and after is not None:
        kl = f"held-out KL {before:.4f} to {after:.4f} nats per token"
    speed = f"{report.tokens_per_second:,.0f} tokens/s"
    if report.working:
        speed += f" in {report.working.precision}"
    print(f"{kl}, {report.steps} steps{early}, {speed}: {out}")
