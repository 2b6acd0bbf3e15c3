"""Which layers of a model are sparse, windowed or rotated, as its ``config.json`` says it."""

from __future__ import annotations

from collections.abc import Collection
from typing import TypeVar

from edgekit.config_values import ConfigReader
from edgekit.families import Pattern

T = TypeVar("T")
ATTENTIONS = ("sliding_attention", "full_attention", "chunked_attention", "attention")


def listed(read: ConfigReader, name: str, layers: int, kind: type[T]) -> list[T] | None:
    """The list ``name`` of the config with one ``kind`` per layer; None when it is absent.

    Raises:
        BadInputError: it is not such a list.
    """
    value = read.config.get(name)
    if value is None:
        return None
    wrong = not isinstance(value, list) or len(value) < layers
    if wrong or any(type(item) is not kind for item in value):
        raise read.bad(name, f"is not a list of {layers} values of type {kind.__name__}")
    return list(value[:layers])


def kinds(
    read: ConfigReader, name: str, layers: int, allowed: Collection[str]
) -> tuple[str, ...] | None:
    """The list ``name`` of the config, one of ``allowed`` per layer; None when it is absent.

    Raises:
        BadInputError: it is not such a list.
    """
    found = listed(read, name, layers, str)
    if found is None:
        return None
    for kind in found:
        if kind not in allowed:
            expected = " or ".join(sorted(allowed))
            raise read.bad(name, f"has {kind!r} layers, this family has {expected}")
    return tuple(found)


def numbered(read: ConfigReader, name: str) -> list[int] | None:
    """The layer numbers that the config lists as ``name``; None when it is absent.

    Raises:
        BadInputError: it is not such a list.
    """
    value = read.config.get(name)
    if value is None:
        return None
    if not isinstance(value, list) or any(type(item) is not int for item in value):
        raise read.bad(name, "is not a list of layer numbers")
    return list(value)


def in_every_layer(read: ConfigReader, layers: int) -> tuple[bool, ...]:
    """All layers."""
    return (True,) * layers


def _types(read: ConfigReader, layers: int) -> tuple[bool, ...] | None:
    types = kinds(read, "layer_types", layers, ATTENTIONS)
    if types is None:
        return None
    return tuple(kind == "sliding_attention" for kind in types)


def windowed_but_every(name: str, count: int) -> Pattern:
    """All layers but every n-th; n is the config's ``name`` or ``count``, or ``layer_types``."""

    def pattern(read: ConfigReader, layers: int) -> tuple[bool, ...]:
        types = _types(read, layers)
        if types is not None:
            return types
        value = read.config.get(name)
        if isinstance(value, str):  # EXAONE spells it: "LLLG"
            return tuple(value[i % len(value)] == "L" for i in range(layers))
        every = read.count(name, default=count)
        return tuple((i + 1) % every != 0 for i in range(layers))

    return pattern


def windowed_but_first_of_four(read: ConfigReader, layers: int) -> tuple[bool, ...]:
    """CWM: ``layer_types``, or all layers but the first of every four."""
    return _types(read, layers) or tuple(i % 4 != 0 for i in range(layers))


def windowed_where_used(read: ConfigReader, layers: int) -> tuple[bool, ...]:
    """Qwen: from layer ``max_window_layers`` on, if ``use_sliding_window``."""
    if not read.flag("use_sliding_window", default=False):
        return (False,) * layers
    first = read.whole("max_window_layers", default=28)
    return _types(read, layers) or tuple(i >= first for i in range(layers))


def windowed_after(read: ConfigReader, layers: int) -> tuple[bool, ...]:
    """dots.llm1: from layer ``max_window_layers`` on."""
    types = _types(read, layers)
    first = read.whole("max_window_layers", default=62)
    return types if types is not None else tuple(i >= first for i in range(layers))


def windowed_if_used(read: ConfigReader, layers: int) -> tuple[bool, ...]:
    """Every layer, if ``use_sliding_window``."""
    return (read.flag("use_sliding_window", default=False),) * layers


def windowed_even(read: ConfigReader, layers: int) -> tuple[bool, ...]:
    """Qwen2-MoE: every second layer before ``max_window_layers``, if ``use_sliding_window``."""
    if not read.flag("use_sliding_window", default=False):
        return (False,) * layers
    last = read.whole("max_window_layers", default=28)
    return _types(read, layers) or tuple(i % 2 == 0 and i < last for i in range(layers))


