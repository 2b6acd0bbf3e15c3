"""Build: run the steps of a recipe in a run directory, resumably.

Each step's digest covers its parameters, the digests of its inputs and the code it runs. A step
whose ``step.json`` holds that digest is skipped. A step writes into a temporary directory that is
renamed when it is whole, so that a kill at any moment leaves a run that continues.
"""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgekit.atomic import atomic_directory, write_json, write_text
from edgekit.checkpoint import read_json
from edgekit.digests import checkpoint_digest, json_digest, tool_versions
from edgekit.errors import BadInputError, GateFailedError, missing_extra
from edgekit.evaluate import EvaluationReport
from edgekit.gates import check_gates, require_gates
from edgekit.make_pack import make_pack
from edgekit.manifest import MANIFEST, GateResult, Manifest, read_manifest
from edgekit.memory import peak_memory, reset_peak_memory
from edgekit.preflight import preflight
from edgekit.progress import Progress
from edgekit.recipe import Recipe
from edgekit.report import write_report
from edgekit.run_directory import INPUTS, RECIPE, STEP_FILE, RunDirectory, stopwatch
from edgekit.sources import resolve_model
from edgekit.steps import Context, Step, plan_steps, report_json, step_digest

PACK = "pack"
EARLIER = "pack-earlier"  # of a build before the one whose gate failed
MARKER = "pack.json"
Notify = Callable[[str], None]


@dataclass(frozen=True)
class BuildOptions:
    """``start_from`` runs that step and all later ones again; gates are overridden by name;
    ``force`` goes on where memory seems too small."""

    start_from: str = ""
    override_gates: tuple[str, ...] = ()
    notify: Notify = field(default=lambda _: None)
    force: bool = False


@dataclass(frozen=True)
class BuildResult:
    """Where the pack and the report are, and what was measured."""

    run: Path
    pack: Path
    report: Path
    manifest: Manifest
    evaluation: EvaluationReport
    steps: dict[str, dict[str, Any]]  # step.json of every step
    skipped: tuple[str, ...]


def build(
    recipe: Recipe, out: Path, progress: Progress, options: BuildOptions = BuildOptions()
) -> BuildResult:
    """Run ``recipe`` in the directory ``out``, continuing what is there.

    Raises:
        BadInputError: the recipe, an input or the directory cannot be used.
        GateFailedError: a gate does not hold; the run and its report stay, an earlier pack is
            moved to ``pack-earlier``.
        MissingRuntimeError: the ``build`` extra or a runtime is not installed.
        OutOfResourcesError: memory or disk do not suffice.
    """
    steps = plan_steps(recipe)
    _check_start(options.start_from, steps)
    _require_build_extra()
    preflight(recipe, progress, options.override_gates)
    with RunDirectory(out) as run:
        write_text(out / RECIPE, recipe.to_toml())
        run.log("build", recipe=recipe.digest())
        paths = {"teacher": resolve_model(recipe.teacher.model, progress)}
        if recipe.student:
            paths["student"] = resolve_model(recipe.student.model, progress)
        digests = {
            name: checkpoint_digest(path, out / "hashes.json", progress)
            for name, path in paths.items()
        }
        write_json(out / INPUTS, digests)
        records, skipped = _run_steps(run, steps, paths, digests, progress, options)
        evaluation = EvaluationReport.model_validate(records["evaluate"]["report"])
        gates = check_gates(recipe.gates, evaluation, options.override_gates)
        report = write_report(out, recipe, records, evaluation, gates, paths["teacher"])
        run.log("gates", passed=all(g.passed for g in gates))
        try:
            require_gates(gates)
        except GateFailedError:
            _set_aside(out)
            raise
        if options.start_from == PACK:
            (out / MARKER).unlink(missing_ok=True)
        manifest = _pack(run, recipe, paths, digests, records, evaluation, gates, progress)
        run.log("done")
    return BuildResult(out, out / PACK, report, manifest, evaluation, records, tuple(skipped))


