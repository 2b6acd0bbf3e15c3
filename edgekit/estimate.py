"""What a build will need before it starts: time class, peak memory and disk of every step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from edgekit.architecture import Architecture
from edgekit.checkpoint import read_config
from edgekit.describe import describe
from edgekit.memory import require_disk, require_memory
from edgekit.plan import BASE_MEMORY, FLOAT32_BYTES, kept_parameters, weights_bytes
from edgekit.preflight import architecture_of, student_of
from edgekit.progress import Progress
from edgekit.recipe import DistillSection, Recipe
from edgekit.scheme import Scheme
from edgekit.steps import plan_steps
from edgekit.writing import written_bytes

TRAINED_BYTES = 16  # weight, gradient and AdamW's two moments
# of one forward pass, per vocabulary entry: logits, their gradient and softmax at 512 positions
LOGIT_BYTES = 12 * 512
ROLE_PARTS = {"router": "router", "norm": "norms", "bias": "attention", "expert": "experts",
              "embedding": "embedding", "head": "embedding"}  # fmt: skip
WARM_UP_TOKENS = 512  # of a step of a layer's warm-up
TOKENS_TIMES_PARAMETERS_PER_SECOND = 6e10  # multiply-adds of a 2-core CPU in float32, measured


@dataclass(frozen=True)
class StepEstimate:
    """``time`` is a class ("seconds", "minutes", "hours", "days"), on two cores without a GPU."""

    step: str
    time: str
    memory_bytes: int
    disk_bytes: int


def estimate_build(recipe: Recipe, progress: Progress) -> list[StepEstimate]:
    """Estimates of every step, from the models' ``config.json`` alone."""
    teacher = architecture_of(recipe.teacher.model, progress)
    student = student_of(recipe, progress)
    keep = recipe.shrink.keep if recipe.shrink and not recipe.dense else 1.0
    parameters = kept_parameters(student, keep)
    scheme = Scheme.parse(recipe.quantize.scheme)
    packed = weights_bytes(student, scheme, keep)
    tokens = recipe.data.tokens + recipe.data.held_out_tokens
    active = teacher.active_parameters()
    load = teacher.parameters() * FLOAT32_BYTES + BASE_MEMORY
    distill = recipe.distill
    seen = distill.steps * distill.batch_tokens if distill else 0
    cache = _cache_bytes(recipe)
    trained = _training_bytes(student, keep, distill)
    written, tuned = _stage_tokens(distill)
    warm_up = recipe.dense.warm_up * WARM_UP_TOKENS if recipe.dense else 0
    # step -> (multiply-adds, memory, disk)
    table = {
        "data": (tokens * active * 1.5, load, tokens * 8),
        "shrink": (tokens * active * 2.5, load, parameters * 2),
        # of a mixture all experts run once, for what their outputs have in common
        "dense": (tokens * teacher.parameters() + warm_up * parameters * 3, load, parameters * 4),
        "slice": (tokens * active * 8, load, parameters * 4),
        "capture": (tokens * active, load, cache),
        "distill": (seen * student.active_parameters() * 3, trained, parameters * 2),
        "on-policy": (written * (active + 5 * student.active_parameters()),
                      trained + load - BASE_MEMORY + written_bytes(student), parameters * 2),
        "supervised": (tuned * student.active_parameters() * 3, trained, parameters * 2),
        "quantize": (parameters * 400, BASE_MEMORY, packed),
        "compile": (parameters, BASE_MEMORY, packed),
        "evaluate": (recipe.data.held_out_tokens * active * 2, load + 3 * packed, 0),
    }  # fmt: skip
    result = []
    for step in plan_steps(recipe):
        work, memory, disk = table[step.name]
        seconds = work / TOKENS_TIMES_PARAMETERS_PER_SECOND
        result.append(StepEstimate(step.name, time_class(seconds), int(memory), int(disk)))
    result.append(StepEstimate("pack", "seconds", BASE_MEMORY, packed))
    return result


def _stage_tokens(distill: DistillSection | None) -> tuple[int, int]:
    """That the stages after the offline one train on: on-policy, and supervised, where a step has
    the text and the anchor, and the control the text once more."""
    if not distill:
        return 0, 0
    own, tuning = distill.on_policy, distill.supervised
    batches = (3 if tuning.control else 2) if tuning and tuning.anchor else 1
    return (
        own.steps * distill.batch_tokens if own else 0,
        tuning.steps * distill.batch_tokens * batches if tuning else 0,
    )


def _cache_bytes(recipe: Recipe) -> int:
    """Of the teacher's targets: ids of three bytes and halves."""
    distill = recipe.distill
    if not distill:
        return 0
    top_k = distill.top_k * 5 + 2
    trained = distill.bytes_per_token if distill.targets == "sampled" else top_k
    return recipe.data.tokens * trained + recipe.data.held_out_tokens * top_k


def time_class(seconds: float) -> str:
    """A rough word for a duration."""
    for limit, word in ((60, "seconds"), (3600, "minutes"), (86_400, "hours")):
        if seconds < limit:
            return word
    return "days"


def require_resources(estimates: Sequence[StepEstimate], out: Path, force: bool) -> None:
    """Refuse a build that will not fit, before it starts.

    Raises:
        OutOfResourcesError: names the step that needs too much memory, or the disk.
    """
    largest = max(estimates, key=lambda e: e.memory_bytes)
    require_memory(largest.memory_bytes, f"the step {largest.step}", force)
    if not force:
        require_disk(out, sum(e.disk_bytes for e in estimates), "the build")


def _training_bytes(student: Architecture, keep: float, distill: DistillSection | None) -> int:
    """Memory to train a student as ``distill`` says; adapters are small beside what they adapt."""
    if not distill or distill.lora_rank:
        return model_bytes(student, keep)
    per_weight = TRAINED_BYTES if distill.optimizer == "adamw" else 2 * FLOAT32_BYTES
    return model_bytes(student, keep, distill.trainable, per_weight)


def model_bytes(
    architecture: Architecture,
    keep: float = 1.0,
    trainable: Sequence[str] = (),
    trained_bytes: int = TRAINED_BYTES,
) -> int:
    """Memory to run a model with a fraction of the experts kept, and to train ``trainable`` at
    ``trained_bytes`` per weight."""
    total = BASE_MEMORY + LOGIT_BYTES * architecture.vocab_size
    for spec in architecture.tensors():
        feed_forward = "mlp" if spec.projection in ("gate", "up", "down") else "attention"
        part = ROLE_PARTS.get(spec.role, feed_forward)
        trained = "all" in trainable or part in trainable
        share = keep if spec.role == "expert" else 1.0
        total += int(spec.parameters * share) * (trained_bytes if trained else FLOAT32_BYTES)
    return total


def require_model(directory: Path, force: bool, trainable: Sequence[str] = ()) -> None:
    """Refuse to load a checkpoint in float32, or to train parts of it, without the memory.

    Raises:
        OutOfResourcesError: names the checkpoint, unless ``force``.
    """
    architecture = describe(read_config(directory), str(directory / "config.json"))
    what = f"{directory}: {'training' if trainable else 'running'} the model in float32"
    require_memory(model_bytes(architecture, trainable=trainable), what, force)
