"""``edgekit shrink`` and ``edgekit shrink stats``."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from edgekit.atomic import atomic_directory
from edgekit.cli.common import Force, Json, Model, Out, console, count, print_json, table
from edgekit.progress import default_progress
from edgekit.recipe import DataSection, ShrinkSection, checked
from edgekit.sources import resolve_model

Data = Annotated[list[str] | None, typer.Option("--data", help=".txt, .jsonl, .parquet.")]
Tokens = Annotated[int, typer.Option(help="Calibration tokens.")]
HeldOut = Annotated[int, typer.Option(help="Tokens to measure on, for auto and --nested.")]
Length = Annotated[int, typer.Option(help="Tokens per sequence.")]

shrink_app = typer.Typer(add_completion=False)
stats_app = typer.Typer(add_completion=False)


def app(args: Sequence[str], prog_name: str, standalone_mode: bool) -> Any:
    """``stats`` is a verb of its own; anything else is a model."""
    if args and args[0] == "stats":
        return stats_app(args[1:], prog_name=f"{prog_name} stats", standalone_mode=standalone_mode)
    return shrink_app(args, prog_name=prog_name, standalone_mode=standalone_mode)


@shrink_app.command()
def shrink(
    model: Model,
    out: Out,
    keep: Annotated[float, typer.Option(help="Fraction of the experts that stays.")] = 0.5,
    criterion: Annotated[
        str,
        typer.Option(
            help="reap, ean, gated_ean, man, msan, frequency, cp, acp, coverage, random, or auto: "
            "what costs least on held-out text."
        ),
    ] = "reap",
    data: Data = None,
    tokens: Tokens = 8192,
    held_out_tokens: HeldOut = 2048,
    sequence_length: Length = 256,
    statistics: Annotated[
        Path | None, typer.Option(help="Directory of `shrink stats`; nothing is measured again.")
    ] = None,
    nested: Annotated[
        str,
        typer.Option(help="Like 1.0,0.75,0.5: students over one file, instead of --keep."),
    ] = "",
    previous: Annotated[
        str, typer.Option(help="An earlier shrink; its experts stay if they can.")
    ] = "",
    margin: Annotated[float, typer.Option(help="By how much a new expert must be better.")] = 0.05,
    seed: int = 0,
    force: Force = False,
    json: Json = False,
) -> None:
    """One step alone: fewer experts (`edgekit shrink stats MODEL` only measures them)."""
    shares = parse_shares(nested)
    section = checked(
        ShrinkSection, keep=max(shares, default=keep), criterion=criterion, nested=shares,
        previous=previous, margin=margin, seed=seed,
    )  # fmt: skip
    measures = criterion == "auto" or nested  # on held-out text; nothing else reads it
    sampling = _sampling(data, tokens, held_out_tokens if measures else 0, sequence_length, seed)
    from edgekit.distill.calibration import make_sequences
    from edgekit.distill.shrink import shrink as shrink_model
    from edgekit.estimate import require_model

    progress = default_progress()
    teacher = resolve_model(model, progress)
    require_model(teacher, force)
    with atomic_directory(out) as directory, tempfile.TemporaryDirectory() as scratch:
        samples = statistics or Path(scratch)
        if statistics is None:
            make_sequences(teacher, sampling, samples, progress)
        report = shrink_model(
            teacher, samples, section, directory, progress, Path(scratch), statistics
        )
    if json:
        print_json(report)
        return
    if report.automatic:
        rows = [
            [c.name, f"{c.divergence.worst:.4f}", c.divergence.worst_domain,
             c.divergence.all.text(4), "control" if c.control else c.same_as and f"= {c.same_as}"]
            for c in report.automatic.candidates
        ]  # fmt: skip
        head = ["criterion", "KL, worst domain", "which", "KL, all text", ""]
        console().print(table("nats per token on held-out text", head, rows))
    if report.nested:
        rows = [
            [
                f"{p.experts}",
                p.prefix.all.text(4),
                p.separate.all.text(4),
                f"{p.shared_experts:.0%}",
            ]
            for p in report.nested.prefixes
        ]  # fmt: skip
        head = ["experts", "KL as a prefix", "KL chosen alone", "in common"]
        console().print(table("nats per token on held-out text", head, rows))
    for note in report.notes:
        print(f"· {note}")
    print(
        f"{report.experts_before} to {report.experts_after} experts per layer by "
        f"{report.criterion}, {count(report.parameters_before)} to "
        f"{count(report.parameters_after)} parameters: {out}"
    )


@stats_app.command()
def stats(
    model: Model,
    out: Out,
    data: Data = None,
    tokens: Tokens = 8192,
    held_out_tokens: HeldOut = 2048,
    sequence_length: Length = 256,
    seed: int = 0,
    force: Force = False,
    json: Json = False,
) -> None:
    """Measure every expert once; interrupted, the same command continues."""
    sampling = _sampling(data, tokens, held_out_tokens, sequence_length, seed)
    from edgekit.digests import json_digest
    from edgekit.distill.calibration import make_sequences
    from edgekit.distill.keep import super_experts
    from edgekit.distill.shrink import measure_experts
    from edgekit.distill.skew import skew
    from edgekit.estimate import require_model

    progress = default_progress()
    teacher = resolve_model(model, progress)
    require_model(teacher, force)
    out = out.absolute()
    key = json_digest([str(teacher.resolve()), sampling.model_dump(mode="json")])[:12]
    scratch = out.with_name(f".{out.name}.state-{key}")
    with atomic_directory(out) as directory:
        scratch.mkdir(parents=True, exist_ok=True)
        make_sequences(teacher, sampling, directory, progress, scratch)
        found = measure_experts(teacher, directory, directory, progress, scratch)
    shutil.rmtree(scratch, ignore_errors=True)
    uneven, protected = skew(found), super_experts(found)
    if json:
        print_json(
            {
                "info": found.info,
                "tokens": {d: int(found.seen[:, i].sum()) for i, d in enumerate(found.domains)},
                "skew": uneven,
                "super_experts": protected,
                "unreached": found.unreached(),
            }
        )
        return
    rows = [
        [str(layer), f"{share:.1%}", f"{g:.2f}", f"{e:.2f}",
         " ".join(map(str, protected.get(layer, []))),
         str(len(found.unreached().get(layer, [])))]
        for layer, share, g, e in zip(
            found.layers, uneven.top_share, uneven.gini, uneven.entropy, strict=True
        )
    ]  # fmt: skip
    head = ["layer", "busiest quarter", "Gini", "entropy", "super-experts", "unreached"]
    console().print(table("use of the experts", head, rows))
    print(f"· {uneven.sentence}")
    print(f"{int(found.seen.sum()):,} tokens measured: {out}")


def parse_shares(text: str) -> tuple[float, ...]:
    """Shares of "1.0,0.75,0.5"; none of "".

    Raises:
        BadInputError: they are no numbers.
    """
    from edgekit.errors import BadInputError

    try:
        return tuple(float(part) for part in text.split(",")) if text else ()
    except ValueError:
        raise BadInputError(
            f"--nested: {text!r} are no shares; write them like 1.0,0.75,0.5"
        ) from None


def _sampling(
    data: Sequence[str] | None, tokens: int, held_out_tokens: int, sequence_length: int, seed: int
) -> DataSection:
    return checked(
        DataSection, files=tuple(data or ()), tokens=tokens, held_out_tokens=held_out_tokens,
        sequence_length=sequence_length, seed=seed,
    )  # fmt: skip
