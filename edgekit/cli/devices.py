"""``edgekit devices``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgekit.cli.common import Json, console, print_json, table
from edgekit.manifest import read_manifest
from edgekit.memory import available_memory
from edgekit.pack import variant_for
from edgekit.pack_sizes import choose_size
from edgekit.runtimes.devices import choose, list_devices

app = typer.Typer(add_completion=False)


@app.command()
def command(
    explain: Annotated[Path | None, typer.Option(help="A pack: say what would run it.")] = None,
    json: Json = False,
) -> None:
    """What this machine has, what would be chosen for a pack, and why."""
    devices = list_devices()
    chosen, reasons, experts = "", list[str](), 0
    if explain:
        manifest = read_manifest(explain)
        chosen, reasons = choose([t.target for v in manifest.variants for t in v.targets])
        if chosen:
            variant = variant_for(explain, manifest, chosen)
            size = choose_size(manifest, variant, available_memory())
            experts = size.num_experts
            reasons += [size.reason] if size.reason else []
    if json:
        print_json({"devices": devices, "chosen": chosen, "experts": experts, "reasons": reasons})
        return
    rows = [(d.target, "yes" if d.available else "no", d.detail) for d in devices]
    console().print(table("", ["target", "here", "device"], rows))
    for reason in reasons:
        print(reason)
