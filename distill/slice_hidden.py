"""Fewer hidden channels: which axes of which tensors shrink, and what makes up for the difference.

A tensor has a hidden axis where its shape changes when the config's hidden size does and nothing
else, so edgekit's description of a family says it all. A short convolution has as many channels of
its own as there are hidden ones; they are chosen by themselves, like neurons.

The hidden size enters a model's computation in a few more places. Each is a constant factor, which
is multiplied into a weight that stands beside it:

- A norm divides by the mean over fewer channels. If those that stay have the share e of the energy,
  its result is too large by 1 / c with c = sqrt(e H / H'), and its weight is multiplied by c. For
  channels that carried nothing this is exact up to the norm's epsilon.
- Embeddings times sqrt(hidden_size): the embedding, and the final norm's inverse if the head is
  tied to it.
- A router's hidden_size ** -0.5, and the scales of latent attention for the rank it comes from.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from edgekit.architecture import (
    Architecture,
    Attention,
    LatentAttention,
    Layer,
    Mixer,
    Norm,
    SelectiveScan,
    ShortConv,
    TensorSpec,
)
from edgekit.distill.slice_config import HEADS_FOLLOW
from edgekit.distill.slice_importance import Array, hidden_norms
from edgekit.errors import BadInputError

Indices = NDArray[np.int64]
Cut = tuple[int, Indices]  # an axis and what stays of it, ascending


@dataclass(frozen=True)
class Scale:
    """``(w + offset) * factor - offset``: the offset is 1 where a norm multiplies by 1 + w."""

    factor: float
    offset: float = 0.0

    def apply(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """The scaled weight, computed in double precision."""
        scaled = (values.astype(np.float64) + self.offset) * self.factor - self.offset
        return scaled.astype(np.float32)


def check_hidden(old: Architecture, new: Architecture, source: str) -> None:
    """Refuse a model in which more than sizes and scales would follow the hidden size.

    Raises:
        BadInputError: names what would.
    """
    otherwise = "slice the feed-forward or leave out layers instead"
    for before, after in zip(old.layers, new.layers, strict=True):
        if isinstance(before.attention, SelectiveScan):
            raise BadInputError(
                f"{source}: layer {before.index} is a Mamba, whose heads follow from hidden_size, "
                f"so hidden channels cannot be sliced; {otherwise}"
            )
        same = _without_hidden(before.attention) == _without_hidden(after.attention)
        if not same or old.model_type in HEADS_FOLLOW:
            raise BadInputError(
                f"{source}: heads of the family {old.model_type} take their size from hidden_size, "
                f"so hidden channels cannot be sliced while the heads stay; {otherwise}"
            )
    if not old.final_norm.weight and old.tie_word_embeddings:
        raise BadInputError(
            f"{source}: the final norm has no weight and the head is the embedding, so nothing can "
            f"make up for a narrower norm; {otherwise}"
        )


def _without_hidden(mixer: Mixer) -> Mixer:
    """A mixer without what may differ."""
    if isinstance(mixer, LatentAttention):
        return replace(mixer, scale=0.0, latent_scale=0.0)
    if isinstance(mixer, ShortConv):
        return replace(mixer, size=0)
    return mixer


def hidden_cuts(
    old: Architecture, new: Architecture, channels: Indices, convolved: Mapping[str, Indices]
) -> dict[str, list[Cut]]:
    """What stays of every tensor with a hidden axis, by name.

    ``old`` and ``new`` differ in their hidden size only; ``channels`` are the hidden channels that
    stay and ``convolved`` the channels of each short convolution, by its output module.
    """
    cuts: dict[str, list[Cut]] = {}
    for layer in old.layers:
        if isinstance(layer.attention, ShortConv):
            kept = convolved[layer.attention.output]
            cuts.update(_convolution_cuts(layer.attention, channels, kept))
    for spec in old.tensors():
        if spec.name in cuts:
            continue
        axes = _changed_axes(spec, new.by_name[spec.name])
        for axis in axes:
            assert spec.shape[axis] == old.hidden_size, spec.name
        if axes:
            cuts[spec.name] = [(axis, channels) for axis in axes]
    return cuts


def _changed_axes(old: TensorSpec, new: TensorSpec) -> list[int]:
    sides = zip(old.shape, new.shape, strict=True)
    return [axis for axis, (before, after) in enumerate(sides) if before != after]


def _convolution_cuts(c: ShortConv, channels: Indices, kept: Indices) -> dict[str, list[Cut]]:
    """b, c and x of a kept channel stay together."""
    thrice = np.concatenate([kept + part * c.size for part in range(3)])
    return {
        c.input + ".weight": [(0, thrice), (1, channels)],
        c.input + ".bias": [(0, thrice)],
        c.kernel + ".weight": [(1, kept)],
        c.kernel + ".bias": [(0, kept)],
        c.output + ".weight": [(0, channels), (1, kept)],
        c.output + ".bias": [(0, channels)],
    }


def hidden_scales(
    old: Architecture, new: Architecture, channels: Indices, energy: Mapping[str, Array]
) -> dict[str, Scale]:
    """The factor of every weight that makes up for the smaller hidden size, by name.

    ``energy`` is each channel's share in what a norm divides by (``Importance.energy``).
    """
    wider = old.hidden_size / new.hidden_size

    def correction(norm: Norm) -> float:
        return float(np.sqrt(wider * energy[norm.module][channels].sum()))

    factors = {norm.module: correction(norm) for norm, _ in hidden_norms(old)}
    scales: dict[str, Scale] = {}
    embedding = old.embedding_scale / new.embedding_scale
    if embedding != 1.0:
        scales[old.embedding + ".weight"] = Scale(embedding)
        if old.tie_word_embeddings:
            factors[old.final_norm.module] /= embedding
            scales[old.final_norm.module + ".bias"] = Scale(1 / embedding)
    for norm, index in hidden_norms(old):
        if norm.weight:
            offset = 1.0 if norm.unit_offset else 0.0
            scales[norm.module + ".weight"] = Scale(factors[norm.module], offset)
        else:
            for reader in _readers(old, norm, index):
                scales[reader + ".weight"] = Scale(factors[norm.module])
    for before, after in zip(old.layers, new.layers, strict=True):
        if before.mixture and before.mixture.router_scale:
            assert before.feed_forward_norm is not None  # reads the same x
            factor = factors[before.feed_forward_norm.module] * wider**-0.5
            scales[before.mixture.router_scale] = Scale(factor)
        scales.update(_latent_scales(before.attention, after.attention))
    return scales


def _readers(architecture: Architecture, norm: Norm, index: int) -> Iterator[str]:
    """Modules that read the result of a norm without a weight."""
    if index < 0:
        yield architecture.head
        return
    layer: Layer = architecture.layers[index]
    if norm == layer.attention_norm:
        assert isinstance(layer.attention, Attention)
        yield from (layer.attention.q, layer.attention.k, layer.attention.v)
    else:
        assert norm == layer.feed_forward_norm and layer.dense is not None
        yield from (module for module in (layer.dense.gate, layer.dense.up) if module)


def _latent_scales(old: Mixer, new: Mixer) -> Iterator[tuple[str, Scale]]:
    """Factors of the norms of queries and latents, where the family scales both."""
    if isinstance(old, LatentAttention) and isinstance(new, LatentAttention):
        if old.scale != new.scale:
            assert old.q_a_norm is not None  # queries without a rank are not scaled
            yield old.q_a_norm.module + ".weight", Scale(old.scale / new.scale)
        if old.latent_scale != new.latent_scale:
            factor = old.latent_scale / new.latent_scale
            yield old.kv_a_norm.module + ".weight", Scale(factor)
