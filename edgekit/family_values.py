"""Values of a family's row, read from a config where the row names a key."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgekit.config_values import MAX_COUNT, ConfigReader
from edgekit.families import Key

ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "relu": "relu",
    "relu2": "relu2",
}


def lookup(read: ConfigReader, key: Key) -> tuple[ConfigReader, str]:
    """A reader and a plain name under which the value of ``key`` is found, if anywhere."""
    for name in key.names:
        *path, leaf = name.split(".")
        inner: Any = read.config
        for step in path:
            inner = inner.get(step) if isinstance(inner, Mapping) else None
        if not isinstance(inner, Mapping) or leaf not in inner:
            continue
        if inner[leaf] is not None or key.null is not None:
            value = key.null if inner[leaf] is None else inner[leaf]
            return ConfigReader({**inner, leaf: value}, ": ".join([read.source, *path])), leaf
    return ConfigReader({}, read.source), key.names[0]


def width(read: ConfigReader, key: Key, maximum: int = MAX_COUNT) -> int:
    """A positive size; a list of equal sizes, one per layer, counts as one."""
    inner, name = lookup(read, key)
    value = inner.config.get(name)
    if isinstance(value, list) and value and all(item == value[0] for item in value):
        inner = ConfigReader({name: value[0]}, inner.source)
    return inner.count(name, default=key.default, maximum=maximum)


def whole(read: ConfigReader, key: Key) -> int:
    """A size that may be 0."""
    inner, name = lookup(read, key)
    return inner.whole(name, default=key.default)


def number(read: ConfigReader, value: float | Key) -> float:
    """A number of the row, or of the config."""
    if not isinstance(value, Key):
        return value
    inner, name = lookup(read, value)
    return inner.number(name, default=value.default, low=-1e9, high=1e9)


def norm_epsilon(read: ConfigReader, value: float | Key) -> float:
    """The small number that keeps a norm finite."""
    if not isinstance(value, Key):
        return value
    inner, name = lookup(read, value)
    return inner.number(name, default=value.default, low=0.0, high=1.0)


def flag(read: ConfigReader, value: bool | Key) -> bool:
    """A yes or no of the row, or of the config."""
    if not isinstance(value, Key):
        return value
    inner, name = lookup(read, value)
    return inner.flag(name, default=bool(value.default))


def activation(read: ConfigReader, key: Key) -> str:
    """The activation function: "silu", "gelu", "gelu_tanh", "relu" or "relu2".

    Raises:
        BadInputError: the config names another one.
    """
    inner, name = lookup(read, key)
    value = inner.text(name, default=str(key.default))
    if value not in ACTIVATIONS:
        raise inner.bad(name, f"{value!r} is not supported; {', '.join(ACTIVATIONS)} are")
    return ACTIVATIONS[value]
