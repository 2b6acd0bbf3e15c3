"""The other verbs of ``edgekit shrink``: compare, dense, slice and merge."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast, get_args

import typer

from edgekit.atomic import PARTIAL, atomic_directory
from edgekit.cli.common import (
    Force,
    Json,
    Model,
    Out,
    console,
    count,
    given,
    print_json,
    table,
)
from edgekit.cli.shrink_options import Data, HeldOut, Length, Tokens, sampling
from edgekit.cli.shrink_stats import stats_app
from edgekit.progress import Progress, default_progress
from edgekit.recipe import DataSection
from edgekit.sources import resolve_model

if TYPE_CHECKING:
    from edgekit.sequences import TokenSequence

compare_app = typer.Typer(add_completion=False)
dense_app = typer.Typer(add_completion=False)
slice_app = typer.Typer(add_completion=False)
merge_app = typer.Typer(add_completion=False)
PARTS: dict[str, Any] = {
    "stats": stats_app, "compare": compare_app, "dense": dense_app, "slice": slice_app,
    "merge": merge_app,
}  # fmt: skip


def parse_shares(option: str, text: str) -> tuple[float, ...]:
    """Shares of "1.0,0.75,0.5"; none of "".

    Raises:
        BadInputError: they are no numbers above 0 and up to 1.
    """
    from edgekit.errors import BadInputError

    with suppress(ValueError):
        shares = tuple(float(part) for part in text.split(",")) if text else ()
        if all(0 < share <= 1 for share in shares):
            return shares
    raise BadInputError(
        f"{option}: {text!r} are no shares; write numbers above 0 and up to 1, like 1.0,0.75,0.5"
    )


@contextmanager
def _text(
    teacher: Path,
    section: DataSection,
    progress: Progress,
    out: Path,
    statistics: Path | None = None,
) -> Iterator[tuple[list[TokenSequence], Path]]:
    """Sequences for one command, those of ``statistics`` if there are any, and a directory beside
    ``out`` that lives as long."""
    from edgekit.distill.calibration import make_sequences
    from edgekit.sequences import FILE_NAME, read_sequences

    out = out.absolute()
    ending = f".{os.getpid()}{PARTIAL}"  # by which a killed one is found and removed
    with tempfile.TemporaryDirectory(ending, f".{out.name}.", out.parent) as scratch:
        if statistics is None:
            make_sequences(teacher, section, Path(scratch), progress)
        yield read_sequences((statistics or Path(scratch)) / FILE_NAME), Path(scratch)


@compare_app.command()
def compare(
    model: Model,
    statistics: Annotated[Path, typer.Option(help="Directory of `shrink stats`.")],
    out: Out,
    keeps: Annotated[str, typer.Option(help="Shares of the experts to try.")] = "0.75,0.5",
    seed: int = 0,
    json: Json = False,
) -> None:
    """What every criterion costs at every size: a page with pictures and a recommendation."""
    from edgekit.distill.comparison import compare_sizes, points
    from edgekit.shrink_report import write_comparison

    shares = parse_shares("--keeps", keeps)
    progress = default_progress()
    teacher = resolve_model(model, progress)
    with atomic_directory(out) as directory:
        found = compare_sizes(teacher, statistics, shares, progress, seed)
        page = write_comparison(directory, found.model_dump(mode="json"), points(found))
    if json:
        print_json(found)
        return
    rows = []
    for size in found.sizes:
        best = next(c for c in size.table.candidates if c.name == size.table.chosen)
        rows.append(
            [str(size.experts), f"{size.share:.0%}", best.name, f"{best.divergence.worst:.4f}",
             best.divergence.worst_domain, best.divergence.all.text(4)]
        )  # fmt: skip
    head = ["experts", "parameters", "best by", "KL, worst domain", "which", "KL, all text"]
    console().print(table("nats per token on held-out text", head, rows))
    print(f"· {found.skew}")
    print(f"recommended: {found.recommendation}")
    print(out / page.name)


@dense_app.command()
def dense(
    model: Model,
    out: Out,
    choice: Annotated[
        str, typer.Option(help="do_acp, acp, cp, frequency, random: whole experts; or neurons.")
    ] = "do_acp",
    experts: Annotated[int, typer.Option(min=0, help="Per layer; 0: as many as a token uses.")] = 0,
    neurons: Annotated[int, typer.Option(min=0, help="Per layer, with --choice neurons.")] = 0,
    scaling: Annotated[str, typer.Option(help="uniform, marginal, fitted or auto.")] = "auto",
    family: Annotated[str, typer.Option(help="The dense family, where there are several.")] = "",
    warm_up: Annotated[
        int, typer.Option(min=0, help="Steps in which every layer learns what its mixture said.")
    ] = 0,
    multiple_of: Annotated[int, typer.Option(min=1, help="Of the feed-forward's width.")] = 128,
    data: Data = None,
    tokens: Tokens = 8192,
    held_out_tokens: HeldOut = 2048,
    sequence_length: Length = 256,
    seed: int = 0,
    force: Force = False,
    json: Json = False,
) -> None:
    """A dense model of the best experts or neurons, which an NPU runs too."""
    section = sampling(data, tokens, held_out_tokens, sequence_length, seed)
    from edgekit.distill.densify import DenseOptions
    from edgekit.distill.reshape import make_dense
    from edgekit.estimate import require_model

    options = DenseOptions(
        choice, experts, neurons, scaling, family, multiple_of, tokens, seed, force
    )  # fmt: skip
    progress = default_progress()
    teacher = resolve_model(model, progress)
    if not data:  # the teacher will write the text
        require_model(teacher, force)
    with (
        atomic_directory(out) as directory,
        _text(teacher, section, progress, out) as (text, scratch),
    ):
        found = make_dense(teacher, text, options, warm_up, directory, scratch, progress)
    report = found.made
    if json:
        print_json(report)
        return
    rows = [[kind, d.all.text(4)] for kind, d in report.divergence.items()]
    console().print(table("nats per token before any training", ["constants", "KL"], rows))
    for note in report.notes:
        print(f"· {note}")
    if found.warmed:
        print(f"· {found.warmed.sentence}")
    print(
        f"{report.source_family} to {report.family} of width {report.width}, "
        f"{count(report.parameters_before)} to {count(report.parameters_after)} parameters, "
        f"constants {report.scaling}: {out}"
    )


@slice_app.command(name="slice")
def slice_model(
    model: Model,
    out: Out,
    feed_forward: Annotated[float, typer.Option(help="Share of the neurons that stays.")] = 1.0,
    hidden: Annotated[float, typer.Option(help="Share of the hidden channels that stays.")] = 1.0,
    layers: Annotated[int, typer.Option(min=0, help="Layers to leave out, as one block.")] = 0,
    multiple_of: Annotated[int, typer.Option(min=1, help="Of every width.")] = 128,
    data: Data = None,
    tokens: Tokens = 8192,
    held_out_tokens: HeldOut = 2048,
    sequence_length: Length = 256,
    seed: int = 0,
    force: Force = False,
    json: Json = False,
) -> None:
    """A narrower or shallower model, dense or sparse."""
    section = sampling(data, tokens, held_out_tokens, sequence_length, seed)
    from edgekit.distill import reshape
    from edgekit.distill.slice_plan import WidthOptions
    from edgekit.errors import BadInputError
    from edgekit.estimate import require_model

    width = WidthOptions(feed_forward, hidden, multiple_of)
    if not (width.narrower or layers):
        raise BadInputError("nothing to slice; give --feed-forward, --hidden or --layers")
    progress = default_progress()
    teacher = resolve_model(model, progress)
    reshape.require_slices(teacher, width, layers)
    require_model(teacher, force)
    with (
        atomic_directory(out) as directory,
        _text(teacher, section, progress, out) as (text, scratch),
    ):
        found = reshape.slice_model(teacher, text, width, layers, directory, scratch, progress)
    reports = {n: r for n, r in (("depth", found.depth), ("width", found.width)) if r}
    if json:
        print_json(reports)
        return
    for report in reports.values():
        print(
            f"KL to the model given {report.divergence.all.text(4)} nats per token, "
            f"{count(report.parameters_before)} to {count(report.parameters_after)} parameters"
        )
    print(f"heal it with edgekit distill train: {out}")


@merge_app.command()
def merge(
    context: typer.Context,
    model: Model,
    out: Out,
    keep: Annotated[float, typer.Option(help="Experts after, as a share.")] = 0.5,
    method: Annotated[str, typer.Option(help="ream, hc_smoe or m_smoe.")] = "ream",
    data: Data = None,
    tokens: Tokens = 8192,
    sequence_length: Length = 256,
    statistics: Annotated[
        Path | None, typer.Option(help="Directory of `shrink stats`, whose text is used.")
    ] = None,
    seed: int = 0,
    force: Force = False,
    json: Json = False,
) -> None:
    """Fewer experts by averaging similar ones (try leaving experts out first).

    Super-experts stay as they are.
    """
    section = sampling(data, tokens, 0, sequence_length, seed)
    from edgekit.distill.collect import PassOptions
    from edgekit.distill.keep import super_experts
    from edgekit.distill.merge import merge as merge_experts
    from edgekit.distill.merge import require_options
    from edgekit.distill.merge_groups import Method
    from edgekit.distill.merge_pass import MergeOptions
    from edgekit.distill.shrink import statistics_on
    from edgekit.errors import BadInputError
    from edgekit.estimate import require_model

    if method not in get_args(Method):
        raise BadInputError(f"--method {method}: choose one of {', '.join(get_args(Method))}")
    for option in given(context, "data", "tokens", "sequence_length") if statistics else ():
        raise BadInputError(f"{option}: the text of --statistics is used; leave it out")
    options = MergeOptions(method=cast(Method, method), keep=keep, seed=seed, force=force)
    progress = default_progress()
    teacher = resolve_model(model, progress)
    require_options(teacher, options)
    if not data and statistics is None:  # the teacher will write the text
        require_model(teacher, force)
    with (
        atomic_directory(out) as directory,
        _text(teacher, section, progress, out, statistics) as (text, scratch),
    ):
        passes = PassOptions(force=force)
        found = statistics_on(teacher, text, scratch, statistics, passes, progress)
        options = replace(options, protected=super_experts(found))
        report = merge_experts(teacher, text, options, directory, scratch, progress)
    if json:
        print_json(report)
        return
    for layer, experts in report.protected.items():
        print(f"· layer {layer}: super-expert {', '.join(map(str, experts))} stayed as it is")
    print(
        f"{report.experts_before} to {report.experts_after} experts per layer by {report.method}, "
        f"{count(report.parameters_before)} to {count(report.parameters_after)} parameters: {out}"
    )
