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
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from edgekit.architecture import Architecture
from edgekit.distill.accumulate import LayerSums, TokenClasses
from edgekit.distill.chunks import Text, require_finite
from edgekit.distill.layerwise import Layerwise
from edgekit.distill.merge_alignment import MergedExpert, align
from edgekit.distill.merge_groups import Evidence, Method, evidence, group_experts
from edgekit.distill.merge_tensors import merged_tensors
from edgekit.distill.mixture import MixtureBlock, Routing
from edgekit.distill.mixture_weights import is_routed, write_routed
from edgekit.distill.open_model import OpenModel
from edgekit.distill.statistics import Statistics
from edgekit.distill.streamed import StoredStates
from edgekit.errors import BadInputError
from edgekit.progress import Progress, Task

MergePlan = dict[int, tuple[MergedExpert, ...]]  # sparse layer -> its merged experts, as stored


@dataclass(frozen=True)
class MergeOptions:
    """``keep`` is the share of the experts that is left. ``protected`` experts (sparse layer ->
    experts) stay as they are. ``sample_tokens`` of the text, drawn by ``seed``, align neurons and
    give mean outputs. ``device`` is torch's. ``force`` goes on where memory or disk seem too
    small."""

    method: Method = "ream"
    keep: float = 0.75
    protected: Mapping[int, Collection[int]] = field(default_factory=dict)
    sample_tokens: int = 1024
    seed: int = 0
    device: str = "cpu"
    force: bool = False


class TextStates:
    """The hidden states of a text before the next layer of ``opened``, at first its embeddings.

    They lie in ``directory``, which is empty at first.
    """

    def __init__(self, opened: OpenModel, text: Text, directory: Path) -> None:
        self._opened, self._text = opened, text
        self._layerwise = Layerwise(opened)
        self._chunks = range(len(text.chunks))
        self._stored = StoredStates(directory, text, self._chunks, opened)
        self._stored.begin(0)
        for chunk in self._chunks:
            embedded = [self._layerwise.embed(ids.to(opened.device)) for ids in self._ids(chunk)]
            self._stored.write(0, chunk, embedded)
        self._stored.finish(0)

    @property
    def tokens(self) -> int:
        """Of the text."""
        return sum(self._text.size(chunk) for chunk in self._chunks)

    def watch(self, layer: int, task: Task) -> None:
        """Run all text through a layer, which has to be loaded, for its observers' sake."""
        for chunk in self._chunks:
            self._run(layer, chunk, task)

    def advance(self, layer: int, task: Task) -> None:
        """Run all text through a layer; what comes out are the states of the next.

        Raises:
            BadInputError: it is not finite.
            OutOfResourcesError: the disk is full.
        """
        self._stored.begin(layer + 1)
        for chunk in self._chunks:
            after = self._run(layer, chunk, task)
            sums = np.array([float(states.double().sum()) for states in after])
            require_finite({}, sums, layer, str(self._opened.path))
            self._stored.write(layer + 1, chunk, after)
        self._stored.finish(layer + 1)

    def logits(self) -> Tensor:
        """What the head, which has to be loaded, says of the first sequence when all layers have
        been run: float32 [T, V]."""
        ids = torch.from_numpy(self._text.sequences[0].tokens)[None]
        states = self._stored.read(len(self._opened.layers), 0, 0, ids)
        return self._layerwise.logits(states)[0].float().cpu()

    def _ids(self, chunk: int) -> list[Tensor]:
        return [ids for ids, _ in self._text.batches(chunk)]

    def _run(self, layer: int, chunk: int, task: Task) -> list[Tensor]:
        results, first = [], 0
        for ids in self._ids(chunk):
            before = self._stored.read(layer, chunk, first, ids)
            results.append(self._layerwise.run(layer, before))
            first += ids.numel()
            task.advance(ids.numel())
        return results


class LayerWitness:
    """Observes a mixture over all text: sums, and the experts' input at sampled tokens."""

    def __init__(self, block: MixtureBlock, tokens: int, options: MergeOptions) -> None:
        device, hidden_size = block.router.device, block.router.shape[1]
        classes = TokenClasses(1, torch.zeros(0, dtype=torch.int64))
        self.sums = LayerSums(block.mixture, hidden_size, classes, device)
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
        sums = self.sums.arrays()
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
    states: TextStates,
    options: MergeOptions,
    progress: Progress,
    statistics: Statistics | None = None,
) -> MergePlan:
    """The merged experts of every sparse layer; ``smaller`` is the architecture that they make.

    ``opened`` has no layers loaded, before and after. ``states`` afterwards are those behind the
    last merged layer.

    Raises:
        BadInputError: weights or activations are not finite, or experts cannot be grouped as
            asked.
        OutOfResourcesError: the disk is full.
    """
    plan: MergePlan = {}
    total = states.tokens * (len(opened.layers) + len(opened.mixtures))
    with progress.task("merge experts", total) as task:
        for number in range(len(opened.layers)):
            opened.load_layer(number)
            inside = range(number * opened.parts, (number + 1) * opened.parts)
            for layer in (n for n in inside if n in opened.mixtures):
                block = opened.mixtures[layer]
                _require_whole(block, layer, opened.path)
                witness = LayerWitness(block, states.tokens, options)
                block.observer = witness
                states.watch(number, task)
                block.observer = None
                require_finite({layer: witness.sums.arrays()}, np.zeros(0), number,
                               str(opened.path))  # fmt: skip
                found = evidence(statistics, layer) if statistics else witness.evidence(block)
                plan[layer] = _merged(block, found, layer, smaller, witness.sample(), options)
                put_merged(opened, smaller, plan, layer)
            states.advance(number, task)
            opened.drop_layer(number)
    return plan


def _merged(
    block: MixtureBlock,
    found: Evidence,
    layer: int,
    smaller: Architecture,
    sample: Tensor,
    options: MergeOptions,
) -> tuple[MergedExpert, ...]:
    assert smaller.moe is not None
    groups = group_experts(
        found,
        options.method,
        smaller.moe.num_experts,
        router_groups=block.mixture.num_groups,
        verbatim=options.protected.get(layer, ()),
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


def _require_whole(block: MixtureBlock, layer: int, path: Path) -> None:
    """Refuse experts with weights that are no numbers, also those that no token reaches."""
    for parameter in (block.gate_up, block.down, block.gate_up_bias, block.down_bias):
        for expert, values in enumerate(() if parameter is None else parameter):
            if not values.isfinite().all():
                raise BadInputError(
                    f"{path}: expert {expert} of layer {layer} has weights that are not finite; "
                    "they are damaged, download them again"
                )
