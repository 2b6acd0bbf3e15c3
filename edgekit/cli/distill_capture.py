"""``edgekit distill capture`` and ``verify``: making a logit cache."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgekit.cli.common import (
    Force,
    Json,
    Model,
    Out,
    given,
    print_json,
    refuse_unused,
    size,
    unless_written,
    write_once,
    written_already,
)
from edgekit.cli.distill_served import capture_from_server
from edgekit.errors import BadInputError
from edgekit.progress import default_progress
from edgekit.recipe import DataSection, DistillSection, checked
from edgekit.sources import resolve_model

if TYPE_CHECKING:
    from edgekit.distill.capture import CaptureReport

capture_app = typer.Typer(add_completion=False)
verify_app = typer.Typer(add_completion=False)


@capture_app.command()
def capture(
    context: typer.Context,
    model: Model,
    out: Out,
    data: Annotated[list[str] | None, typer.Option(help=".txt, .jsonl, .parquet.")] = None,
    sequences: Annotated[
        Path | None, typer.Option(help="Directory of a cache or a build's step: its text again.")
    ] = None,
    tokens: int = 8192,
    held_out_tokens: int = 2048,
    sequence_length: int = 256,
    assistant_only: Annotated[
        bool, typer.Option("--assistant-only", help="Keep what predicts an assistant's words.")
    ] = False,
    targets: Annotated[str, typer.Option(help="sampled or top_k.")] = "sampled",
    bytes_per_token: Annotated[int, typer.Option(help="Of sampled targets, on average.")] = 50,
    top_k: Annotated[int, typer.Option(help="Tokens kept with top_k, and of held-out text.")] = 64,
    loss: Annotated[str, typer.Option(help="What will be trained on it.")] = "forward_kl",
    temperature: float = 1.0,
    shards: Annotated[
        list[Path] | None, typer.Option(help="Directories with shards of other machines.")
    ] = None,
    streamed: Annotated[
        bool, typer.Option("--streamed", help="A layer in memory at a time, even if all would fit.")
    ] = False,
    device: Annotated[str, typer.Option(help="Of torch.")] = "cpu",
    server: Annotated[
        str, typer.Option(help="Address of vLLM or SGLang that serves MODEL; weights stay there.")
    ] = "",
    served_model: Annotated[str, typer.Option(help="The name that the server gives it.")] = "",
    concurrency: Annotated[int, typer.Option(min=1, help="Requests to the server at once.")] = 8,
    requests_per_second: Annotated[float, typer.Option(min=0, help="At most; 0: no limit.")] = 0.0,
    seed: int = 0,
    force: Force = False,
    json: Json = False,
) -> None:
    """Run the teacher once and keep what it says; interrupted, the same command continues.

    Under `accelerate launch` or `torchrun` each process takes a share. With `--server` the teacher
    is asked there: targets are its top tokens, and a key is read from EDGEKIT_API_KEY or
    OPENAI_API_KEY.
    """
    section = checked(
        DataSection, files=tuple(data or ()), tokens=tokens, held_out_tokens=held_out_tokens,
        sequence_length=sequence_length, seed=seed,
        count="assistant" if assistant_only else "all",
    )  # fmt: skip
    kept = checked(
        DistillSection, steps=0, targets=targets, bytes_per_token=bytes_per_token, top_k=top_k,
        loss=loss, temperature=temperature, seed=seed,
    )  # fmt: skip
    _require_used(context, bool(server), bool(sequences))
    if server and "--targets" in given(context, "targets") and targets != "top_k":
        raise BadInputError(
            f"--targets {targets}: a server gives only the top tokens; use --targets top_k"
        )
    progress = default_progress()
    if server:
        from edgekit.distill.served_http import Server

        where = Server(server, served_model, concurrency, requests_per_second)
        captured = capture_from_server(
            model, out, sequences or section, where, kept.top_k, tuple(shards or ()), progress
        )
        _show(captured, out, json)
        return
    import dataclasses

    from edgekit.digests import json_digest
    from edgekit.distill.calibration import make_sequences
    from edgekit.distill.capture import CaptureOptions, capture_shards, finish_capture
    from edgekit.distill.collect import PassOptions, Share, own_device

    share = Share.of_process()
    if written_already(out, share.workers):
        return
    teacher = resolve_model(model, progress)
    running = PassOptions(device=own_device(device), mode="streamed" if streamed else "auto",
                          force=force)  # fmt: skip
    options = dataclasses.replace(CaptureOptions.of(kept), running=running)
    out = out.absolute()
    text = sequences or section.model_dump(mode="json")
    key = json_digest([str(teacher.resolve()), str(text), kept.model_dump(mode="json")])[:12]
    work = out.with_name(f".{out.name}.capture-{key}")
    source = sequences or work / f"text-{share.rank}"
    others = tuple(shards or ())

    def capture_share() -> int:
        work.mkdir(parents=True, exist_ok=True)
        if sequences is None:
            source.mkdir(exist_ok=True)
            make_sequences(teacher, section, source, progress, source)
        return capture_shards(teacher, source, options, work, progress, share, others)

    left = unless_written(out, share.workers, capture_share)
    if left and not out.is_dir():
        print(
            f"{left} shards are left to other processes, the last of which puts the cache "
            f"together; those of this one: {work}"
        )
        return

    def write(directory: Path) -> CaptureReport:
        return finish_capture(teacher, source, options, directory, [work, *others], progress)

    report = write_once(out, share.workers, write)
    shutil.rmtree(work, ignore_errors=True)  # all processes are through with it
    if report is None:
        print(f"{out}: written by another process")
        return
    _show(report, out, json)


def _require_used(context: typer.Context, server: bool, sequences: bool) -> None:
    """Refuse options that would do nothing beside the others."""
    if server:
        reason = "with --server the teacher runs there, and its top tokens are kept"
        mine = ("bytes_per_token", "loss", "temperature", "streamed", "device", "force")
        refuse_unused(context, reason, *mine)
    else:
        reason = "there is no --server"
        refuse_unused(context, reason, "served_model", "concurrency", "requests_per_second")
    if sequences:
        reason = "the text of --sequences is used, which says itself which positions count"
        of_text = ("data", "tokens", "held_out_tokens", "sequence_length", "assistant_only")
        refuse_unused(context, reason, *of_text)
    if server and sequences:
        refuse_unused(context, "with --server and --sequences nothing is drawn", "seed")


def _show(report: CaptureReport, out: Path, json: bool) -> None:
    if json:
        print_json(report)
    else:
        print(
            f"{report.positions} positions, {size(report.size_bytes)}, "
            f"{report.bytes_per_token:.1f} bytes per token of training text: {out}"
        )


@verify_app.command()
def verify(
    cache: Annotated[str, typer.Argument(help="Directory or address of a cache.")],
    json: Json = False,
) -> None:
    """Compare every shard with its sha256."""
    from edgekit.distill.cache import LogitCache
    from edgekit.distill.cache_write import damaged_shards

    opened = LogitCache(cache, skip_missing=True)
    damaged = damaged_shards(opened, default_progress())
    if damaged:
        raise BadInputError(
            f"{cache}: {len(damaged)} of {opened.shards} shards are damaged or missing, "
            f"{damaged[0]} the first; remove them, then capture them with --sequences and "
            "--shards, or train without them (--skip-missing)"
        )
    if json:
        print_json(opened.index)
    else:
        print(f"{len(opened.sequences)} sequences in {opened.shards} shards, all whole: {cache}")
