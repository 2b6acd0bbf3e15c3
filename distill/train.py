"""Heal a student: minimise the KL to the cached teacher, training only a part of the weights.

A nested student (:mod:`edgekit.distill.nested`) is healed as several: every step trains one of its
prefixes, so that all of them recover together.

Interrupted training continues from the last saved state to the same weights, bit for bit on a CPU:
the order of the sequences and of the prefixes depends on the seed and the step alone, and the state
holds the optimizer's moments in full precision.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from edgekit.architecture import TensorSpec
from edgekit.checkpoint import (
    copy_tokenizer,
    read_config,
    read_json,
    shard_names,
    write_checkpoint,
)
from edgekit.digests import json_digest
from edgekit.distill.cache import INDEX, TOKENIZER, LogitCache
from edgekit.distill.divergence import Divergence
from edgekit.distill.fake_quantize import fake_quantize
from edgekit.distill.losses import Loss
from edgekit.distill.masked import prefix_mask
from edgekit.distill.open_model import OpenModel, open_model
from edgekit.distill.same_tokenizer import require_tokenizer
from edgekit.distill.state import TrainingState, restore_state
from edgekit.distill.trainable import is_norm
from edgekit.distill.trainer import Trainer
from edgekit.errors import BadInputError
from edgekit.nested import stored_sizes
from edgekit.progress import Progress
from edgekit.recipe import DistillSection, QuantizeSection
from edgekit.rules import require_unpacked
from edgekit.scheme import Scheme
from edgekit.text import TOKENIZER as TOKENIZER_JSON

FLOATS = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}


class Healed(BaseModel):
    """A student of ``experts`` per layer (0: dense) on held-out text, before and after training."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    experts: int
    before: Divergence
    after: Divergence


class TrainReport(BaseModel):
    """KL in nats per token: on held-out text before and after, and of every step.

    ``held_out_kl_*`` are those of the first of ``students``, NaN without held-out text. A step of
    nested training trains one prefix, so neighbours among ``losses`` may be of different ones.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    steps: int
    trained_parameters: int
    parameters: int
    tokens: int
    held_out_kl_before: float
    held_out_kl_after: float
    students: list[Healed]
    losses: list[float]


def train(
    student: Path,
    cache: Path,
    params: DistillSection,
    out: Path,
    progress: Progress,
    scratch: Path | None = None,
    quantization: QuantizeSection | None = None,
    *,
    device: str = "cpu",
    skip_missing: bool = False,
) -> TrainReport:
    """Train ``student`` on ``cache`` and write the healed checkpoint into ``out``.

    Of a student with nested sizes (:mod:`edgekit.nested`) all prefixes are trained in turn.

    With ``params.quantization_aware`` every matrix is, during training, what ``quantization`` will
    make of it, so router and norms learn to make up for the rounding (after Norm Tweaking, arXiv
    2309.02784). The matrices themselves are written as they were, and quantizing them gives the
    same codes again. With ``skip_missing`` it goes on without shards that are not there.

    Raises:
        BadInputError: the cache does not fit the student or the loss, or the student diverged.
    """
    logits = LogitCache(cache, skip_missing)
    rounding = quantization if params.quantization_aware else None
    torch.manual_seed(params.seed)
    with open_model(student, device=device) as opened:
        _require_fit(opened, logits, params)
        if rounding:
            require_unpacked(params.trainable)
            fake_quantize(opened, rounding, progress)
        config = str(student / "config.json")
        nested = stored_sizes(opened.checkpoint.config, opened.architecture, config)
        masks = [prefix_mask(opened.mixtures, count) for count in nested] or [None]
        trainer = Trainer(opened, logits, params, masks, Loss.of(params))
        saved = scratch / "state" if scratch else None
        state = restore_state(saved, trainer.parameters, trainer.optimizer)
        if state is None:
            state = TrainingState(0, [], [_json(d) for d in trainer.divergences(progress)])
        before = [Divergence.model_validate(values) for values in state.before if values]
        tokens = trainer.run(state, saved, progress)
        _round_as_stored(opened, trainer.parameters)
        after = [d for d in trainer.divergences(progress) if d]
        _write(opened, out, rounding, progress)
        moe = opened.architecture.moe
        counts = list(nested) or [moe.num_experts if moe else 0]
        parameters = opened.architecture.parameters()
    return TrainReport(
        steps=params.steps,
        trained_parameters=sum(p.numel() for p in trainer.parameters.values()),
        parameters=parameters,
        tokens=tokens,
        held_out_kl_before=before[0].all.value if before else math.nan,
        held_out_kl_after=after[0].all.value if after else math.nan,
        students=[
            Healed(experts=count, before=first, after=last)
            for count, first, last in zip(counts, before, after, strict=False)
        ],
        losses=[round(x, 5) for x in state.losses],
    )


def training_digest(
    student: Path,
    cache: Path,
    params: DistillSection,
) -> str:
    """Names what a saved state belongs to: these weights, this cache and these options."""
    files = [(student / name).stat() for name in shard_names(student)]
    return json_digest(
        {
            "student": [str(student.resolve()), *([f.st_size, f.st_mtime_ns] for f in files)],
            "cache": read_json(cache / INDEX),
            "config": read_config(student),
            "params": params.model_dump(mode="json"),
        }
    )


def _require_fit(opened: OpenModel, cache: LogitCache, params: DistillSection) -> None:
    index, vocab_size = cache.index, opened.architecture.vocab_size
    if index.tokenizer and (opened.path / TOKENIZER_JSON).is_file():
        require_tokenizer(opened.path, index.tokenizer, Path(cache.directory) / TOKENIZER)
    if vocab_size < cache.vocab_size:
        raise BadInputError(
            f"{opened.path}: the vocabulary has {vocab_size} tokens but the teacher's has "
            f"{cache.vocab_size}; choose a student with the teacher's tokenizer"
        )
    if index.targets == "sampled" and index.temperature != params.temperature:
        raise BadInputError(
            f"{cache.directory}: its targets were drawn at temperature {index.temperature:g}, and "
            f"training asks for {params.temperature:g}; use one temperature for both"
        )
    if index.targets == "sampled" and params.loss != "forward_kl" and not index.probabilities:
        raise BadInputError(
            f"{cache.directory}: {params.loss} needs the probabilities of drawn tokens; capture "
            "with --probabilities, or top_k targets"
        )


def _json(divergence: Divergence | None) -> object:
    return divergence.model_dump(mode="json") if divergence else None


@torch.no_grad()
def _round_as_stored(opened: OpenModel, parameters: dict[str, torch.nn.Parameter]) -> None:
    """Give trained weights the precision that they will be stored in, so that what is measured is
    what is written; norms are stored as float32."""
    dtype = FLOATS[opened.checkpoint.dtype]
    norms = (m for m in opened.model.modules() if is_norm(m))
    exact = {id(parameter) for norm in norms for parameter in norm.parameters()}
    for parameter in parameters.values():
        if id(parameter) not in exact:
            parameter.copy_(parameter.to(dtype))


def _write(
    opened: OpenModel, out: Path, rounding: QuantizeSection | None, progress: Progress
) -> None:
    checkpoint = opened.checkpoint
    scheme = Scheme.parse(rounding.scheme if rounding else "none")
    trained = opened.tensors()

    def tensor(spec: TensorSpec) -> NDArray[np.float32]:
        return checkpoint.float32(spec.name) if scheme.packing(spec) else trained(spec)

    with progress.task("write the student", len(checkpoint.specs)) as task:
        write_checkpoint(out, checkpoint.config, tensor, checkpoint.dtype, task.advance)
    copy_tokenizer(checkpoint.path, out)
