"""What stays of a narrower model, and the tensors that it is made of.

Every dense layer, expert and shared expert keeps its own best neurons, the same number everywhere;
the model keeps one set of hidden channels. What stays keeps its order.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekit.architecture import Architecture, FeedForward, ShortConv, TensorSpec
from edgekit.checkpoint import Checkpoint, read_config
from edgekit.describe import describe
from edgekit.distill.slice_config import (
    check_with_transformers,
    narrower_feed_forward,
    narrower_hidden,
)
from edgekit.distill.slice_hidden import (
    Cut,
    Indices,
    Scale,
    check_hidden,
    hidden_cuts,
    hidden_scales,
)
from edgekit.distill.slice_importance import Array, Importance, neuron_places
from edgekit.errors import BadInputError
from edgekit.recipe_shapes import SliceSection

REPORT = "slicing.json"


@dataclass(frozen=True)
class WidthOptions:
    """``feed_forward`` and ``hidden`` are the shares that stay, rounded to ``multiple_of``."""

    feed_forward: float = 1.0
    hidden: float = 1.0
    multiple_of: int = 128

    @classmethod
    def of(cls, section: SliceSection) -> WidthOptions:
        """As a recipe says."""
        return cls(section.feed_forward, section.hidden, section.multiple_of)

    @property
    def narrower(self) -> bool:
        """Whether anything is taken away."""
        return (self.feed_forward, self.hidden) != (1.0, 1.0)


@dataclass(frozen=True)
class WidthPlan:
    """A narrower model: its config, what stays of each tensor, and what is scaled, by name."""

    config: Mapping[str, Any]
    architecture: Architecture
    neurons: dict[str, Indices]  # by down projection; a convolution's channels by its output
    channels: Indices
    cuts: dict[str, list[Cut]]
    scales: dict[str, Scale]

    def tensor(self, spec: TensorSpec, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """A tensor of the narrower model from that of the whole one."""
        for axis, kept in self.cuts.get(spec.name, []):
            values = values.take(kept, axis)
        scale = self.scales.get(spec.name)
        return scale.apply(values) if scale else values

    def stored_as(self, checkpoint: Checkpoint) -> dict[str, str]:
        """How its tensors are stored: as those of ``checkpoint``, but scaled vectors in float32."""
        scaled = {
            spec.source.tensor: "F32"
            for spec in self.architecture.tensors()
            if spec.name in self.scales and len(spec.shape) == 1
        }
        return checkpoint.dtypes | scaled


def require_sizes(model: Path, options: WidthOptions) -> None:
    """Refuse what no narrower ``model`` can be.

    Raises:
        BadInputError: names the option, or says why the family cannot be sliced so.
    """
    for name, share in (("feed_forward", options.feed_forward), ("hidden", options.hidden)):
        if not 0.0 < share <= 1.0:
            raise BadInputError(f"{name} is {share}, expected a share above 0 and up to 1")
    if options.multiple_of < 1:
        raise BadInputError(f"multiple_of is {options.multiple_of}, expected at least 1")
    plan_sizes(read_config(model), str(model / "config.json"), options)


def plan_sizes(
    config: Mapping[str, Any], source: str, options: WidthOptions
) -> tuple[Architecture, Architecture, Mapping[str, Any]]:
    """The model with fewer neurons, that with fewer channels as well, and its config.

    Raises:
        BadInputError: the family cannot be sliced so.
    """
    step, before = options.multiple_of, describe(config, source).parameters()
    config = narrower_feed_forward(config, options.feed_forward, step, source)
    narrower = describe(config, source)
    if options.feed_forward < 1.0 and narrower.parameters() == before:
        raise _nothing("feed_forward", options.feed_forward, step, source)
    final = narrower_hidden(config, options.hidden, step, source)
    architecture = describe(final, source)
    if architecture.hidden_size != narrower.hidden_size:
        check_hidden(narrower, architecture, source)
    elif options.hidden < 1.0:
        raise _nothing("hidden", options.hidden, step, source)
    check_with_transformers(final, source)
    return narrower, architecture, final


def _nothing(name: str, share: float, step: int, source: str) -> BadInputError:
    return BadInputError(
        f"{source}: {name} {share} takes nothing away, since sizes are rounded to multiples of "
        f"{step}; choose a smaller share or multiple_of"
    )


def plan_width(checkpoint: Checkpoint, importance: Importance, options: WidthOptions) -> WidthPlan:
    """Choose neurons and channels."""
    source = str(checkpoint.path / "config.json")
    narrower, final, config = plan_sizes(checkpoint.config, source, options)
    old = checkpoint.architecture
    neurons = {
        module: most_worthy(importance.neurons[module], size)
        for layer in narrower.layers
        for module, size in neuron_places(layer)
    }
    cuts = neuron_cuts(old, neurons)
    channels = most_worthy(importance.channels, final.hidden_size)
    scales: dict[str, Scale] = {}
    if final.hidden_size != old.hidden_size:
        for layer in old.layers:
            if isinstance(layer.attention, ShortConv):
                module = layer.attention.output
                neurons[module] = most_worthy(importance.neurons[module], final.hidden_size)
        for name, further in hidden_cuts(narrower, final, channels, neurons).items():
            cuts[name] = cuts.get(name, []) + further
        scales = hidden_scales(narrower, final, channels, importance.energy)
    return WidthPlan(config, final, neurons, channels, cuts, scales)


def most_worthy(worth: Array, count: int) -> Indices:
    """Indices of the ``count`` largest, ascending; ties go to the first."""
    return np.sort(np.argsort(-worth, kind="stable")[:count]).astype(np.int64)


def neuron_cuts(architecture: Architecture, neurons: Mapping[str, Indices]) -> dict[str, list[Cut]]:
    """What stays of gate, up and down of every feed-forward and expert, by tensor name."""
    cuts: dict[str, list[Cut]] = {}
    for layer in architecture.layers:
        for block in (layer.dense, layer.mixture.shared if layer.mixture else None):
            if block is not None:
                cuts.update(_block_cuts(block, neurons[block.down]))
    for spec in architecture.tensors():
        if spec.expert >= 0:
            mixture = architecture.layers[spec.layer].mixture
            assert mixture is not None
            kept = neurons[mixture.expert(spec.expert, "down")]
            cuts.update(_expert_cut(spec, kept))
    return cuts


def _block_cuts(block: FeedForward, kept: Indices) -> Iterator[tuple[str, list[Cut]]]:
    for module in (block.gate, block.up):
        yield module + ".weight", [(0, kept)]
        yield module + ".bias", [(0, kept)]
    yield block.down + ".weight", [(1, kept)]


def _expert_cut(spec: TensorSpec, kept: Indices) -> Iterator[tuple[str, list[Cut]]]:
    if spec.projection == "down":
        if len(spec.shape) == 2:  # its bias has no neurons
            yield spec.name, [(1, kept)]
    elif spec.projection == "gate_up":  # rows alternate
        yield spec.name, [(0, np.stack((2 * kept, 2 * kept + 1), 1).reshape(-1))]
    else:
        yield spec.name, [(0, kept)]
