"""The config of a model that lacks some layers.

Counts, lists and layer numbers of the config are adjusted; where layers follow a rule ("every
fourth sees everything"), what each kept layer is gets listed instead. The new config is then
resolved like any other, and every kept layer has to be exactly what it was: its attention, window
and positions, its state, dense or sparse. What the family's config cannot say is refused.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from edgekit.architecture import Architecture, Attention, Layer
from edgekit.describe import describe, family_of
from edgekit.distill.slice_config import Config, set_value
from edgekit.errors import BadInputError
from edgekit.families import Family, Key
from edgekit.layer_patterns import rotated_where_listed, sparse_by_step, sparse_where_listed

# one value per layer
PER_LAYER = ("layer_types", "layers_block_type", "mlp_layer_types", "no_rope_layers")
# numbers of layers
NUMBERED = ("mlp_only_layers", "moe_layers", "full_attn_idxs")
# the first layer of another kind
FIRST = ("first_k_dense_replace", "num_dense_layers", "max_window_layers", "moe_layer_start_index")
# the last layer of a kind, -1 for the last of all
LAST = ("moe_layer_end_index",)


def without_layers(config: Mapping[str, Any], removed: range, source: str) -> Config:
    """``config`` without the layers ``removed``, numbered as the config does.

    Raises:
        BadInputError: no config of the family says what the rest is.
    """
    row, old = family_of(config, source), describe(config, source)
    count = len(old.layers) // row.names.parts
    kept = [i for i in range(count) if i not in removed]
    layers = [old.layers[i] for i in graph_layers(kept, row.names.parts)]
    adjusted = _adjusted(config, row, kept, count)
    for attempt in (adjusted, adjusted | _listed(row, layers)):
        try:
            new = describe(attempt, source)
        except BadInputError:  # such as a list of which nothing is left that it needs
            continue
        if kinds(new, row) == [kind(layer, row) for layer in layers]:
            return attempt
    raise BadInputError(
        f"{source}: without the layers {removed.start} to {removed.stop - 1} no config of the "
        f"family {old.model_type} says what the others are; remove another block"
    )


def graph_layers(numbers: Sequence[int], parts: int) -> list[int]:
    """The layers of an :class:`Architecture` for the layers of its config."""
    return [number * parts + part for number in numbers for part in range(parts)]


def kinds(architecture: Architecture, row: Family) -> list[str]:
    """What each layer is, whatever its number."""
    return [kind(layer, row) for layer in architecture.layers]


def kind(layer: Layer, row: Family) -> str:
    """Everything that is known of a layer except where it stands."""
    return repr(replace(layer, index=0)).replace(row.names.inside(layer.index), "")


def _adjusted(config: Mapping[str, Any], row: Family, kept: list[int], count: int) -> Config:
    """The config with every count, list and number of layers set to the kept ones."""
    result = copy.deepcopy(dict(config))
    set_value(result, row.layers, len(kept))
    if "num_hidden_layers" in result and "num_hidden_layers" not in row.layers.names:
        result["num_hidden_layers"] = len(kept) * row.names.parts  # as transformers counts them
    for name in (*PER_LAYER, *_listed_sizes(result, row)):
        values = result.get(name)
        if isinstance(values, list):  # what follows the last layer belongs to further predictions
            result[name] = [values[i] for i in kept if i < len(values)] + values[count:]
    for name in NUMBERED:
        if isinstance(result.get(name), list):
            result[name] = [kept.index(i) for i in result[name] if i in kept]
    for name in FIRST:
        if type(result.get(name)) is int:
            result[name] = sum(i < result[name] for i in kept) + max(0, result[name] - count)
    for name in LAST:
        if type(result.get(name)) is int and result[name] != -1:
            result[name] = sum(i <= result[name] for i in kept) - 1
    return result


def _listed_sizes(config: Config, row: Family) -> list[str]:
    """Sizes that the config lists once per layer."""
    keys = [row.width] if isinstance(row.width, Key) else []
    if row.moe:
        keys += [row.moe.width, row.moe.num_experts, row.moe.top_k, *row.moe.shared_width]
    names = {name for key in keys for name in key.names}
    return [name for name in sorted(names) if isinstance(config.get(name), list)]


def _listed(row: Family, layers: list[Layer]) -> Config:
    """What the layers are, in the lists with which a config of the family says it."""
    result: Config = {}
    spec = row.attention
    attends = [isinstance(layer.attention, Attention) for layer in layers]
    other = "linear_attention" if spec.gated_delta else "conv" if spec.short_conv else ""
    if other:
        result["layer_types"] = ["full_attention" if a else other for a in attends]
    elif spec.windowed:
        result["layer_types"] = [
            "sliding_attention" if layer.attention.window else "full_attention"
            for layer in layers
            if isinstance(layer.attention, Attention)
        ]
    if spec.rotated is rotated_where_listed:
        result["no_rope_layers"] = [
            int(isinstance(layer.attention, Attention) and layer.attention.rope is not None)
            for layer in layers
        ]
    sparse = [i for i, layer in enumerate(layers) if layer.mixture]
    dense = [i for i, layer in enumerate(layers) if not layer.mixture]
    if row.moe and row.moe.sparse is sparse_by_step:
        result |= {"decoder_sparse_step": 1, "mlp_only_layers": dense}
    if row.moe and row.moe.sparse is sparse_where_listed:
        result["moe_layers"] = sparse
    return result
