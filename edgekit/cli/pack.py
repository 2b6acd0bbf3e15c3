"""``edgekit pack make | embedding | show | verify | archive``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgekit.archive import archive_pack, extract_archive
from edgekit.atomic import atomic_directory
from edgekit.cli.common import Json, Model, Out, console, count, print_json, size, table
from edgekit.errors import BadInputError
from edgekit.manifest import Embedding, Manifest, TargetResult, read_manifest
from edgekit.pack import verify_pack
from edgekit.progress import default_progress
from edgekit.run_pack import pack_run
from edgekit.sources import resolve_encoder

app = typer.Typer(add_completion=False, help="Make, show, verify or archive a pack.")
Pack = Annotated[Path, typer.Argument(help="A pack's directory.")]


@app.command()
def make(
    run: Annotated[Path, typer.Argument(help="A run directory whose steps are finished.")],
    out: Out,
    override_gate: Annotated[
        list[str] | None, typer.Option(help="Accept a failed gate; recorded in the manifest.")
    ] = None,
    json: Json = False,
) -> None:
    """Make a pack from a finished run."""
    with atomic_directory(out) as directory:
        manifest = pack_run(run, directory, override_gate or [], default_progress())
    _print(manifest, out, json)


@app.command()
def embedding(
    model: Model,
    out: Out,
    scheme: Annotated[str, typer.Option(help="none or int8.")] = "int8",
    target: Annotated[
        list[str] | None, typer.Option(help="openvino-cpu, openvino-gpu or onnx-cpu; repeatable.")
    ] = None,
    name: Annotated[str, typer.Option(help="Of the pack; the model's if not given.")] = "",
    version: Annotated[str, typer.Option(help="Of the pack.")] = "1.0.0",
    license: Annotated[str, typer.Option(help="SPDX identifier of the model's licence.")] = "",
    language: Annotated[
        list[str] | None, typer.Option(help="What the model was trained for, as en; repeatable.")
    ] = None,
    query_prefix: Annotated[
        str | None, typer.Option(help="Before every query, if the model's files do not say it.")
    ] = None,
    passage_prefix: Annotated[str | None, typer.Option(help="Before every passage.")] = None,
    json: Json = False,
) -> None:
    """Make a pack that turns texts into vectors, from a BERT or XLM-RoBERTa embedding model."""
    from edgekit.encoder_pack import PackOptions, make_embedding_pack

    progress = default_progress()
    options = PackOptions(
        name, version, license, tuple(language or ()), query_prefix, passage_prefix
    )
    source = resolve_encoder(model, progress)
    with atomic_directory(out) as directory:
        manifest = make_embedding_pack(
            model, source, scheme, target or (), options, directory, progress
        )
    _print(manifest, out, json)


@app.command()
def show(pack: Pack, json: Json = False) -> None:
    """What a pack holds and what was measured."""
    _print(read_manifest(pack), pack, json)


@app.command()
def verify(pack: Pack, json: Json = False) -> None:
    """Check every byte of a pack."""
    manifest = verify_pack(pack, default_progress())
    files = [f for v in manifest.variants for f in v.files]
    total = sum(f.size for f in files)
    if json:
        print_json({"pack": pack, "files": len(files), "bytes": total, "intact": True})
    else:
        print(f"{pack}: intact, {len(files)} files, {size(total)}")


@app.command()
def archive(
    source: Annotated[Path, typer.Argument(help="A pack, or with --extract an archive.")],
    out: Annotated[Path, typer.Option("--out", help="The file, or with --extract the directory.")],
    extract: Annotated[bool, typer.Option("--extract", help="Unpack an archive.")] = False,
    json: Json = False,
) -> None:
    """Write a pack into one file, or with --extract read it back, verified."""
    if extract:
        _print(extract_archive(source, out, default_progress()), out, json)
        return
    if not source.is_dir():
        raise BadInputError(f"{source}: not a pack's directory; add --extract to unpack an archive")
    archive_pack(source, out, default_progress())
    if json:
        print_json({"archive": out, "bytes": out.stat().st_size})
    else:
        print(f"{out}: {size(out.stat().st_size)}")


def _print(manifest: Manifest, path: Path, json: bool) -> None:
    if json:
        print_json(manifest)
        return
    student = manifest.student
    experts = f", {student.num_experts} experts" if student.num_experts else ""
    print(f"{manifest.name} {manifest.version} ({manifest.license or 'no licence named'}): {path}")
    print(
        f"{student.architecture}{experts}, {count(student.parameters)} parameters, {student.scheme}"
    )
    if manifest.embedding:
        _print_embedding(manifest, manifest.embedding)
        return
    rows = []
    for variant in manifest.variants:
        total = size(sum(f.size for f in variant.files))
        memory = size(variant.memory_estimate_bytes)
        rows += [_measured(variant.id, total, memory, t) for t in variant.targets]
        for nested in variant.nested:
            name = f"  {nested.num_experts} experts, {count(nested.parameters)}"
            memory = size(nested.memory_estimate_bytes)
            rows += [_measured(name, "shared", memory, t) for t in nested.targets]
    head = ["variant", "size", "memory", "KL, nats/token", "top-1", "tokens/s"]
    console().print(table("", head, rows))
    for gate in manifest.gates:
        state = "passed" if gate.passed else "overridden" if gate.overridden else "failed"
        print(f"gate {gate.name}: {gate.measured:.4g}, limit {gate.limit:.4g}, {state}")


def _measured(name: str, stored: str, memory: str, result: TargetResult) -> tuple[str, ...]:
    """One row of what a pack has."""
    quality, speed = result.quality.get("all"), result.speed
    return (
        f"{name} on {result.target}", stored, memory,
        f"{quality.kl.value:.4f}" if quality else "-",
        f"{quality.top1_agreement.value:.3f}" if quality else "-",
        f"{speed.tokens_per_second:.1f}" if speed else "-",
    )  # fmt: skip


def _print_embedding(manifest: Manifest, embedding: Embedding) -> None:
    """How an embedding pack makes vectors, and how near and fast each target was."""
    languages = ", ".join(embedding.languages) or "languages not named"
    print(
        f"vectors of {embedding.dim}, {embedding.pooling} of up to {embedding.max_tokens} tokens, "
        f"{languages}; prefixes {embedding.query_prefix!r}, {embedding.passage_prefix!r}"
    )
    rows = []
    for variant in manifest.variants:
        total = size(sum(f.size for f in variant.files))
        for result in variant.targets:
            q, s = result.embedding_quality, result.embedding_speed
            rows.append(
                (result.target, total,
                 f"{q.mean_cosine:.5f}" if q else "-", f"{q.min_cosine:.5f}" if q else "-",
                 f"{s.passages_per_second:.1f} of {s.passage_tokens}" if s else "-",
                 f"{s.queries_per_second:.1f} of {s.query_tokens}" if s else "-")
            )  # fmt: skip
    head = ["target", "size", "mean cosine", "min", "passages/s, tokens", "queries/s, tokens"]
    console().print(table("", head, rows))
