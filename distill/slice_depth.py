"""A shallower model: one block of neighbouring layers is left out.

How little a block turns the hidden states (angular distance, arXiv 2403.17887) and how little each
of its layers does (Block Influence, arXiv 2403.03853) say which blocks to try. Each of these is
passed over in the opened model, and the one with the smallest KL to the whole model on held-out
text is chosen: what such scores say of a block is not what it costs (Minitron, arXiv 2408.11796).
No checkpoint is written before that. The one that is written is opened again and must say what the
whole one says with the block passed over; then it is measured.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from edgekit.architecture import TensorSpec
from edgekit.atomic import write_json
from edgekit.checkpoint import Checkpoint, copy_tokenizer, read_config, write_checkpoint
from edgekit.describe import describe, family_of
from edgekit.distill.divergence import Divergence, Targets, held_out_sequences, measure, remember
from edgekit.distill.open_model import OpenModel, open_model
from edgekit.distill.proof import proof_logits, require_finite_divergence, require_same
from edgekit.distill.prune import round_as_written
from edgekit.distill.slice_config import Config, check_with_transformers
from edgekit.distill.slice_importance import Importance, measure_importance
from edgekit.distill.slice_layers import graph_layers, without_layers
from edgekit.distill.slice_plan import REPORT
from edgekit.errors import BadInputError
from edgekit.progress import Progress
from edgekit.sequences import TokenSequence


@dataclass(frozen=True)
class DepthOptions:
    """``layers`` are left out; ``candidates`` blocks are measured."""

    layers: int
    candidates: int = 8


class Block(BaseModel):
    """A block of layers, ``first`` to ``last``, and what leaving it out would do.

    ``angle`` is the mean angle over pi between what enters and what leaves it, ``influence`` the
    sum of 1 - cos over its layers. ``divergence`` is there if it was measured; ``refused`` says why
    it cannot be left out.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    first: int
    last: int
    angle: float
    influence: float
    divergence: Divergence | None = None
    refused: str = ""


