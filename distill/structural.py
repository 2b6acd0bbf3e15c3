"""Fewer experts in a model that the table of families does not know.

Router and experts are found by structure (:mod:`edgekit.distill.structure`), measured, chosen and
sliced, and transformers writes the result. edgekit compiles no such model, but whoever runs it with
transformers can shrink it. The proof is the same as for a listed family: the written model is
loaded again and must say what the original says with the same experts masked.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from edgekit.architecture import Mixture
from edgekit.atomic import write_json
from edgekit.checkpoint import copy_tokenizer, read_config
from edgekit.distill.accumulate import HALVES, LayerSums, TokenClasses
from edgekit.distill.chunks import not_finite
from edgekit.distill.collect import calibration_text, checkpoint_digest, too_long
from edgekit.distill.keep import (
    Choice,
    Kept,
    choose,
    enough_text,
    require_count,
    require_same_layers,
)
from edgekit.distill.loading import Model, quiet_transformers
from edgekit.distill.skew import skew
from edgekit.distill.statistics import Statistics, StatisticsInfo
from edgekit.distill.structure import (
    FoundMixture,
    expert_count_keys,
    experts_masked,
    experts_watched,
    find_mixtures,
    load_unlisted,
    slice_experts,
    top_k_seen,
)
from edgekit.errors import BadInputError, EdgekitError
from edgekit.progress import Progress
from edgekit.rules import rounded_experts
from edgekit.sequences import TokenSequence, equal_length_runs, sequences_digest, stacked

BATCH_TOKENS = 1024
PROOF_TOKENS = 128
TOLERANCE = 1e-3  # of the largest logit
SHARD = "5GB"
REPORT = "experts.json"


@dataclass(frozen=True)
class StructuralReport:
    """What was found and kept. ``config_keys`` were given the new number; ``notes`` are sentences
    for a person."""

    model_type: str
    criterion: str
    seed: int
    calibration: str
    experts_before: int
    experts_after: int
    parameters_before: int
    parameters_after: int
    tensors: list[str]  # of the first sparse layer, sliced alike in all
    config_keys: list[str]
    kept: Kept
    protected: dict[int, list[int]]
    exchanged: dict[int, list[int]]
    overlap: list[float]
    notes: list[str]


def shrink_structurally(
    model: Path,
    text: Sequence[TokenSequence],
    keep: float,
    out: Path,
    progress: Progress,
    criterion: str = "reap",
    seed: int = 0,
    previous: Kept | None = None,
    margin: float = 0.05,
) -> StructuralReport:
    """Write ``model`` with the share ``keep`` of its experts into the empty directory ``out``.

    The whole model is in memory in float32 while it is measured. An expert of ``previous``, an
    earlier choice for the same teacher, goes only if another is worth more by the share ``margin``.

    Raises:
        BadInputError: the experts, their router or the keys that count them were not found, the
            weights are quantized or not finite, ``keep`` does not fit the router, the model cannot
            read the text, or ``previous`` is of another model.
    """
    config, source = read_config(model), str(model)
    if config.get("quantization_config"):
        raise BadInputError(
            f"{model / 'config.json'}: the weights are stored quantized, which is read for listed "
            "families only; give the checkpoint in bfloat16"
        )
    calibration = calibration_text(text).sequences
    loaded = load_unlisted(model)
    _require_readable(loaded, text, source)
    found = find_mixtures(loaded, source)
    count = found[0].count
    keys = expert_count_keys(config, count)
    if not keys:
        raise BadInputError(
            f"{model / 'config.json'}: no key that speaks of experts states their number, {count}; "
            "add the key that this family reads"
        )
    proof = torch.from_numpy(calibration[0].tokens[:PROOF_TOKENS].astype(np.int64))[None]
    mixture = _described(loaded, found, config, proof)
    number = rounded_experts(keep, count)
    if number == count:
        raise BadInputError(f"[shrink] keep: {keep} of {count} experts is all of them; keep fewer")
    require_count(mixture, number)
    require_same_layers(previous, [m.layer for m in found], count)
    statistics = measure(loaded, found, mixture, calibration, source, checkpoint_digest(model),
                         progress)  # fmt: skip
    if not _logits(loaded, proof).isfinite().all():
        raise not_finite(source, "the final norm or the head")
    choice = choose(statistics, mixture, number, criterion, seed, previous, margin)
    with experts_masked(loaded, found, choice.kept, source):
        expected = _logits(loaded, proof)
    before = loaded.num_parameters()
    tensors = list(found[0].axes)
    del loaded, found  # before the model is read once more, in its own precision
    planned = _write(model, config, keys, choice.kept, out)
    smaller = _check(out, choice.kept, planned, proof, expected)
    notes = [skew(statistics).sentence, *enough_text(choice, statistics)]
    notes += _unreached(smaller, mixture, choice, text, out, progress)
    report = StructuralReport(
        model_type=str(config.get("model_type")),
        criterion=criterion,
        seed=seed,
        calibration=statistics.info.sequences,
        experts_before=count,
        experts_after=number,
        parameters_before=before,
        parameters_after=planned,
        tensors=tensors,
        config_keys=[".".join(key) for key in keys],
        kept=choice.kept,
        protected=choice.protected,
        exchanged=choice.exchanged,
        overlap=choice.overlap,
        notes=notes,
    )
    write_json(out / REPORT, asdict(report))
    return report


def _require_readable(model: Model, text: Sequence[TokenSequence], source: str) -> None:
    """Refuse text that is longer than the context, or has tokens that the model does not."""
    context = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    longest = max(len(s.tokens) for s in text)
    if context and longest > context:
        raise too_long(source, longest, context)
    highest = max(int(s.tokens.max()) for s in text if len(s.tokens))
    rows = model.get_input_embeddings().weight.shape[0]
    if highest >= rows:
        raise BadInputError(
            f"{source}: the text has token {highest} but the model has {rows}; make the text with "
            "this model's tokenizer"
        )


def _described(
    model: Model, found: Sequence[FoundMixture], config: Mapping[str, Any], tokens: torch.Tensor
) -> Mixture:
    """What the choice has to know of the router; how many experts a token uses is seen."""
    with top_k_seen(found[0]) as seen:
        _logits(model, tokens)
    groups, top_groups = (_stated(config, key) or 1 for key in ("n_group", "topk_group"))
    return Mixture(
        router="",
        expert_names=(),
        num_experts=found[0].count,
        num_experts_per_tok=seen[0],
        intermediate_size=0,  # neurons are not measured
        activation="",
        num_groups=groups,
        top_groups=top_groups,
    )


def _stated(config: Mapping[str, Any], name: str) -> int | None:
    """An integer of the config, wherever it is."""
    value = config.get(name)
    if type(value) is int:
        return value
    inner = (_stated(v, name) for v in config.values() if isinstance(v, Mapping))
    return next((v for v in inner if v), None)


@torch.inference_mode()
def measure(
    model: Model,
    found: Sequence[FoundMixture],
    mixture: Mixture,
    text: Sequence[TokenSequence],
    source: str,
    digest: str,
    progress: Progress,
) -> Statistics:
    """Sums over ``text`` of what routed experts do; those of routers and neurons stay zero."""
    domains = sorted({s.domain for s in text})
    classes = TokenClasses(len(domains), torch.zeros(0, dtype=torch.int64))
    hidden = int(found[0].router.shape[1])
    sums = {m.layer: LayerSums(mixture, hidden, classes) for m in found}
    seen = np.zeros((HALVES, len(domains)), np.int64)
    total = sum(len(s.tokens) for s in text)
    with (
        experts_watched(found, sums, source),
        progress.task("measure the experts", total) as task,
    ):
        for number, domain in enumerate(domains):
            of_domain = [s for s in text if s.domain == domain]
            for half in range(HALVES):
                part = of_domain[half::HALVES]
                for begin, end in equal_length_runs(part, BATCH_TOKENS):
                    ids = torch.from_numpy(stacked(part[begin:end]))
                    seen[half, number] += ids.numel()
                    classes.of_tokens = torch.full((ids.numel(),), half * len(domains) + number)
                    model(input_ids=ids, use_cache=False)
                    task.advance(ids.numel())
    info = StatisticsInfo(
        checkpoint=digest,
        sequences=sequences_digest(text),
        model_type=str(model.config.model_type),
        layers=tuple(sums),
        domains=tuple(domains),
        chunks=(0,),
        total_chunks=1,
    )
    arrays = {
        name: torch.stack([s.tensors()[name] for s in sums.values()]).numpy()
        for name in next(iter(sums.values())).tensors()
    }
    for name in ("tokens", "coactivation"):
        arrays[name] = arrays[name].astype(np.int64)
    cosines = np.zeros((0, len(domains)))
    return Statistics(info, seen=seen, block_cosine_sum=cosines, **arrays)


def _write(
    model: Path, config: Mapping[str, Any], keys: Sequence[tuple[str, ...]], kept: Kept, out: Path
) -> int:
    """Write the smaller model in the precision of the original; returns its parameters."""
    loaded = load_unlisted(model, "auto")
    slice_experts(loaded, find_mixtures(loaded, str(model)), kept)
    smaller = copy.deepcopy(dict(config))
    for *path, leaf in keys:
        inner = smaller
        for step in path:
            inner = inner[step]
        inner[leaf] = len(next(iter(kept.values())))
    loaded.config = type(loaded.config).from_dict(smaller)
    with quiet_transformers():
        loaded.save_pretrained(out, max_shard_size=SHARD)
    write_json(out / "config.json", smaller)  # transformers would add what it assumes
    copy_tokenizer(model, out)
    planned: int = loaded.num_parameters()
    return planned


def _check(
    out: Path, kept: Kept, planned: int, tokens: torch.Tensor, expected: torch.Tensor
) -> Model:
    """Load what was written and compare it with ``expected``; returns it.

    Raises:
        EdgekitError: it is not what was chosen; nothing is kept.
    """
    smaller = load_unlisted(out)
    counts = {m.layer: m.count for m in find_mixtures(smaller, str(out))}
    if counts != {layer: len(experts) for layer, experts in kept.items()}:
        raise EdgekitError(f"{out}: the written model does not have the experts that were kept")
    if smaller.num_parameters() != planned:
        raise EdgekitError(f"{out}: the number of parameters is not the planned one")
    error = float((_logits(smaller, tokens) - expected).abs().max() / expected.abs().max())
    if not error <= TOLERANCE:
        raise EdgekitError(
            f"{out}: the written model differs from the original with the same experts masked by "
            f"{error:.1e} of the largest logit; its router has a part that was not found"
        )
    return smaller


def _unreached(
    smaller: Model,
    mixture: Mixture,
    choice: Choice,
    text: Sequence[TokenSequence],
    out: Path,
    progress: Progress,
) -> list[str]:
    """Sentences about experts that stay and that held-out text does not reach."""
    held_out = [s for s in text if s.held_out]
    if not held_out:
        return ["no text is held out, so whether every expert is reached was not checked"]
    found = find_mixtures(smaller, str(out))
    count = len(next(iter(choice.kept.values())))
    described = Mixture("", (), count, mixture.num_experts_per_tok, 0, "")
    after = measure(smaller, found, described, held_out, str(out), "", progress)
    return [
        f"layer {layer}: held-out text does not reach expert "
        + ", ".join(str(choice.kept[layer][e]) for e in experts)
        for layer, experts in after.unreached().items()
    ]


@torch.inference_mode()
def _logits(model: Model, tokens: torch.Tensor) -> torch.Tensor:
    logits: torch.Tensor = model(input_ids=tokens, use_cache=False).logits[0]
    return logits.float()
