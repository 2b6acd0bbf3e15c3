"""``edgekit bench``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from edgekit.cli.common import Json, console, print_json, size, table
from edgekit.errors import MissingRuntimeError
from edgekit.manifest import Manifest, Speed, read_manifest, require_kind
from edgekit.memory import available_memory
from edgekit.pack import VARIANTS, variant_for
from edgekit.pack_sizes import choose_size
from edgekit.progress import default_progress
from edgekit.runtimes.devices import list_devices
from edgekit.runtimes.speed import measure_speed

app = typer.Typer(add_completion=False)


@app.command()
def command(
    pack: Annotated[Path, typer.Argument(help="A pack.")],
    against: Annotated[list[Path] | None, typer.Option(help="Other packs, same run.")] = None,
    json: Json = False,
) -> None:
    """Measure decode speed, first token and memory of packs on every target present here.

    Of a pack with nested sizes it is the largest that fits into memory.
    """
    here = {d.target for d in list_devices() if d.available}
    packs = [(path, read_manifest(path)) for path in [pack, *(against or [])]]
    for path, manifest in packs:
        require_kind(manifest, path, "chat")
    jobs = [
        (path, target.target, _directory(path, manifest, target.target))
        for path, manifest in packs
        for variant in manifest.variants
        for target in variant.targets
        if target.target in here
    ]
    if not jobs:
        raise MissingRuntimeError(f"{pack}: none of its targets is on this machine; see devices")
    results: list[tuple[Path, str, Speed]] = []
    with default_progress().task("bench", len(jobs)) as task:
        for path, target, directory in jobs:
            results.append((path, target, measure_speed(directory, target)))
            task.advance()
    if json:
        print_json([{"pack": p, "target": t, **s.model_dump()} for p, t, s in results])
        return
    base = results[0][2].tokens_per_second
    rows = [
        (f"{p} {t}", f"{s.tokens_per_second:.1f}", f"{s.tokens_per_second / base:.2f}",
         f"{s.time_to_first_token_ms:.0f}", size(s.peak_memory_bytes))
        for p, t, s in results
    ]  # fmt: skip
    head = ["pack, target", "tokens/s", "ratio", "first token ms", "memory"]
    console().print(table("", head, rows))


def _directory(pack: Path, manifest: Manifest, target: str) -> Path:
    """Of the size that a chat on this machine would load."""
    variant = variant_for(pack, manifest, target)
    size = choose_size(manifest, variant, available_memory())
    if size.reason:
        print(f"{pack} {target}: {size.reason}", file=sys.stderr)
    return size.inside(pack / VARIANTS / variant.id)