class DepthReport(BaseModel):
    """The block that was left out and the others that were tried, cheapest first.

    ``divergence`` is the KL of the written model to the whole one on held-out text; ``influence``
    is of every layer of the whole model.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    removed: list[int]
    layers_before: int
    layers_after: int
    calibration_tokens: int
    parameters_before: int
    parameters_after: int
    influence: list[float]
    blocks: list[Block]
    divergence: Divergence


def slice_depth(
    model: Path,
    sequences: Sequence[TokenSequence],
    options: DepthOptions,
    out: Path,
    progress: Progress,
) -> DepthReport:
    """Write ``model`` without ``options.layers`` layers into the existing, empty ``out``.

    Layers are compared on the sequences that are not held out, blocks measured on those that are.

    Raises:
        BadInputError: fewer than one layer would be left out or stay, no config of the family says
            what would stay, there is no text, or the model gives no numbers.
        EdgekitError: the written model is not the whole one without these layers.
    """
    require_layers(model, options)
    whole = _ask_whole(model, sequences, options, progress)
    gc.collect()  # cycles keep its weights
    with Checkpoint(model) as checkpoint:
        config = without_layers(checkpoint.config, whole.removed, str(model / "config.json"))
        write_shallower(checkpoint, config, whole.removed, out, progress)
    copy_tokenizer(model, out)
    with open_model(out) as opened:
        said = proof_logits(opened, sequences)
        without = f"the whole one without layers {whole.removed.start} to {whole.removed.stop - 1}"
        require_same(said, whole.expected, out, model, without)
        divergence = measure(opened.model, whole.targets, progress, "what was written").divergence()
    require_finite_divergence(divergence, model)
    influence = np.diagonal(whole.importance.influence, 1)
    report = DepthReport(
        removed=list(whole.removed),
        layers_before=len(influence),
        layers_after=len(influence) - len(whole.removed),
        calibration_tokens=whole.importance.tokens,
        parameters_before=whole.parameters,
        parameters_after=describe(config).parameters(),
        influence=influence.tolist(),
        blocks=whole.blocks,
        divergence=divergence,
    )
    write_json(out / REPORT, report.model_dump(mode="json"))
    return report


def require_layers(model: Path, options: DepthOptions) -> None:
    """Refuse a number of layers that ``model`` cannot do without.

    Raises:
        BadInputError: says which numbers it can.
    """
    check_layers(read_config(model), str(model / "config.json"), options)


def check_layers(config: Mapping[str, Any], source: str, options: DepthOptions) -> None:
    """The same of a config; ``source`` names it."""
    parts = family_of(config, source).names.parts
    count = len(describe(config, source).layers) // parts
    if not 0 < options.layers < count:
        raise BadInputError(
            f"{source}: {options.layers} of {count} layers cannot be left out; choose a number "
            f"from 1 to {count - 1}"
        )
    if options.candidates < 1:
        raise BadInputError(f"candidates is {options.candidates}, expected at least 1")


@dataclass(frozen=True)
class _Whole:
    """What the whole model says of itself, and with the layers ``removed`` passed over
    (``expected``)."""

    parameters: int
    targets: Targets
    importance: Importance
    blocks: list[Block]
    removed: range
    expected: Tensor


def _ask_whole(
    model: Path, sequences: Sequence[TokenSequence], options: DepthOptions, progress: Progress
) -> _Whole:
    """Run the whole model, which is not in memory afterwards."""
    held_out = held_out_sequences(sequences)
    with open_model(model) as opened:
        text = [s for s in sequences if not s.held_out]
        importance = measure_importance(opened, text, progress)  # names what is not finite
        targets = remember(opened.model, held_out, progress)
        blocks = choose_block(opened, importance, options, targets, progress)
        removed = range(blocks[0].first, blocks[0].last + 1)
        if opened.checkpoint.source.method != "none":
            with torch.no_grad():
                round_as_written(opened)
        with passed_over(opened, removed):
            expected = proof_logits(opened, sequences)
        parameters = opened.architecture.parameters()
        return _Whole(parameters, targets, importance, blocks, removed, expected)


def choose_block(
    opened: OpenModel,
    importance: Importance,
    options: DepthOptions,
    targets: Targets,
    progress: Progress,
) -> list[Block]:
    """The blocks that were tried, by their KL; those that no config can say come last.

    Raises:
        BadInputError: there is none that a config can say.
    """
    measured: list[Block] = []
    refused: list[Block] = []
    source = str(opened.path / "config.json")
    for block in by_promise(importance, options.layers):
        if len(measured) == options.candidates:
            break
        numbers = range(block.first, block.last + 1)
        try:
            config = without_layers(opened.checkpoint.config, numbers, source)
            check_with_transformers(config, source)
        except BadInputError as error:
            refused.append(block.model_copy(update={"refused": str(error)}))
            continue
        with passed_over(opened, numbers):
            name = f"the model without layers {block.first} to {block.last}"
            found = measure(opened.model, targets, progress, name).divergence()
        measured.append(block.model_copy(update={"divergence": found}))
    if not measured:
        raise BadInputError(
            f"{source}: no block of {options.layers} layers can be left out, since no config of "
            f"the family {opened.architecture.model_type} says what would stay; choose another "
            "number of layers"
        )
    return sorted(measured, key=_kl) + refused


def _kl(block: Block) -> float:
    assert block.divergence is not None
    return block.divergence.all.value


def by_promise(importance: Importance, layers: int) -> list[Block]:
    """Every block of ``layers`` layers, those first that either score puts first, in turn."""
    single = np.diagonal(importance.influence, 1)
    blocks = [
        Block(
            first=first,
            last=first + layers - 1,
            angle=float(importance.angle[first, first + layers]),
            influence=float(single[first : first + layers].sum()),
        )
        for first in range(len(single) - layers + 1)
    ]
    by_angle = sorted(blocks, key=lambda block: block.angle)
    by_influence = sorted(blocks, key=lambda block: block.influence)
    in_turn = [b for pair in zip(by_angle, by_influence, strict=True) for b in pair]
    return list({block.first: block for block in in_turn}.values())


@contextmanager
def passed_over(opened: OpenModel, numbers: Sequence[int]) -> Iterator[None]:
    """Let what enters the layers ``numbers`` leave them unchanged for a while.

    They stay in their list, so that the others are called with what belongs to their numbers.
    """

    def unchanged(*args: Any, **kwargs: Any) -> Any:
        return args[0] if args else kwargs["hidden_states"]

    chosen = [opened.layers[number] for number in numbers]
    for layer in chosen:
        layer.forward = unchanged
    try:
        yield
    finally:
        for layer in chosen:
            del layer.forward


def write_shallower(
    checkpoint: Checkpoint, config: Config, removed: range, out: Path, progress: Progress
) -> None:
    """Write the checkpoint without the layers ``removed`` into ``out``, one tensor at a time."""
    names = family_of(config, str(out)).names
    count = len(checkpoint.architecture.layers) // names.parts
    kept = graph_layers([i for i in range(count) if i not in removed], names.parts)

    def origin(spec: TensorSpec) -> str:
        if spec.layer < 0:
            return spec.name
        rest = spec.name.removeprefix(names.inside(spec.layer))
        return names.inside(kept[spec.layer]) + rest

    def tensor(spec: TensorSpec) -> NDArray[np.float32]:
        return checkpoint.float32(origin(spec))

    specs, dtypes = describe(config).tensors(), checkpoint.dtypes
    whole = checkpoint.architecture.by_name
    sources = {spec.source.tensor: whole[origin(spec)].source.tensor for spec in specs}
    stored_as = {new: dtypes[old] for new, old in sources.items() if old in dtypes}
    with progress.task("write the shallower model", len(specs)) as task:
        write_checkpoint(out, config, tensor, checkpoint.dtype, task.advance, stored_as)
