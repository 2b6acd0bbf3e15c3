"""``edgekit demo``: the whole road on a small real model.

SmolLM2-135M-Instruct is fetched, split into a small MoE that stands in for a cloud model, and the
recipe ``examples/demo.toml`` is built from it like any other.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from edgekit.atomic import atomic_directory, write_json
from edgekit.checkpoint import read_json
from edgekit.digests import code_digest, json_digest
from edgekit.pipeline import BuildOptions, BuildResult, build
from edgekit.progress import Progress
from edgekit.recipe import DataSection, Recipe, load_recipe
from edgekit.sources import demo_model

MODEL = "SmolLM2-135M-Instruct"
TEACHER = "teacher"
QUESTION = "What is the capital of France?"
SAMPLES = DataSection(tokens=12_288, held_out_tokens=2048, sequence_length=128, seed=7)
NEEDED_BYTES = 5_000_000_000


@dataclass(frozen=True)
class DemoResult:
    """The build, the stand-in's ``standin.json``, and the seconds of the whole road."""

    build: BuildResult
    standin: dict[str, Any]
    source: str
    seconds: float


def demo_recipe(out: Path) -> Recipe:
    """``examples/demo.toml`` with the teacher that the demo makes in ``out``."""
    with resources.as_file(resources.files("edgekit.examples") / "demo.toml") as path:
        recipe = load_recipe(path)
    teacher = recipe.teacher.model_copy(update={"model": str(out / TEACHER)})
    return recipe.model_copy(update={"teacher": teacher})


def demo(
    out: Path,
    progress: Progress,
    notify: Callable[[str], None] = lambda _: None,
    force: bool = False,
) -> DemoResult:
    """Run the demo in ``out``, continuing what is there.

    Raises:
        EdgekitError: see :func:`edgekit.pipeline.build`; also when the model cannot be fetched.
    """
    start = time.perf_counter()
    digest = json_digest([code_digest(["distill"]), SAMPLES.model_dump(mode="json")])
    marker = out / TEACHER / "made.json"
    if marker.is_file() and read_json(marker).get("digest") == digest:
        source = str(read_json(marker)["source"])
    else:
        source = _make_teacher(out, digest, progress, notify, force)
    result = build(
        demo_recipe(out), out / "run", progress, BuildOptions(notify=notify, force=force)
    )
    standin = read_json(out / TEACHER / "standin.json")
    return DemoResult(result, standin, source, time.perf_counter() - start)


def _make_teacher(
    out: Path, digest: str, progress: Progress, notify: Callable[[str], None], force: bool
) -> str:
    from edgekit.distill.calibration import make_sequences
    from edgekit.distill.standin import make_standin
    from edgekit.memory import require_disk, require_memory
    from edgekit.sequences import FILE_NAME, read_sequences

    require_memory(NEEDED_BYTES, "the demo", force)
    require_disk(out, 4_000_000_000, "the demo")
    notify(f"fetch {MODEL}")
    dense, source = demo_model(progress)
    notify("make a stand-in for a cloud MoE from it")
    samples = out / f".samples-{digest[:12]}"
    if not (samples / FILE_NAME).is_file():
        with atomic_directory(samples, replace=True) as temporary:
            make_sequences(dense, SAMPLES, temporary, progress)
    with atomic_directory(out / TEACHER, replace=True) as temporary:
        sequences = read_sequences(samples / FILE_NAME)
        make_standin(dense, sequences, temporary, progress, name=MODEL)
        write_json(temporary / "made.json", {"digest": digest, "source": source})
    return source
