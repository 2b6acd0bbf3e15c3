"""One pass over calibration text: what every expert would say of every token.

A router shows each token to a few experts; a dense feed-forward shows it to all of its neurons. So
this pass runs all experts on all tokens (E / k times the cost of the plain forward), a layer at a
time, and keeps second moments only: how the experts' outputs relate to one another and to the
layer's own output. Every choice of experts and every scale is then judged without running them
again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from edgekit.architecture import FeedForward, Mixture
from edgekit.checkpoint import Checkpoint
from edgekit.distill.mixture import MixtureBlock, Routing, gated
from edgekit.distill.open_model import OpenModel

CHUNK_VALUES = 1 << 25  # of all experts' outputs at once: 128 MiB
Floats = NDArray[np.float64]
Neurons = Mapping[int, Sequence[int]]  # expert -> its neurons, both in the order of the dense rows


@dataclass(frozen=True)
class Moments:
    """Sums over ``tokens`` of a layer with E experts. A row is an expert, or some of its neurons.

    Attributes:
        experts: the expert of each of the R rows.
        routed: [E] tokens that chose the expert.
        gate_sum: [E] Σ g, what multiplies its output.
        input_gate: [E] mean of what multiplies its input where it is chosen; else ones.
        gram: [R, R] Σ <f_i, f_j>; with ``shared`` one row more, for the shared expert.
        cross: like its rows, Σ <f_i, y>; y is the layer's own output.
        power: Σ |y|².
        shared_gate: mean gate of the shared expert, 1 if it has none.
    """

    tokens: int
    experts: tuple[int, ...]
    routed: Floats
    gate_sum: Floats
    input_gate: Floats
    gram: Floats
    cross: Floats
    power: float
    shared: bool
    shared_gate: float

    @property
    def routed_gram(self) -> Floats:
        """The gram of the rows without the shared expert, [R, R]."""
        count = len(self.experts)
        return self.gram[:count, :count]


class SharedExpert:
    """The shared expert of a layer, read from the checkpoint: its place in a model differs."""

    def __init__(self, checkpoint: Checkpoint, part: FeedForward, gate: str) -> None:
        def read(module: str, kind: str) -> Tensor | None:
            name = f"{module}.{kind}"
            known = name in checkpoint.architecture.by_name
            return torch.from_numpy(checkpoint.float32(name).copy()) if known else None

        self._weights = [(read(m, "weight"), read(m, "bias")) for m in (part.gate, part.up)]
        self._down = read(part.down, "weight"), read(part.down, "bias")
        self._activation = part.activation
        self._gate = read(gate, "weight") if gate else None

    def output(self, x: Tensor) -> Tensor:
        """x [T, H] to [T, H], before its gate."""
        gate, up = (functional.linear(x, weight, bias) for weight, bias in self._weights)
        return functional.linear(gated(gate, up, self._activation), *self._down)

    def gates(self, x: Tensor) -> Tensor:
        """What multiplies the output for x [T, H]: [T, 1]."""
        if self._gate is None:
            return torch.ones(len(x), 1)
        return torch.sigmoid(functional.linear(x, self._gate))


def shared_expert(opened: OpenModel, layer: int) -> SharedExpert | None:
    """That of a sparse layer, if the family has one."""
    mixture = opened.mixtures[layer].mixture
    if mixture.shared is None:
        return None
    return SharedExpert(opened.checkpoint, mixture.shared, mixture.shared_gate)


class FirstLook:
    """Watches a block for what has to be known before its moments are summed.

    That is Σ g |h| of every neuron [E, I] on the tokens routed to its expert, and the mean gate
    [E] of the experts whose inputs it multiplies.
    """

    def __init__(self, mixture: Mixture) -> None:
        shape = mixture.num_experts, mixture.intermediate_size
        self._neurons = torch.zeros(shape, dtype=torch.float64)
        self._gates, self._counts = np.zeros(shape[0]), np.zeros(shape[0])
        self._inside = mixture.scoring == "sigmoid_input"
        self._tokens = 0

    def routed(self, x: Tensor, routing: Routing) -> None:
        """Add the gates."""
        self._tokens += len(x)
        chosen = routing.index.reshape(-1).cpu().numpy()
        np.add.at(self._gates, chosen, routing.weight.reshape(-1).double().cpu().numpy())
        np.add.at(self._counts, chosen, 1.0)

    def expert(
        self, expert: int, tokens: Tensor, gate: Tensor, hidden: Tensor, output: Tensor
    ) -> None:
        """Add one expert's neurons."""
        self._neurons[expert] += (gate.abs() @ hidden.float().abs()).double().cpu()

    def neuron_worth(self, block: MixtureBlock) -> Floats:
        """E[g |h_n|] |down_n| of every neuron [E, I]."""
        lengths = block.down.float().norm(dim=1).double().cpu()
        return (self._neurons * lengths).numpy() / max(1, self._tokens)

    def input_gate(self) -> Floats:
        """[E]; ones where gates multiply outputs, or nobody chose the expert."""
        if not self._inside:
            return np.ones_like(self._gates)
        return np.where(self._counts > 0, self._gates / np.maximum(self._counts, 1), 1.0)


