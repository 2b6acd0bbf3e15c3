"""The steps of a build: what each reads, what configures it, and the function that runs it.

Imports of torch stay inside the functions, so that a dry run and a finished build need none.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from edgekit.digests import code_digest, json_digest
from edgekit.pack import file_sha256
from edgekit.progress import Progress
from edgekit.recipe import Recipe
from edgekit.recipe_training import WITHOUT_EFFECT
from edgekit.scheme import Scheme

Paths = Mapping[str, Path]  # output directories of earlier steps; "teacher" and "student" too


@dataclass(frozen=True)
class Context:
    """What a step's function is given: where to read, write, keep scratch, and report."""

    inputs: Paths
    out: Path
    scratch: Path
    progress: Progress
    force: bool = False  # go on where memory seems too small


@dataclass(frozen=True)
class Step:
    """One step; ``params`` is JSON and enters the digest, as does the code that ``parts`` name
    (:func:`edgekit.digests.code_digest`)."""

    name: str
    parts: tuple[str, ...]
    inputs: tuple[str, ...]
    params: dict[str, Any]
    run: Callable[[Context], Any]


def plan_steps(recipe: Recipe) -> list[Step]:
    """The steps of a recipe, in order; those that it leaves out are absent."""
    steps = [_data(recipe)]
    student = "student" if recipe.student else "teacher"
    if recipe.shrink:
        steps.append(_shrink(recipe))
        student = "shrink"
    if recipe.dense:
        steps.append(_dense(recipe, student))
        student = "dense"
    if recipe.slice:
        steps.append(_slice(recipe, student))
        student = "slice"
    for step in _distillation(recipe, student):
        steps.append(step)
        student = step.name if step.name != "capture" else student
    steps.append(_quantize(recipe, student))
    steps.append(_compile(recipe))
    steps.append(_evaluate(recipe))
    return steps


def step_digest(step: Step, digests: Mapping[str, str]) -> str:
    """Digest of a step; ``digests`` has those of its inputs."""
    return json_digest(
        {
            "step": step.name,
            "params": step.params,
            "inputs": {name: digests[name] for name in step.inputs},
            "code": code_digest(step.parts),
        }
    )


def _json(section: BaseModel) -> dict[str, Any]:
    return section.model_dump(mode="json")


def _data(recipe: Recipe) -> Step:
    def run(c: Context) -> Any:
        from edgekit.distill.calibration import make_sequences

        return make_sequences(c.inputs["teacher"], recipe.data, c.out, c.progress, c.scratch)

    params = {**_json(recipe.data), "changed": _changed(_text_files(recipe))}
    return Step("data", ("distill",), ("teacher",), params, run)


def _shrink(recipe: Recipe) -> Step:
    section = recipe.shrink
    assert section is not None

    def run(c: Context) -> Any:
        from edgekit.distill.collect import PassOptions
        from edgekit.distill.shrink import shrink

        teacher, data = c.inputs["teacher"], c.inputs["data"]
        passes = PassOptions(force=c.force)
        return shrink(teacher, data, section, c.out, c.progress, c.scratch, passes=passes)

    params = {**_json(section), "keep_map": _keep_map_digest(section.previous)}
    return Step("shrink", ("distill",), ("teacher", "data"), params, run)


def _dense(recipe: Recipe, student: str) -> Step:
    section, tokens = recipe.dense, recipe.data.tokens
    assert section is not None

    def run(c: Context) -> Any:
        from edgekit.distill.densify import DenseOptions
        from edgekit.distill.reshape import make_dense
        from edgekit.sequences import FILE_NAME, read_sequences

        options = DenseOptions.of(section, tokens, c.force)
        text = read_sequences(c.inputs["data"] / FILE_NAME)
        model = c.inputs[student]
        return make_dense(model, text, options, section.warm_up, c.out, c.scratch, c.progress)

    params = {**_json(section), "tokens": tokens}
    return Step("dense", ("distill",), (student, "data"), params, run)


def _slice(recipe: Recipe, student: str) -> Step:
    section = recipe.slice
    assert section is not None

    def run(c: Context) -> Any:
        from edgekit.distill.reshape import slice_model
        from edgekit.distill.slice_plan import WidthOptions
        from edgekit.sequences import FILE_NAME, read_sequences

        width = WidthOptions.of(section)
        text = read_sequences(c.inputs["data"] / FILE_NAME)
        model = c.inputs[student]
        return slice_model(model, text, width, section.layers, c.out, c.scratch, c.progress)

    return Step("slice", ("distill",), (student, "data"), _json(section), run)


def _keep_map_digest(previous: str) -> str:
    """Of the choice that an earlier shrink made; "" where there is none to follow."""
    from edgekit.distill.keep_map import keep_map_file

    file = keep_map_file(Path(previous))
    return file_sha256(file) if previous and file.is_file() else ""


def _distillation(recipe: Recipe, student: str) -> list[Step]:
    """The cache and the stages that ``[distill]`` asks for, each from the student of the last."""
    section = recipe.distill
    if not section or not (section.steps or section.on_policy or section.supervised):
        return []
    steps = [_capture(recipe)]
    if section.steps:
        steps.append(_distill(recipe, student))
        student = "distill"
    if section.on_policy:
        steps.append(_on_policy(recipe, student))
        student = "on-policy"
    if section.supervised:
        steps.append(_supervised(recipe, student))
    return steps


