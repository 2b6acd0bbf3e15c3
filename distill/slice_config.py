"""The config of a narrower model: sizes under the keys that state them.

Every size is a multiple of ``multiple_of``, because int4 groups and NPUs want it. Heads stay as
they are, so what a family derives from the hidden size is stated, or the family is refused.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from edgekit.architecture import Architecture
from edgekit.atomic import write_json
from edgekit.config_values import ConfigReader
from edgekit.describe import describe, family_of
from edgekit.errors import BadInputError
from edgekit.families import Family, Key
from edgekit.family_values import lookup
from edgekit.quantize.reference import plain_config

# transformers 5.5 has heads of hidden_size in these, whatever head_dim says
HEADS_FOLLOW = ("cohere2", "helium")
Config = dict[str, Any]


def narrower_size(name: str, size: int, share: float, multiple_of: int, source: str) -> int:
    """``share`` of ``size``, rounded to a multiple; ``size`` itself if that is no less.

    Raises:
        BadInputError: not even one multiple fits.
    """
    if share == 1.0:
        return size
    if size < multiple_of:
        raise BadInputError(
            f"{source}: {name} is {size}, which has no part of a multiple of {multiple_of}; "
            "choose a smaller multiple_of"
        )
    return min(size, max(1, round(size * share / multiple_of)) * multiple_of)


def narrower_feed_forward(
    config: Mapping[str, Any], share: float, multiple_of: int, source: str
) -> Config:
    """``config`` with ``share`` of the neurons of every dense, expert and shared feed-forward."""
    row = family_of(config, source)
    read = ConfigReader(config, source)
    result = copy.deepcopy(dict(config))
    for key in _width_keys(row):
        inner, name = lookup(read, key)
        value = inner.config.get(name, key.default)
        size = value[0] if isinstance(value, list) and value else value
        if type(size) is int and size > 0:
            set_value(result, key, narrower_size(name, size, share, multiple_of, source))
    if not isinstance(row.width, Key) and share != 1.0:
        _set_derived_width(result, share, multiple_of, source)
    return result


def narrower_hidden(
    config: Mapping[str, Any], share: float, multiple_of: int, source: str
) -> Config:
    """``config`` with ``share`` of the hidden channels and the same heads.

    Raises:
        BadInputError: the family cannot say that.
    """
    row = family_of(config, source)
    architecture = describe(config, source)
    size = narrower_size(
        row.hidden_size.names[0], architecture.hidden_size, share, multiple_of, source
    )
    result = copy.deepcopy(dict(config))
    if size == architecture.hidden_size:
        return result
    set_value(result, row.hidden_size, size)
    if not row.attention.latent and row.attention.head_dim.names[0]:
        explicit = _head_dim(row, config, architecture, source)
        set_value(result, row.attention.head_dim, explicit)
    if row.attention.selective_scan:
        # transformers checks them against hidden_size even where no layer is a Mamba
        result |= {"mamba_n_heads": 1, "mamba_d_head": "auto", "mamba_n_groups": 1}
    return result


def _head_dim(
    row: Family, config: Mapping[str, Any], architecture: Architecture, source: str
) -> int:
    inner, name = lookup(ConfigReader(config, source), row.attention.head_dim)
    stated = inner.config.get(name)
    return stated if isinstance(stated, int) and stated else architecture.head_dim


def _width_keys(row: Family) -> Iterator[Key]:
    """Keys that state a number of neurons; those that count shared experts stay."""
    keys = [row.width] if isinstance(row.width, Key) else []
    if row.moe:
        keys += [row.moe.width, *row.moe.shared_width]
    seen = set()
    for key in keys:
        if key.names not in seen and key.names[0].endswith(("_size", "_size_mlp")):
            seen.add(key.names)
            yield key


def _set_derived_width(config: Config, share: float, multiple_of: int, source: str) -> None:
    """LFM2 adjusts the width that it states; the new one is stated as it is."""
    size = describe(config, source).intermediate_size
    narrower = narrower_size("intermediate_size", size, share, multiple_of, source)
    config.pop("block_ff_dim", None)
    config["intermediate_size"] = narrower
    config["block_auto_adjust_ff_dim"] = False


def set_value(config: Config, key: Key, value: int) -> None:
    """Put ``value`` under the name of ``key`` that the config uses, once per layer in a list."""
    used = [name for name in key.names if _holder(config, name).get(_leaf(name)) is not None]
    name = used[0] if used else key.names[0]
    inner = _holder(config, name)
    old = inner.get(_leaf(name))
    inner[_leaf(name)] = [value] * len(old) if isinstance(old, list) else value


def check_with_transformers(config: Mapping[str, Any], source: str) -> None:
    """Ask transformers whether it takes a config, which it checks in ways of its own.

    Raises:
        BadInputError: it does not; llama, for one, wants a multiple of the number of heads.
    """
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig

    with tempfile.TemporaryDirectory() as directory:
        write_json(Path(directory) / "config.json", plain_config(dict(config)))
        try:
            AutoConfig.from_pretrained(directory, trust_remote_code=False)
        except (StrictDataclassError, ValueError, TypeError) as error:
            reason = str(error.__cause__ or error).strip().rstrip(".")
            raise BadInputError(
                f"{source}: transformers would not load the sliced model ({reason}); choose other "
                "sizes or layers"
            ) from error


def _holder(config: Config, name: str) -> Config:
    """The object that holds ``name``, in which dots go into objects."""
    inner = config
    for step in name.split(".")[:-1]:
        inner = inner.setdefault(step, {})
    return inner


def _leaf(name: str) -> str:
    return name.rpartition(".")[2]
