"""``edgekit shrink stats``: what every expert does, measured once, by one process or several."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Annotated, Literal

import typer

from edgekit.atomic import link_or_copy
from edgekit.cli.common import (
    Force,
    Json,
    Model,
    Out,
    console,
    print_json,
    table,
    unless_written,
    write_once,
    written_already,
)
from edgekit.cli.shrink_options import Data, HeldOut, Length, Streamed, Tokens, sampling
from edgekit.progress import default_progress
from edgekit.sources import resolve_model

stats_app = typer.Typer(add_completion=False)


@stats_app.command()
def stats(
    model: Model,
    out: Out,
    data: Data = None,
    tokens: Tokens = 8192,
    held_out_tokens: HeldOut = 2048,
    sequence_length: Length = 256,
    streamed: Streamed = False,
    device: Annotated[str, typer.Option(help="Of torch.")] = "cpu",
    seed: int = 0,
    force: Force = False,
    json: Json = False,
) -> None:
    """Measure every expert once; interrupted, the same command continues.

    Under `accelerate launch` or `torchrun` each process takes a share.
    """
    section = sampling(data, tokens, held_out_tokens, sequence_length, seed)
    from edgekit.digests import json_digest
    from edgekit.distill.calibration import make_sequences
    from edgekit.distill.collect import PassOptions, Share, collect, own_device
    from edgekit.distill.keep import super_experts
    from edgekit.distill.shrink import STATISTICS
    from edgekit.distill.skew import skew
    from edgekit.sequences import FILE_NAME, read_sequences

    progress = default_progress()
    share = Share.of_process()
    if written_already(out, share.workers):
        return
    teacher = resolve_model(model, progress)
    out = out.absolute()
    key = json_digest([str(teacher.resolve()), section.model_dump(mode="json")])[:12]
    scratch = out.with_name(f".{out.name}.state-{key}")
    mode: Literal["auto", "streamed"] = "streamed" if streamed else "auto"
    options = PassOptions(device=own_device(device), mode=mode, force=force)
    text = scratch / f"text-{share.rank}"
    text.mkdir(parents=True, exist_ok=True)
    make_sequences(teacher, section, text, progress, text)
    measured = read_sequences(text / FILE_NAME)
    found = unless_written(
        out,
        share.workers,
        lambda: collect(teacher, measured, scratch, progress, share, options),
    )
    if found is None:
        print(f"{out}: written by another process")
        return
    left = found.info.total_chunks - len(found.info.chunks)
    if left:
        print(f"{left} chunks are left to other processes, the last of which writes {out}")
        return

    def write(directory: Path) -> bool:
        link_or_copy(text / FILE_NAME, directory / FILE_NAME)
        found.save(directory / STATISTICS)
        return True

    written = write_once(out, share.workers, write)
    shutil.rmtree(scratch, ignore_errors=True)  # all processes are through with it
    if not written:
        print(f"{out}: written by another process")
        return
    uneven, protected, unreached = skew(found), super_experts(found), found.unreached()
    seen = {domain: int(found.seen[:, i].sum()) for i, domain in enumerate(found.domains)}
    if json:
        values = {
            "info": found.info, "tokens": seen, "skew": uneven, "super_experts": protected,
            "unreached": unreached, "router_entropy": found.router_entropy.tolist(),
            "block_influence": found.block_influence.tolist(),
        }  # fmt: skip
        print_json(values)
        return
    figures = zip(found.layers, uneven.top_share, uneven.gini, uneven.entropy,
                  found.router_entropy, strict=True)  # fmt: skip
    rows = [
        [str(layer), f"{share:.1%}", f"{gini:.2f}", f"{entropy:.2f}", f"{undecided:.2f}",
         " ".join(map(str, protected.get(layer, []))), str(len(unreached.get(layer, [])))]
        for layer, share, gini, entropy, undecided in figures
    ]  # fmt: skip
    head = ["layer", "busiest quarter", "Gini", "entropy of use", "of a token's shares",
            "super-experts", "unreached"]  # fmt: skip
    console().print(table("use of the experts", head, rows))
    influence = found.block_influence
    least = int(influence.argmin())
    print(f"· {uneven.sentence}")
    print(f"· layer {least} changes what it reads least: block influence {influence[least]:.3f}")
    print(f"{sum(seen.values()):,} tokens measured: {out}")