class MomentSums:
    """Watches a block and adds up its :class:`Moments`.

    ``neurons`` makes a row of each of these parts of experts; without it every expert is one.
    ``input_gate`` [E] multiplies the experts' inputs where the family's gates do.
    """

    def __init__(
        self,
        block: MixtureBlock,
        shared: SharedExpert | None,
        neurons: Neurons | None = None,
        input_gate: Floats | None = None,
    ) -> None:
        count = block.mixture.num_experts
        self._block, self._shared = block, shared
        self._parts = neurons or dict.fromkeys(range(count), ())
        self._input_gate = np.ones(count) if input_gate is None else input_gate
        rows = len(self._parts) + (shared is not None)
        self._tokens = 0
        self._routed, self._gates = np.zeros(count), np.zeros(count)
        self._gram = torch.zeros(rows, rows, dtype=torch.float64)
        self._cross = torch.zeros(rows, dtype=torch.float64)
        self._power = self._shared_gates = 0.0

    def routed(self, x: Tensor, routing: Routing) -> None:
        """Run every part on x [T, H]."""
        size = max(16, CHUNK_VALUES // (len(self._gram) * x.shape[1]))
        for first in range(0, len(x), size):
            rows = slice(first, first + size)
            part = Routing(routing.index[rows], routing.weight[rows], routing.logits[rows])
            self._add(x[rows], part)

    def expert(
        self, expert: int, tokens: Tensor, gate: Tensor, hidden: Tensor, output: Tensor
    ) -> None:
        """Nothing: all experts are run on all tokens."""

    def _add(self, x: Tensor, routing: Routing) -> None:
        inside = self._block.mixture.scoring == "sigmoid_input"
        self._tokens += len(x)
        gates = torch.ones_like(routing.weight) if inside else routing.weight
        chosen = routing.index.reshape(-1).cpu().numpy()
        np.add.at(self._routed, chosen, 1.0)
        np.add.at(self._gates, chosen, gates.reshape(-1).double().cpu().numpy())
        target = self._layer_output(x, routing)
        said = [self._part_output(x, e, n) for e, n in self._parts.items()]
        if self._shared:
            alone, gate = self._shared.output(x.float()), self._shared.gates(x.float())
            target = target + gate * alone
            self._shared_gates += float(gate.double().sum())
            said.append(alone)
        stacked = torch.stack(said).float().flatten(1)  # [R, T * H]: no output is held twice
        self._gram += (stacked @ stacked.T).double().cpu()
        self._cross += (stacked @ target.reshape(-1)).double().cpu()
        self._power += float(target.double().square().sum())

    def _layer_output(self, x: Tensor, routing: Routing) -> Tensor:
        """The routed experts' sum as the model computes it, unseen by the observer."""
        observer, self._block.observer = self._block.observer, None
        try:
            return self._block.combine(x, routing).float()
        finally:
            self._block.observer = observer

    def _part_output(self, x: Tensor, expert: int, neurons: Sequence[int]) -> Tensor:
        factor = float(self._input_gate[expert])
        hidden = self._block.hidden(x * factor if factor != 1.0 else x, expert)
        if not neurons:
            return self._block.output(hidden, expert)
        kept = torch.tensor(list(neurons), device=hidden.device)
        return functional.linear(hidden[:, kept], self._block.down[expert][:, kept])

    def moments(self) -> Moments:
        """What was added up."""
        return Moments(
            tokens=self._tokens,
            experts=tuple(self._parts),
            routed=self._routed,
            gate_sum=self._gates,
            input_gate=self._input_gate,
            gram=self._gram.numpy(),
            cross=self._cross.numpy(),
            power=self._power,
            shared=self._shared is not None,
            shared_gate=self._shared_gates / max(1, self._tokens) if self._shared else 1.0,
        )
