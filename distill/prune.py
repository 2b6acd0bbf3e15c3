"""Write a checkpoint with a part of its experts, and prove that it is what was chosen.

Expert matrices and biases, router rows, the router's bias, the correction of the choice and factors
per expert are sliced by one permutation. The proof is not optional: the written checkpoint is
opened again and must say what the original says with the same experts masked.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from edgekit.architecture import Architecture, TensorSpec
from edgekit.checkpoint import Checkpoint, copy_tokenizer, write_checkpoint
from edgekit.describe import describe
from edgekit.distill.head import require_finite
from edgekit.distill.keep import Kept
from edgekit.distill.masked import masked
from edgekit.distill.open_model import OpenModel, open_model
from edgekit.distill.resident import resident
from edgekit.errors import BadInputError, EdgekitError
from edgekit.nested import prefix_config
from edgekit.progress import Progress

SHARD_BYTES = 5_000_000_000
PROOF_TOKENS = 128  # of a sequence
TOLERANCE = 1e-3  # of the largest logit: the order of sums differs; bfloat16 copies exactly


def write_pruned(
    checkpoint: Checkpoint,
    kept: Kept,
    out: Path,
    progress: Progress,
    more: Mapping[str, Any] | None = None,
) -> Architecture:
    """Write the experts of ``kept`` into the empty directory ``out``, one tensor at a time;
    ``more`` is added to the config."""
    tensor = pruned_tensors(checkpoint, kept)
    return write_smaller(checkpoint, kept, tensor, out, progress, more)


def write_smaller(
    checkpoint: Checkpoint,
    kept: Kept,
    tensor: Callable[[TensorSpec], NDArray[np.float32]],
    out: Path,
    progress: Progress,
    more: Mapping[str, Any] | None = None,
) -> Architecture:
    """Write a checkpoint with as many experts as ``kept``; ``tensor`` gives each of its tensors.

    Floats are stored as they were, what was stored quantized as bfloat16. Large weights are several
    files.
    """
    config = pruned_config(checkpoint.config, checkpoint.architecture, kept) | dict(more or {})
    smaller = describe(config)
    with progress.task("write the smaller model", len(smaller.tensors())) as task:
        write_checkpoint(
            out, config, tensor, checkpoint.dtype, task.advance, checkpoint.dtypes, SHARD_BYTES
        )
    copy_tokenizer(checkpoint.path, out)
    return smaller


def pruned_tensors(
    checkpoint: Checkpoint, kept: Kept
) -> Callable[[TensorSpec], NDArray[np.float32]]:
    """Gives the tensors of the smaller model that has the experts of ``kept``."""

    def tensor(spec: TensorSpec) -> NDArray[np.float32]:
        if spec.expert >= 0:
            module = checkpoint.architecture.expert(
                spec.layer, kept[spec.layer][spec.expert], spec.projection
            )
            return checkpoint.float32(module + "." + spec.name.rpartition(".")[2])
        values = checkpoint.float32(spec.name)
        if spec.role != "router":
            return values
        experts = checkpoint.architecture.layers[spec.layer].mixture.num_experts  # type: ignore[union-attr]
        identities = range(experts, len(values))  # rows behind those of the experts
        return values[[*kept[spec.layer], *identities]]

    return tensor


def pruned_config(
    config: Mapping[str, Any], architecture: Architecture, kept: Kept
) -> dict[str, Any]:
    """``config`` with the new number of experts under every key that states it.

    Raises:
        BadInputError: the layers keep different numbers, or more depends on the number of experts.
    """
    counts = {len(experts) for experts in kept.values()}
    if len(counts) > 1:
        raise BadInputError(
            f"layers would keep {min(counts)} to {max(counts)} experts, and a config has one "
            "number for all; keep the same number in every layer"
        )
    if not architecture.expert_count_keys:
        raise BadInputError(
            f"experts of a {architecture.model_type} cannot be left out, because more than the "
            "mixture depends on their number; choose another teacher"
        )
    (count,) = counts
    return prefix_config(config, architecture, count)


@torch.inference_mode()
def masked_logits(opened: OpenModel, kept: Kept, tokens: Sequence[int]) -> torch.Tensor:
    """What the original says with only ``kept`` allowed: float32 [T, V].

    Weights that were stored quantized are rounded, in the opened model, as they will be written:
    what is loaded now, and every layer that is loaded later.

    Raises:
        BadInputError: they are not finite.
    """
    if opened.checkpoint.source.method != "none":
        opened.after_loading = partial(round_as_written, opened)
        opened.after_loading()
    ids = torch.tensor(list(tokens)[:PROOF_TOKENS])[None]
    with masked(opened, kept):
        logits: torch.Tensor = opened.model(input_ids=ids, use_cache=False).logits[0]
    require_finite(logits, str(opened.path))
    return logits.float()


def round_as_written(opened: OpenModel) -> None:
    """Round what is loaded of a model that was stored quantized, as it will be written: matrices,
    but not routers or what is stored in float32."""
    stored = opened.checkpoint.dtypes
    dtype = {"F32": torch.float32, "F16": torch.float16}.get(
        opened.checkpoint.dtype, torch.bfloat16
    )
    for name, parameter in opened.model.named_parameters():
        if parameter.is_meta:
            continue
        if parameter.ndim > 1 and stored.get(name) != "F32" and not name.endswith(".router"):
            parameter.copy_(parameter.to(dtype))


@torch.inference_mode()
def check_pruned(
    out: Path,
    parameters: int,
    kept: Kept,
    tokens: Sequence[int],
    expected: torch.Tensor,
    chosen: str = "the original with the same experts masked",
    streamed: bool = False,
) -> None:
    """Open what was written and compare it with ``expected``, which ``chosen`` said
    (:func:`masked_logits`). It is in memory a layer at a time if it has to be, or ``streamed``.

    Raises:
        EdgekitError: it is not what was chosen; a defect of edgekit, and nothing is kept.
    """
    with open_model(out, load=False) as opened:
        found_experts = {n: block.mixture.num_experts for n, block in opened.mixtures.items()}
        if found_experts != {layer: len(experts) for layer, experts in kept.items()}:
            raise EdgekitError(f"{out}: the config does not state the experts that were kept")
        if opened.architecture.parameters() != parameters:
            raise EdgekitError(f"{out}: the number of parameters is not the planned one")
        ids = torch.tensor(list(tokens)[:PROOF_TOKENS])[None]
        opened.load_rest()
        with resident(opened, streamed):
            found = opened.model(input_ids=ids, use_cache=False).logits[0].float()
    error = float((found - expected).abs().max() / expected.abs().max())
    if not error <= TOLERANCE:
        raise EdgekitError(
            f"{out}: the written model differs from {chosen} by {error:.1e} of the largest logit; "
            "please report this family"
        )
