"""Nested models: one weights file whose first experts are smaller models of their own.

A checkpoint whose experts are stored in the order of their worth says so in ``config.json``::

    "edgekit_nested": [8, 6, 4]

These are numbers of experts per layer, the largest first; the first is the checkpoint's own. The
model of size n has the first n experts of every layer and the first n rows of the router, of its
bias, of the correction of its choice and of the factors per expert (and the last rows, where they
are of experts that give their input back); all else is shared. Quantizing
keeps the key; compiling makes graphs of every size over the one weights file, where the bytes of a
prefix lie together (:mod:`edgekit.layout`).
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from edgekit.architecture import Architecture, TensorSpec
from edgekit.errors import BadInputError

NESTED = "edgekit_nested"
MOST_SIZES = 8


def stored_sizes(
    config: Mapping[str, Any], architecture: Architecture, source: str
) -> tuple[int, ...]:
    """The numbers of experts that the models in ``config``'s checkpoint have, largest first.

    Empty where it is not nested. ``source`` names the config in errors.

    Raises:
        BadInputError: the key is malformed, or the model cannot have such prefixes.
    """
    value = config.get(NESTED)
    if value is None:
        return ()
    moe = architecture.moe
    if moe is None:
        raise _bad(source, f"a dense {architecture.model_type} has no experts; remove the key")
    if not isinstance(value, list) or not all(type(n) is int for n in value):
        raise _bad(source, "is not a list of numbers of experts; shrink the model again")
    if not 1 <= len(value) <= MOST_SIZES or value != sorted(set(value), reverse=True):
        raise _bad(
            source, f"{value} is not 1 to {MOST_SIZES} sizes, each smaller than the one before; "
            "shrink the model again",
        )  # fmt: skip
    if value[0] != moe.num_experts:
        raise _bad(
            source, f"begins with {value[0]} but the checkpoint has {moe.num_experts} experts per "
            "layer; remove the key or shrink the original again",
        )  # fmt: skip
    if value[-1] < moe.num_experts_per_tok:
        raise _bad(
            source, f"{value[-1]} is fewer than the {moe.num_experts_per_tok} experts that every "
            "token uses; leave this size out",
        )  # fmt: skip
    _check_prefixes(value, architecture, source)
    return tuple(value)


def _check_prefixes(sizes: list[int], architecture: Architecture, source: str) -> None:
    """Refuse prefixes of experts on whose number or places more depends than their router."""
    moe = architecture.moe
    assert moe is not None
    if len(sizes) > 1 and not architecture.expert_count_keys:
        raise _bad(
            source, f"experts of a {architecture.model_type} cannot be left out, because more than "
            "the mixture depends on their number; remove the key",
        )  # fmt: skip
    if len(sizes) > 1 and moe.top_groups < moe.num_groups:
        raise _bad(
            source, f"the router first chooses {moe.top_groups} of {moe.num_groups} groups of "
            "neighbouring experts, which a prefix would tear apart; remove the key",
        )  # fmt: skip
    for size in sizes:
        if size % moe.num_groups:
            raise _bad(
                source, f"{size} experts do not divide into the router's {moe.num_groups} groups; "
                "leave this size out",
            )  # fmt: skip


def prefix_config(
    config: Mapping[str, Any], architecture: Architecture, experts: int
) -> dict[str, Any]:
    """``config`` of a model with ``experts`` experts in each layer, the first ones or others.

    A config that leaves the number to its family's default gets it under the family's own key.
    """
    result = copy.deepcopy(dict(config))
    result.pop(NESTED, None)
    places = [
        (_object(result, key), key.rpartition(".")[2]) for key in architecture.expert_count_keys
    ]
    stated = [(inner, leaf) for inner, leaf in places if leaf in inner]
    for inner, leaf in stated or places[:1]:
        inner[leaf] = experts
    return result


def _object(config: dict[str, Any], key: str) -> dict[str, Any]:
    """The object of the config that ``key`` is in; made where it is left to defaults."""
    inner = config
    for step in key.split(".")[:-1]:
        inner = inner.setdefault(step, {})
    return inner


def rows_of(stored: int, spec: TensorSpec, architecture: Architecture) -> list[slice]:
    """The rows of a router's tensor ``spec`` that ``architecture`` has, in a file with ``stored``.

    They are the first ones; behind them stand the rows of identity experts, which every size has.
    """
    mixture, wanted = architecture.layers[spec.layer].mixture, spec.shape[0]
    if mixture is None or wanted == stored:
        return [slice(0, wanted)]
    behind = 0 if spec.name == mixture.expert_scale else mixture.num_identities
    first = slice(0, wanted - behind)
    return [first, slice(stored - behind, stored)] if behind else [first]


def _bad(source: str, what: str) -> BadInputError:
    return BadInputError(f"{source}: {NESTED}: {what}")
