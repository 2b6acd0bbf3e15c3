"""``edgekit distill capture --server``: a cache of a teacher that is served elsewhere."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from edgekit.atomic import atomic_directory, require_absent
from edgekit.errors import BadInputError
from edgekit.progress import Progress
from edgekit.recipe import DataSection
from edgekit.sources import resolve_config

if TYPE_CHECKING:
    from edgekit.distill.capture import CaptureReport
    from edgekit.distill.served_http import Server


def capture_from_server(
    model: str,
    out: Path,
    text: DataSection | Path,
    server: Server,
    top_k: int,
    shards: tuple[Path, ...],
    progress: Progress,
) -> CaptureReport:
    """Make the text, or take it from a directory, and write the cache ``out``."""
    from edgekit.digests import json_digest
    from edgekit.distill.calibration import make_sequences
    from edgekit.distill.capture_served import capture_served
    from edgekit.distill.collect import Share

    if not server.model:
        raise BadInputError("--server needs --served-model; give the name that the server lists")
    if Share.of_process().workers > 1:
        raise BadInputError(
            "--server: one process asks for all, --concurrency sequences at once; start it without "
            "accelerate launch or torchrun"
        )
    if isinstance(text, DataSection) and not text.files:
        raise BadInputError(
            "edgekit's own prompts are continued by weights that are here; with --server give text "
            "with --data, or the sequences of another cache with --sequences"
        )
    require_absent(out)
    teacher, out = resolve_config(model, progress), out.absolute()
    named = text if isinstance(text, Path) else text.model_dump(mode="json")
    key = json_digest([str(teacher.resolve()), str(named), server.address, server.model, top_k])
    work = out.with_name(f".{out.name}.capture-{key[:12]}")
    work.mkdir(parents=True, exist_ok=True)
    source = text if isinstance(text, Path) else work / "text"
    if isinstance(text, DataSection):
        source.mkdir(exist_ok=True)
        make_sequences(teacher, text, source, progress, source)
    with atomic_directory(out) as directory:
        report = capture_served(teacher, source, server, top_k, directory, progress, work, shards)
    shutil.rmtree(work, ignore_errors=True)
    return report
