"""``edgekit distill on-policy`` and ``tune``: the stages after offline distillation."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgekit.cli.common import Force, Json, Model, Out, print_json, refuse_unused
from edgekit.cli.distill_train import PARTS, written_by
from edgekit.errors import BadInputError
from edgekit.progress import Silent, default_progress
from edgekit.recipe import DataSection, DistillSection, checked
from edgekit.recipe_stages import OnPolicySection, SupervisedSection
from edgekit.sources import resolve_config, resolve_model

if TYPE_CHECKING:
    from edgekit.distill.on_policy import Teacher

stages_app = typer.Typer(add_completion=False)

Steps = Annotated[int, typer.Option(help="Optimizer steps.")]
BatchTokens = Annotated[int, typer.Option(help="Of a step.")]
Trained = Annotated[
    list[str] | None, typer.Option(help="router, norms, attention, experts, mlp, all.")
]
Rank = Annotated[int, typer.Option(help="Of adapters; 0: whole matrices.")]
Beta = Annotated[float, typer.Option(help="Of jsd: near 0 like forward KL, near 1 reverse.")]
Skew = Annotated[float, typer.Option(help="Of the skewed losses.")]
Device = Annotated[str, typer.Option(help="Of torch; auto: the GPU, or the CPU.")]


@stages_app.command("on-policy")
def on_policy(
    context: typer.Context,
    student: Model,
    out: Out,
    teacher: Annotated[
        str,
        typer.Option(help="As the student; in memory beside it, or with --server no weights."),
    ],
    steps: Steps,
    round_steps: Annotated[int, typer.Option(help="Steps on the text of one round.")] = 8,
    prompts: Annotated[
        list[str] | None,
        typer.Option(help=".txt, .jsonl, .parquet to be continued; none: edgekit's prompts."),
    ] = None,
    prompt_tokens: Annotated[int, typer.Option(help="Of a text that begin an answer.")] = 32,
    new_tokens: Annotated[int, typer.Option(help="Of an answer, at most.")] = 64,
    sampling_temperature: Annotated[float, typer.Option(help="Of the student's writing.")] = 1.0,
    loss: Annotated[
        str, typer.Option(help="reverse_kl, jsd or another of `train`.")
    ] = "reverse_kl",
    beta: Beta = 0.5,
    skew: Skew = 0.1,
    top_k: Annotated[int, typer.Option(help="Teacher's tokens used at a position.")] = 64,
    learning_rate: float = 2e-5,
    batch_tokens: BatchTokens = 1024,
    trainable: Trained = None,
    lora_rank: Rank = 0,
    cache: Annotated[
        Path | None, typer.Option(help="Measure on its held-out text, before and after.")
    ] = None,
    server: Annotated[
        str, typer.Option(help="Ask the teacher at this address of vLLM or SGLang.")
    ] = "",
    served_model: Annotated[str, typer.Option(help="The name that the server gives it.")] = "",
    concurrency: Annotated[int, typer.Option(min=1, help="Requests to the server at once.")] = 8,
    requests_per_second: Annotated[float, typer.Option(min=0, help="At most; 0: no limit.")] = 0.0,
    device: Device = "auto",
    seed: int = 0,
    force: Force = False,
    json: Json = False,
) -> None:
    """Train a student on what it writes itself, corrected by the teacher; interrupted, the same
    command continues.

    Every fifth of edgekit's prompts, and a fifth of the documents of files, are only measured on.
    """
    stage = checked(
        OnPolicySection, steps=steps, round_steps=round_steps, prompts=tuple(prompts or ()),
        prompt_tokens=prompt_tokens, new_tokens=new_tokens,
        sampling_temperature=sampling_temperature, loss=loss, beta=beta, top_k=top_k,
        learning_rate=learning_rate, seed=seed,
    )  # fmt: skip
    base = checked(
        DistillSection, steps=0, batch_tokens=batch_tokens, trainable=tuple(trainable or PARTS),
        lora_rank=lora_rank, skew=skew,
    )  # fmt: skip
    if not server:
        options = ("served_model", "concurrency", "requests_per_second")
        refuse_unused(context, "there is no --server", *options)
    from edgekit.distill.on_policy import on_policy as train
    from edgekit.distill.processes import Processes
    from edgekit.distill.prompts import read_prompts
    from edgekit.distill.stage import state_directory
    from edgekit.text import ChatTokenizer

    processes = Processes.start(device)
    progress = default_progress() if processes.is_main else Silent()
    model = resolve_model(student, progress)
    taught = resolve_config(teacher, progress) if server else resolve_model(teacher, progress)
    data = checked(DataSection, seed=seed)
    asked = read_prompts(ChatTokenizer(model), stage, data)
    out = out.absolute()
    inputs = [model, taught, *([cache] if cache else [])]
    scratch = state_directory(out, inputs, [stage, base, asked, server, served_model])
    with written_by(processes.is_main, out) as directory:
        corrects: Path | Teacher = taught
        if server:
            hard = (concurrency, requests_per_second)
            corrects = _served(taught, server, served_model, hard, top_k)
        report = train(
            model, corrects, asked, stage, base, directory, progress, scratch,
            cache=cache, device=device, force=force,
        )  # fmt: skip
    if processes.is_main:
        shutil.rmtree(scratch, ignore_errors=True)
        if json:
            print_json(report)
        elif report.own_before and report.own_after:
            print(
                f"{loss} on the student's own text {report.own_before.all.value:.4f} to "
                f"{report.own_after.all.value:.4f} nats per token in {steps} steps: {out}"
            )
        else:
            print(f"{steps} steps; no prompt was held out to measure on: {out}")
        if report.left_out and not json:
            print(f"{report.left_out} prompts were left out, too long for the context")
    processes.stop()


def _served(directory: Path, url: str, name: str, hard: tuple[int, float], top_k: int) -> Teacher:
    from edgekit.distill.served_http import Server
    from edgekit.distill.served_scorer import served_scorer

    if not name:
        raise BadInputError("--server needs --served-model; give the name that the server lists")
    return served_scorer(directory, Server(url, name, *hard), top_k)


@stages_app.command()
def tune(
    student: Model,
    out: Out,
    cache: Annotated[Path, typer.Option(help="The teacher's, made by `distill capture`.")],
    data: Annotated[list[str], typer.Option(help=".txt, .jsonl, .parquet to be learnt.")],
    steps: Steps,
    anchor: Annotated[
        float, typer.Option(help="Weight of the divergence to the teacher on the cache.")
    ] = 0.5,
    control: Annotated[
        bool, typer.Option(help="Tune once more without the anchor, to say what it prevented.")
    ] = True,
    tokens: Annotated[int, typer.Option(help="Of the files, for training.")] = 65_536,
    held_out_tokens: Annotated[int, typer.Option(help="Of the files, to measure on.")] = 4096,
    sequence_length: int = 256,
    all_words: Annotated[
        bool, typer.Option("--all-words", help="Of messages, not only the assistant's.")
    ] = False,
    loss: Annotated[str, typer.Option(help="To the teacher, as of `train`.")] = "forward_kl",
    beta: Beta = 0.5,
    skew: Skew = 0.1,
    temperature: Annotated[float, typer.Option(help="That of the cache.")] = 1.0,
    learning_rate: float = 2e-5,
    batch_tokens: BatchTokens = 1024,
    trainable: Trained = None,
    lora_rank: Rank = 0,
    device: Device = "auto",
    seed: int = 0,
    force: Force = False,
    json: Json = False,
) -> None:
    """Tune a student on text of your own, held to the teacher by its cache; interrupted, the same
    command continues."""
    stage = checked(
        SupervisedSection, files=tuple(data), tokens=tokens, held_out_tokens=held_out_tokens,
        count="all" if all_words else "assistant", steps=steps, anchor=anchor, control=control,
        learning_rate=learning_rate, seed=seed,
    )  # fmt: skip
    base = checked(
        DistillSection, steps=0, batch_tokens=batch_tokens, trainable=tuple(trainable or PARTS),
        lora_rank=lora_rank, loss=loss, beta=beta, skew=skew, temperature=temperature,
    )  # fmt: skip
    from edgekit.distill.processes import Processes
    from edgekit.distill.stage import state_directory
    from edgekit.distill.supervised import supervised

    processes = Processes.start(device)
    progress = default_progress() if processes.is_main else Silent()
    model = resolve_model(student, progress)
    out = out.absolute()
    files = [Path(name) for name in stage.files]
    scratch = state_directory(out, [model, cache, *files], [stage, base, sequence_length])
    with written_by(processes.is_main, out) as directory:
        report = supervised(
            model, cache, stage, base, sequence_length, directory, progress, scratch,
            device=device, force=force,
        )  # fmt: skip
    if processes.is_main:
        shutil.rmtree(scratch, ignore_errors=True)
        if json:
            print_json(report)
        else:
            print("\n".join([*report.sentences, str(out)]))
    processes.stop()