def _capture(recipe: Recipe) -> Step:
    section = recipe.distill
    assert section is not None

    def run(c: Context) -> Any:
        from edgekit.distill.capture import CaptureOptions, capture

        teacher, data = c.inputs["teacher"], c.inputs["data"]
        options = CaptureOptions.of(section, c.force)
        return capture(teacher, data, options, c.out, c.progress, c.scratch)

    names = ["targets", "top_k", "temperature", "seed"]
    if section.targets == "sampled":
        names += ["bytes_per_token", "loss"]
    params = {name: getattr(section, name) for name in names}
    return Step("capture", ("distill",), ("teacher", "data"), params, run)


def _distill(recipe: Recipe, student: str) -> Step:
    section = recipe.distill
    assert section is not None

    def run(c: Context) -> Any:
        from edgekit.distill.train import train

        return train(
            c.inputs[student], c.inputs["capture"], section, c.out, c.progress, c.scratch,
            recipe.quantize, force=c.force,
        )  # fmt: skip

    params, parts = _training(recipe)
    return Step("distill", parts, (student, "capture"), params, run)


def _on_policy(recipe: Recipe, student: str) -> Step:
    section = recipe.distill
    assert section is not None and section.on_policy is not None
    stage = section.on_policy

    def run(c: Context) -> Any:
        from edgekit.distill.on_policy import on_policy
        from edgekit.distill.prompts import read_prompts
        from edgekit.text import ChatTokenizer

        prompts = read_prompts(ChatTokenizer(c.inputs[student]), stage, recipe.data)
        return on_policy(
            c.inputs[student], c.inputs["teacher"], prompts, stage, section, c.out, c.progress,
            c.scratch, recipe.quantize, cache=c.inputs["capture"], force=c.force,
        )  # fmt: skip

    params, parts = _training(recipe)
    files = stage.prompts or _text_files(recipe)
    params |= {"stage": _json(stage), "data": _json(recipe.data), "changed": _changed(files)}
    inputs = tuple(dict.fromkeys((student, "teacher", "capture")))
    return Step("on-policy", parts, inputs, params, run)


def _supervised(recipe: Recipe, student: str) -> Step:
    section = recipe.distill
    assert section is not None and section.supervised is not None
    stage = section.supervised

    def run(c: Context) -> Any:
        from edgekit.distill.supervised import supervised

        return supervised(
            c.inputs[student], c.inputs["capture"], stage, section, recipe.data.sequence_length,
            c.out, c.progress, c.scratch, recipe.quantize, force=c.force,
        )  # fmt: skip

    params, parts = _training(recipe)
    params |= {
        "stage": _json(stage),
        "sequence_length": recipe.data.sequence_length,
        "changed": _changed(stage.files),
    }
    return Step("supervised", parts, (student, "capture"), params, run)


def _training(recipe: Recipe) -> tuple[dict[str, Any], tuple[str, ...]]:
    """What a training depends on beside its inputs and its stage: parameters and code."""
    section = recipe.distill
    assert section is not None
    stages = {"on_policy", "supervised"}
    params = section.model_dump(mode="json", exclude=stages | WITHOUT_EFFECT)
    if not section.quantization_aware:
        return params, ("distill",)
    return {**params, "quantize": _json(recipe.quantize)}, ("distill", "quantize")


def _text_files(recipe: Recipe) -> tuple[str, ...]:
    """Of ``[data]`` and its domains."""
    domains = recipe.data.domains.values()
    return recipe.data.files or tuple(name for domain in domains for name in domain.files)


def _changed(files: tuple[str, ...]) -> dict[str, int]:
    """When each file that is there was changed."""
    return {f: Path(f).stat().st_mtime_ns for f in files if Path(f).is_file()}


def _quantize(recipe: Recipe, student: str) -> Step:
    section = recipe.quantize

    def run(c: Context) -> Any:
        from edgekit.quantize.write import quantize

        scheme = Scheme.parse(section.scheme)
        return quantize(c.inputs[student], scheme, c.out, c.progress, section.method)

    return Step("quantize", ("quantize",), (student,), _json(section), run)


def _compile(recipe: Recipe) -> Step:
    targets = [t.name for t in recipe.targets]
    prove = any(t.prove for t in recipe.targets)

    def run(c: Context) -> Any:
        from edgekit.compilation import Checks, compile_checked

        checks = Checks(prove=prove)
        return compile_checked(c.inputs["quantize"], targets, c.out, c.progress, checks)

    params = {"targets": targets, "prove": prove}
    parts = ("distill", "quantize", "runtimes", "parity")  # the reference runs in the first two
    return Step("compile", parts, ("quantize",), params, run)


def _evaluate(recipe: Recipe) -> Step:
    targets = [t.name for t in recipe.targets]

    def run(c: Context) -> Any:
        from edgekit.checkpoint import Checkpoint
        from edgekit.distill.same_tokenizer import real_tokens
        from edgekit.distill.teacher import teacher_logits
        from edgekit.evaluate import evaluate
        from edgekit.sequences import FILE_NAME, read_sequences

        teacher = c.inputs["teacher"]
        with Checkpoint(teacher) as checkpoint:
            size, outputs = checkpoint.nbytes, checkpoint.architecture.vocab_size
        return evaluate(
            c.inputs["compile"], teacher_logits(teacher), size,
            read_sequences(c.inputs["data"] / FILE_NAME), targets, c.out, c.progress,
            real_tokens(teacher, outputs),
        )  # fmt: skip

    parts = ("distill", "runtimes", "measure")  # the teacher runs in distill
    return Step("evaluate", parts, ("teacher", "data", "compile"), {"targets": targets}, run)


def report_json(report: Any) -> Any:
    """A step's report as JSON values."""
    if isinstance(report, BaseModel):
        return report.model_dump(mode="json")
    return dataclasses.asdict(report)
