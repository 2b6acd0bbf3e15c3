"""Decide what each layer's merged experts are, a layer at a time.

A layer runs over the text as it is; its experts are measured, grouped and aligned; then it runs
again with the merged ones in place, and what comes out is what the next layer is measured on. So
every layer sees the states that it will see in the merged model, which is the order of REAM. With
statistics of an earlier pass the groups are those of the original model and only enough text to
align neurons is run.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from edgekit.architecture import Architecture
from edgekit.distill.accumulate import LayerSums, TokenClasses
from edgekit.distill.layer_states import LayerStates
from edgekit.distill.merge_alignment import MergedExpert, align
from edgekit.distill.merge_groups import Evidence, Method, evidence, group_experts
from edgekit.distill.merge_tensors import merged_tensors
from edgekit.distill.mixture import MixtureBlock, Routing
from edgekit.distill.mixture_weights import is_routed, write_routed
from edgekit.distill.open_model import OpenModel
from edgekit.distill.statistics import Statistics
from edgekit.errors import BadInputError
from edgekit.progress import Progress

MergePlan = dict[int, tuple[MergedExpert, ...]]  # sparse layer -> its merged experts, as stored


@dataclass(frozen=True)
class MergeOptions:
    """``keep`` is the share of the experts that is left. ``protected`` experts (sparse layer ->
    experts) stay as they are; with ``preserve`` so does the more salient half of what is left.
    ``sample_tokens`` of the text, drawn by ``seed``, align neurons and give mean outputs."""

    method: Method = "ream"
    keep: float = 0.75
    protected: Mapping[int, Collection[int]] = field(default_factory=dict)
    preserve: bool = False
    sample_tokens: int = 1024
    seed: int = 0


class LayerWitness:
    """Observes a mixture over all text: sums, and the experts' input at sampled tokens."""

    def __init__(self, block: MixtureBlock, tokens: int, options: MergeOptions) -> None:
        hidden_size = block.router.shape[1]
        self.sums = LayerSums(block.mixture, hidden_size, TokenClasses(1, torch.zeros(0).long()))
        rng = np.random.default_rng(options.seed)
        sample = rng.choice(tokens, min(options.sample_tokens, tokens), replace=False)
        self._sample = torch.from_numpy(np.sort(sample))
        self._seen = 0
        self._inputs: list[Tensor] = []

    def routed(self, x: Tensor, routing: Routing) -> None:
        """Take the sampled rows of x and the router's sums."""
        rows = self._sample[(self._sample >= self._seen) & (self._sample < self._seen + len(x))]
        self._inputs.append(x[rows.to(x.device) - self._seen])
        self._seen += len(x)
        self.sums.classes.of_tokens = torch.zeros(len(x), dtype=torch.int64, device=x.device)
        self.sums.routed(x, routing)

    def expert(
        self, expert: int, tokens: Tensor, gate: Tensor, hidden: Tensor, output: Tensor
    ) -> None:
        """Add up one expert's outputs."""
        self.sums.expert(expert, tokens, gate, hidden, output)

    def sample(self) -> Tensor:
        """The experts' input at the sampled tokens [T, H]."""
        return torch.cat(self._inputs)

    @torch.inference_mode()
    def evidence(self, block: MixtureBlock) -> Evidence:
        """What was seen; mean outputs are of all experts on the sample."""
        sums = {name: value.numpy() for name, value in self.sums.tensors().items()}
        tokens = sums["tokens"].sum((0, 1))
        x, experts = self.sample(), range(block.mixture.num_experts)
        means = [block.output(block.hidden(x, e), e).double().mean(0) for e in experts]
        return Evidence(
            tokens=tokens,
            saliency=sums["gated_sum"].sum((0, 1)) / np.maximum(tokens, 1),
            gated_output=sums["gated_output_sum"],
            mean_output=torch.stack(means).cpu().numpy(),
            logit_gram=sums["logit_gram"][: len(tokens), : len(tokens)],
        )


def plan_merges(
    opened: OpenModel,
    smaller: Architecture,
    states: LayerStates,
    options: MergeOptions,
    progress: Progress,
    statistics: Statistics | None = None,
) -> MergePlan:
    """The merged experts of every sparse layer; ``smaller`` is the architecture that they make.

    ``opened`` has no layers loaded, before and after. ``states`` afterwards are those behind the
    last merged layer.

    Raises:
        BadInputError: a layer's values are not finite, or its experts cannot be grouped as asked.
    """
    plan: MergePlan = {}
    assert smaller.moe is not None
    keep = smaller.moe.num_experts
    with progress.task("merge experts", 2 * states.tokens * len(opened.layers)) as task:
        for number in range(len(opened.layers)):
            opened.load_layer(number)
            inside = range(number * opened.parts, (number + 1) * opened.parts)
            for layer in (n for n in inside if n in opened.mixtures):
                block = opened.mixtures[layer]
                witness = LayerWitness(block, states.tokens, options)
                block.observer = witness
                states.run(number, task, keep=False)
                block.observer = None
                found = evidence(statistics, layer) if statistics else witness.evidence(block)
                _require_finite(found, opened, layer)
                plan[layer] = _merged(block, found, layer, keep, witness.sample(), options)
                put_merged(opened, smaller, plan, layer)
            states.run(number, task, keep=True)
            opened.drop_layer(number)
    return plan


def _merged(
    block: MixtureBlock,
    found: Evidence,
    layer: int,
    keep: int,
    sample: Tensor,
    options: MergeOptions,
) -> tuple[MergedExpert, ...]:
    groups = group_experts(
        found,
        options.method,
        keep,
        router_groups=block.mixture.num_groups,
        verbatim=options.protected.get(layer, ()),
        preserve=options.preserve,
    )
    return tuple(align(block, group, sample) for group in groups)


def put_merged(opened: OpenModel, smaller: Architecture, plan: MergePlan, layer: int) -> None:
    """Replace a loaded layer's experts and router rows by the merged ones, as they are stored."""
    block, mixture = opened.mixtures[layer], smaller.layers[layer].mixture
    assert mixture is not None
    block.mixture = mixture
    merged = MixtureBlock(mixture, opened.architecture.hidden_size, opened.dtype)
    for name, parameter in merged.named_parameters(recurse=False):
        empty = torch.empty_like(parameter, device=opened.device)
        setattr(block, name, nn.Parameter(empty, requires_grad=False))
    tensor = merged_tensors(opened.checkpoint, plan)
    for spec in smaller.specs:
        if spec.layer == layer and is_routed(spec, smaller):
            write_routed(spec, block, torch.from_numpy(np.ascontiguousarray(tensor(spec))))


def _require_finite(found: Evidence, opened: OpenModel, layer: int) -> None:
    bad = ~np.isfinite(found.saliency + found.mean_output.sum(1) + found.logit_gram.sum(1))
    if bad.any():
        raise BadInputError(
            f"{opened.path}: expert {int(np.flatnonzero(bad)[0])} of layer {layer} gives values "
            "that are not finite; the weights are damaged, download them again"
        )