def windowed_where_not_rotated(read: ConfigReader, layers: int) -> tuple[bool, ...]:
    """SmolLM3: the layers without rotary positions, if ``use_sliding_window``."""
    types = _types(read, layers)
    if types is not None:
        return types
    used = read.flag("use_sliding_window", default=False)
    return tuple(used and not rotated for rotated in rotated_where_listed(read, layers))


def rotated_where_listed(read: ConfigReader, layers: int) -> tuple[bool, ...]:
    """Layers whose ``no_rope_layers`` is 1, or all but every ``no_rope_layer_interval``-th."""
    flags = listed(read, "no_rope_layers", layers, int)
    if flags:
        return tuple(bool(flag) for flag in flags)
    every = read.count("no_rope_layer_interval", default=4)
    return tuple((i + 1) % every != 0 for i in range(layers))


def rotated_where_windowed(windowed: Pattern) -> Pattern:
    """The windowed layers; all where the model has no window."""

    def pattern(read: ConfigReader, layers: int) -> tuple[bool, ...]:
        if read.config.get("sliding_window", 0) is None:
            return (True,) * layers
        return windowed(read, layers)

    return pattern


def linear_where_listed(read: ConfigReader, layers: int) -> tuple[bool, ...]:
    """Qwen3-Next: ``layer_types``, or all but every ``full_attention_interval``-th layer."""
    types = kinds(read, "layer_types", layers, ("linear_attention", "full_attention"))
    if types is not None:
        return tuple(kind == "linear_attention" for kind in types)
    every = read.count("full_attention_interval", default=4)
    return tuple((i + 1) % every != 0 for i in range(layers))


def convolved_where_listed(read: ConfigReader, layers: int) -> tuple[bool, ...]:
    """LFM2: ``layer_types`` "conv", or all layers that ``full_attn_idxs`` leaves out."""
    types = kinds(read, "layer_types", layers, ("conv", "full_attention"))
    if types is not None:
        return tuple(kind == "conv" for kind in types)
    attended = numbered(read, "full_attn_idxs")
    if attended is None:
        return (False,) * layers
    return tuple(i not in attended for i in range(layers))


def sparse_from(name: str, default: int) -> Pattern:
    """Layers from the config's ``name`` on."""

    def pattern(read: ConfigReader, layers: int) -> tuple[bool, ...]:
        types = kinds(read, "mlp_layer_types", layers, ("sparse", "dense"))
        if types is not None:
            return tuple(kind == "sparse" for kind in types)
        first = read.whole(name, default=default)
        return tuple(i >= first for i in range(layers))

    return pattern


def sparse_by_step(read: ConfigReader, layers: int) -> tuple[bool, ...]:
    """Qwen: every ``decoder_sparse_step``-th layer that is not in ``mlp_only_layers``."""
    step = read.count("decoder_sparse_step", default=1)
    dense = numbered(read, "mlp_only_layers") or []
    return tuple(i not in dense and (i + 1) % step == 0 for i in range(layers))


def sparse_in_range(read: ConfigReader, layers: int) -> tuple[bool, ...]:
    """ERNIE: every ``moe_layer_interval``-th layer from ``moe_layer_start_index`` to the end."""
    first = read.whole("moe_layer_start_index", default=1)
    last = read.config.get("moe_layer_end_index", -1)
    if type(last) is not int:
        raise read.bad("moe_layer_end_index", "is not a layer number")
    last = layers - 1 if last == -1 else last
    step = read.count("moe_layer_interval", default=1)
    return tuple((i + 1) % step == 0 and first <= i <= last for i in range(layers))


def sparse_where_listed(read: ConfigReader, layers: int) -> tuple[bool, ...]:
    """Llama 4: ``moe_layers``, or every ``interleave_moe_layer_step``-th."""
    chosen = numbered(read, "moe_layers")
    if chosen is not None:
        return tuple(i in chosen for i in range(layers))
    step = read.count("interleave_moe_layer_step", default=1)
    return tuple((i + 1) % step == 0 for i in range(layers))
