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
from edgekit.recipe_shapes import DenseSection
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
    if recipe.shrink:
        kept = experts_to_keep(teacher, recipe.shrink.keep, recipe.teacher.model)
        if recipe.dense:
            _require_kept(recipe.dense, teacher, kept)
    if recipe.student:
        _require_vocabulary(recipe.student.model, recipe.teacher.model, progress)
    student = student_of(recipe, progress)
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
    shaped = recipe.shrink or recipe.dense or recipe.slice
    if shaped or (distill and (distill.steps or distill.supervised)):
        needed["tokens"] = "what shapes or trains the student"
    for key, reader in needed.items():
        if getattr(recipe.data, key) == 0:
            raise BadInputError(f"[data] {key} is 0, but {reader} needs some; raise it")


def _require_kept(dense: DenseSection, teacher: Architecture, kept: int) -> None:
    """``[dense]`` takes no more than what ``[shrink]`` leaves."""
    assert teacher.moe is not None
    neurons = kept * teacher.moe.intermediate_size
    for key, wanted, there in (
        ("experts", dense.experts, kept),
        ("neurons", dense.neurons, neurons),
    ):
        if wanted > there:
            raise BadInputError(
                f"[dense] {key}: {wanted} cannot be taken of the {there} that [shrink] keeps in a "
                "layer; lower it, or raise keep"
            )


def student_of(recipe: Recipe, progress: Progress) -> Architecture:
    """What is trained and packed, but for the experts that ``[shrink]`` and the layers that
    ``[slice]`` leave out.

    Raises:
        BadInputError: it cannot have the shape that ``[dense]`` or ``[slice]`` asks for.
    """
    source = recipe.student.model if recipe.student else recipe.teacher.model
    directory = resolve_config(source, progress)
    config, path = read_config(directory), str(directory / "config.json")
    student = describe(config, path)
    # imports of torch, which other recipes do without
    if recipe.dense:
        from edgekit.distill.densify import DenseOptions, plan_dense

        options = DenseOptions.of(recipe.dense, recipe.data.tokens)
        target = plan_dense(config, student, options, path)[2]
        config, student = target.config, target.architecture
    if recipe.slice:
        from edgekit.distill.slice_depth import DepthOptions, check_layers
        from edgekit.distill.slice_plan import WidthOptions, plan_sizes

        width = WidthOptions.of(recipe.slice)
        if recipe.slice.layers:
            check_layers(config, path, DepthOptions(recipe.slice.layers))
        if width.narrower:
            student = plan_sizes(config, path, width)[1]
    return student


def architecture_of(source: str, progress: Progress) -> Architecture:
    """The architecture of a model, without its weights."""
    directory = resolve_config(source, progress)
    return describe(read_config(directory), str(directory / "config.json"))
