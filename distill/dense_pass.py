"""The pass that chooses what each dense feed-forward is made of.

A layer is in memory at a time, beside the hidden states of the text (tokens times hidden size times
four bytes). Every layer is watched on what the sparse model gives it (teacher forced), so layers
can be judged one by one; a layer is run twice where neurons are scored first, or where gates
multiply the experts' inputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from edgekit.architecture import Mixture
from edgekit.distill.dense_choice import (
    choose_experts,
    choose_neurons,
    reconstruction_error,
    scales,
)
from edgekit.distill.dense_moments import FirstLook, Floats, Moments, MomentSums, shared_expert
from edgekit.distill.dense_plan import LayerPlan, Piece
from edgekit.distill.layerwise import Layerwise
from edgekit.distill.mixture import Observer
from edgekit.distill.open_model import OpenModel
from edgekit.errors import BadInputError
from edgekit.progress import Progress
from edgekit.sequences import TokenSequence, equal_length_runs, stacked

BATCH_TOKENS = 1024


@dataclass(frozen=True)
class Wanted:
    """``experts`` of every layer by the criterion ``choice``, or, where it is not 0, the best
    ``neurons`` of all experts."""

    choice: str
    experts: int
    neurons: int = 0
    seed: int = 0


@dataclass(frozen=True)
class Chosen:
    """A layer's pieces without their constants; ``rows`` are theirs in ``moments``."""

    moments: Moments
    rows: list[int]
    neurons: dict[int, list[int]]  # empty: whole experts
    scores: Floats

    def factors(self, kind: str, mixture: Mixture) -> Floats:
        """The constant of each piece."""
        taken = sum(len(n) for n in self.neurons.values())
        equivalents = taken / mixture.intermediate_size if taken else len(self.rows)
        return scales(self.moments, self.rows, kind, equivalents)

    def plan(self, kind: str, mixture: Mixture) -> LayerPlan:
        """The layer with one kind of constants."""
        experts = [self.moments.experts[row] for row in self.rows]
        pieces = tuple(
            Piece(e, tuple(self.neurons.get(e, ())), float(self.moments.input_gate[e]), float(f))
            for e, f in zip(experts, self.factors(kind, mixture), strict=True)
        )
        return LayerPlan(pieces, self.moments.shared_gate)

    def error(self, kind: str, mixture: Mixture) -> float:
        """The relative squared error that one kind of constants leaves."""
        return reconstruction_error(self.moments, self.rows, self.factors(kind, mixture))


def choose_pieces(
    opened: OpenModel, text: Sequence[TokenSequence], wanted: Wanted, progress: Progress
) -> dict[int, Chosen]:
    """Run ``text`` and choose for every sparse layer; no layer of ``opened`` has to be loaded.

    Raises:
        BadInputError: weights or activations are not finite.
    """
    rng = np.random.default_rng(wanted.seed)
    layerwise = Layerwise(opened)
    states = [layerwise.embed(ids) for ids in text_batches(text, opened.device)]
    chosen: dict[int, Chosen] = {}
    with progress.task("run all experts on all tokens", len(opened.layers)) as task:
        for number in range(len(opened.layers)):
            opened.load_layer(number)
            if number in opened.mixtures:
                look = _Look(layerwise, number, wanted)
                chosen[number] = look.choose(states, rng)
            states = [layerwise.run(number, hidden) for hidden in states]
            opened.drop_layer(number)
            task.advance()
    return chosen


def text_batches(text: Sequence[TokenSequence], device: torch.device) -> list[Tensor]:
    """Token ids int64 [B, T] of neighbours of one length."""
    return [
        torch.from_numpy(stacked(text[begin:end])).to(device)
        for begin, end in equal_length_runs(text, BATCH_TOKENS)
    ]


class _Look:
    """Watches one sparse layer, which is loaded."""

    def __init__(self, layerwise: Layerwise, number: int, wanted: Wanted) -> None:
        self._layerwise, self._number, self._wanted = layerwise, number, wanted
        self._block = layerwise.opened.mixtures[number]

    def choose(self, states: list[Tensor], rng: np.random.Generator) -> Chosen:
        """What the layer is made of, from the hidden states before it."""
        wanted, mixture = self._wanted, self._block.mixture
        neurons: dict[int, list[int]] = {}
        worth, gates = np.zeros((1, 1)), None
        if wanted.neurons or mixture.scoring == "sigmoid_input":
            first = FirstLook(mixture)
            self._watch(first, states)
            gates, worth = first.input_gate(), first.neuron_worth(self._block)
            neurons = choose_neurons(worth, wanted.neurons) if wanted.neurons else {}
        shared = shared_expert(self._layerwise.opened, self._number)
        sums = MomentSums(self._block, shared, neurons, gates)
        self._watch(sums, states)
        moments = sums.moments()
        self._require_finite(moments)
        if wanted.neurons:
            return Chosen(moments, list(range(len(moments.experts))), neurons, worth.sum(1))
        rows, scores = choose_experts(moments, wanted.choice, wanted.experts, rng)
        return Chosen(moments, rows, {}, scores)

    def _watch(self, observer: Observer, states: list[Tensor]) -> None:
        self._block.observer = observer
        for hidden in states:
            self._layerwise.run(self._number, hidden)
        self._block.observer = None

    def _require_finite(self, moments: Moments) -> None:
        if not np.isfinite(moments.gram).all():
            raise BadInputError(
                f"{self._layerwise.opened.path}: an expert of layer {self._number} gives values "
                "that are not finite; the weights are damaged, download them again"
            )
