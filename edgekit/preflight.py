"""What contradicts itself in a recipe, said before any work: from configs and tokenizers alone."""

from __future__ import annotations

from collections.abc import Sequence

from edgekit.architecture import Architecture
from edgekit.checkpoint import read_config
from edgekit.describe import describe
from edgekit.distill.same_tokenizer import real_tokens
from edgekit.errors import BadInputError
from edgekit.gates import known_gates
from edgekit.layout import check_groups
from edgekit.progress import Progress
from edgekit.recipe import Recipe
from edgekit.rules import check_target, experts_to_keep, require_unpacked
from edgekit.scheme import Scheme
from edgekit.sources import resolve_config


def preflight(recipe: Recipe, progress: Progress, override_gates: Sequence[str] = ()) -> None:
    """Refuse a recipe that could not be finished.

    Raises:
        BadInputError: a target refuses the student, too few experts would stay, the group does not
            divide, the vocabularies differ, or an option excludes another; the sentence names the
            table and key.
    """
    known_gates(recipe.gates, override_gates)
    teacher = architecture_of(recipe.teacher.model, progress)
    student = architecture_of(recipe.student.model, progress) if recipe.student else teacher
    if recipe.shrink:
        experts_to_keep(teacher, recipe.shrink.keep, recipe.teacher.model)
    if recipe.student:
        _require_vocabulary(recipe.student.model, recipe.teacher.model, progress)
    _require_text(recipe)
    distill = recipe.distill
    if distill and distill.quantization_aware:
        require_unpacked(distill.trainable)
    scheme = Scheme.parse(recipe.quantize.scheme)
    check_groups(student, scheme, "[quantize] scheme")
    for target in recipe.targets:
        check_target(student, scheme, target.name)


def _require_vocabulary(student: str, teacher: str, progress: Progress) -> None:
    """Rows that pad a head are no tokens, and models of one family pad differently."""
    ours, theirs = (_real_tokens(source, progress) for source in (student, teacher))
    if ours != theirs:
        raise BadInputError(
            f"[student] model: its vocabulary has {ours} tokens but the teacher's has {theirs}; "
            "choose a student with the teacher's tokenizer"
        )


def _real_tokens(source: str, progress: Progress) -> int:
    return real_tokens(
        resolve_config(source, progress), architecture_of(source, progress).vocab_size
    )


def _require_text(recipe: Recipe) -> None:
    needed = {"held_out_tokens": "evaluation"}
    distill = recipe.distill
    if recipe.shrink or (distill and (distill.steps or distill.supervised)):
        needed["tokens"] = "[shrink] and [distill]"
    for key, reader in needed.items():
        if getattr(recipe.data, key) == 0:
            raise BadInputError(f"[data] {key} is 0, but {reader} needs some; raise it")


def architecture_of(source: str, progress: Progress) -> Architecture:
    """The architecture of a model, without its weights."""
    directory = resolve_config(source, progress)
    return describe(read_config(directory), str(directory / "config.json"))