def step_directory(out: Path, number: int, name: str) -> Path:
    """Directory of a step, such as ``02-shrink``."""
    return out / f"{number:02d}-{name}"


def _check_start(start_from: str, steps: Sequence[Step]) -> None:
    names = [*(step.name for step in steps), PACK]
    if start_from and start_from not in names:
        raise BadInputError(
            f"--from {start_from}: the recipe has no such step; it has {', '.join(names)}"
        )


def _require_build_extra() -> None:
    for module in ("torch", "transformers"):
        if importlib.util.find_spec(module) is None:
            raise missing_extra(module, "build")


def _run_steps(
    run: RunDirectory,
    steps: Sequence[Step],
    paths: dict[str, Path],
    digests: dict[str, str],
    progress: Progress,
    options: BuildOptions,
) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """Run or skip every step; fills ``paths`` and ``digests`` with the steps' own."""
    records: dict[str, dict[str, Any]] = {}
    skipped: list[str] = []
    again = False
    for number, step in enumerate(steps, 1):
        directory = step_directory(run.path, number, step.name)
        again = again or step.name == options.start_from
        digest = step_digest(step, digests)
        record = None if again else _finished(directory, digest)
        if record is None:
            options.notify(f"{number}/{len(steps)} {step.name}")
            record = _run_step(run, step, directory, paths, digest, progress, options.force)
        else:
            skipped.append(step.name)
            run.log("skip", step=step.name)
        paths[step.name], digests[step.name] = directory, digest
        records[step.name] = record
    run.drop_scratch()
    return records, skipped


def _finished(directory: Path, digest: str) -> dict[str, Any] | None:
    """``step.json`` of a finished step with this digest."""
    if not (directory / STEP_FILE).is_file():
        return None
    record = read_json(directory / STEP_FILE)
    return record if record.get("digest") == digest else None


def _run_step(
    run: RunDirectory,
    step: Step,
    directory: Path,
    paths: dict[str, Path],
    digest: str,
    progress: Progress,
    force: bool,
) -> dict[str, Any]:
    run.log("start", step=step.name, digest=digest)
    scratch = run.scratch(step.name, digest)
    reset_peak_memory()
    with atomic_directory(directory, replace=True) as temporary:
        inputs = {name: paths[name] for name in step.inputs}
        with stopwatch() as seconds:
            report = step.run(Context(inputs, temporary, scratch, progress, force))
        record = {
            "step": step.name,
            "digest": digest,
            "params": step.params,
            "inputs": sorted(step.inputs),
            "versions": tool_versions(),
            "seconds": round(seconds[0], 2),
            "peak_memory_bytes": peak_memory(),
            "report": report_json(report),
        }
        write_json(temporary / STEP_FILE, record)
    run.finish(step.name, digest)
    run.log("end", step=step.name, seconds=record["seconds"])
    return record


def _set_aside(out: Path) -> None:
    """A pack of an earlier build must not look like the result of the one that failed."""
    if (out / PACK).is_dir():
        shutil.rmtree(out / EARLIER, ignore_errors=True)
        (out / PACK).rename(out / EARLIER)


def _pack(
    run: RunDirectory,
    recipe: Recipe,
    paths: dict[str, Path],
    digests: dict[str, str],
    records: dict[str, dict[str, Any]],
    evaluation: EvaluationReport,
    gates: Sequence[GateResult],
    progress: Progress,
) -> Manifest:
    """The pack, made again only when something in it changed."""
    directory = run.path / PACK
    key = json_digest(
        [digests, recipe.digest(), evaluation.model_dump(mode="json")]
        + [g.model_dump() for g in gates]
    )
    marker = run.path / MARKER
    made = read_json(marker).get("digest") if marker.is_file() else None
    if made == key and (directory / MANIFEST).is_file():
        return read_manifest(directory)
    run.log("start", step="pack")
    with atomic_directory(directory, replace=True) as temporary:
        manifest = make_pack(
            recipe, paths["compile"], digests["teacher"], records, evaluation, gates,
            temporary, progress,
        )  # fmt: skip
    write_json(marker, {"digest": key})
    return manifest
