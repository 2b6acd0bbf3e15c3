"""``edgekit shrink``; its parts are in :mod:`edgekit.cli.shrink_parts`."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from edgekit.atomic import atomic_directory
from edgekit.checkpoint import read_config
from edgekit.cli.common import Force, Json, Model, Out, console, count, given, print_json, table
from edgekit.cli.shrink_options import Data, HeldOut, Length, Streamed, Tokens, sampling
from edgekit.cli.shrink_parts import PARTS, parse_shares
from edgekit.errors import BadInputError
from edgekit.family_table import FAMILIES
from edgekit.progress import default_progress
from edgekit.recipe import DataSection, ShrinkSection, checked
from edgekit.sources import resolve_model

shrink_app = typer.Typer(add_completion=False)


def app(args: Sequence[str], prog_name: str, standalone_mode: bool) -> Any:
    """The name of a part is a verb of its own; anything else is a model."""
    name = args[0] if args else ""
    if name in PARTS:
        args, prog_name = args[1:], f"{prog_name} {name}"
    return PARTS.get(name, shrink_app)(args, prog_name=prog_name, standalone_mode=standalone_mode)


@shrink_app.command()
def shrink(
    context: typer.Context,
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
    streamed: Streamed = False,
    seed: int = 0,
    force: Force = False,
    json: Json = False,
) -> None:
    """One step alone: fewer experts.

    Verbs of its own: `shrink stats MODEL` measures experts only, `shrink compare` shows what every
    size costs, `shrink dense`, `shrink slice` and `shrink merge` make dense, narrower or shallower,
    and merged models.
    """
    unlisted = _unlisted(Path(model))
    _require_used(context, unlisted, statistics, nested, previous)
    shares = parse_shares("--nested", nested)
    section = checked(
        ShrinkSection, keep=max(shares, default=keep), criterion=criterion, nested=shares,
        previous=previous, margin=margin, seed=seed,
    )  # fmt: skip
    # nothing else reads held-out text
    measures = criterion == "auto" or nested or unlisted
    text = sampling(data, tokens, held_out_tokens if measures else 0, sequence_length, seed)
    from edgekit.distill.calibration import make_sequences
    from edgekit.distill.collect import PassOptions
    from edgekit.distill.shrink import shrink as shrink_model
    from edgekit.estimate import require_model

    if unlisted:
        _shrink_unlisted(Path(model), text, section, out, json)
        return
    progress = default_progress()
    passes = PassOptions(mode="streamed" if streamed else "auto", force=force)
    teacher = resolve_model(model, progress)
    if not data and statistics is None:  # the teacher will write the text
        require_model(teacher, force)
    with atomic_directory(out) as directory, tempfile.TemporaryDirectory() as scratch:
        samples = statistics or Path(scratch)
        if statistics is None:
            make_sequences(teacher, text, samples, progress)
        report = shrink_model(
            teacher, samples, section, directory, progress, Path(scratch), statistics, passes
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


def _unlisted(model: Path) -> str:
    """The family of a local checkpoint that has no row in the table; "" of any other."""
    if not (model / "config.json").is_file():
        return ""
    config = read_config(model)
    family = str(config.get("model_type"))
    return "" if config.get("edgekit_family") or family in FAMILIES else family


def _require_used(
    context: typer.Context, unlisted: str, statistics: Path | None, nested: str, previous: str
) -> None:
    """Refuse options that would do nothing beside the others."""

    def refuse(reason: str, *names: str) -> None:
        for option in given(context, *names):
            raise BadInputError(f"{option}: {reason}; leave it out")

    if unlisted:
        reason = f"a {unlisted} is no family of the table, and is measured in memory"
        refuse(reason, "statistics", "streamed")
    if statistics:
        reason = "the text of --statistics is used"
        refuse(reason, "data", "tokens", "held_out_tokens", "sequence_length")
    if nested:
        refuse("--nested says it", "keep")
    if not previous:
        refuse("there is no --previous", "margin")


def _shrink_unlisted(
    teacher: Path, sampling: DataSection, section: ShrinkSection, out: Path, json: bool
) -> None:
    """A family without a row: by its structure, on the user's own text."""
    from edgekit.distill.documents import read_documents
    from edgekit.distill.keep_map import read_keep_map
    from edgekit.distill.structural import shrink_structurally
    from edgekit.text import ChatTokenizer

    name = read_config(teacher).get("model_type")
    previous = read_keep_map(Path(section.previous)) if section.previous else None
    if not sampling.files or section.criterion == "auto" or section.nested:
        raise BadInputError(
            f"{teacher}: {name} is no family of the table (edgekit inspect --families); it can be "
            "pruned by its structure, with --data and any criterion but auto, and not nested"
        )
    text = read_documents(ChatTokenizer(teacher), sampling)
    with atomic_directory(out) as directory:
        report = shrink_structurally(
            teacher, text, section.keep, directory, default_progress(), section.criterion,
            section.seed, previous, section.margin,
        )  # fmt: skip
    if json:
        print_json(report)
        return
    for note in report.notes:
        print(f"· {note}")
    print(
        f"{report.experts_before} to {report.experts_after} experts per layer of a {name}, found "
        f"by their structure; run it with transformers: {out}"
    )
