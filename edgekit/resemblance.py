"""Which families an unknown checkpoint could be, by its config and the shapes of its tensors."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from reprlib import repr as brief  # an absurd value must not fill the screen
from typing import Any

from edgekit.describe import describe
from edgekit.errors import BadInputError
from edgekit.family_table import FAMILIES, REFUSED

SHOWN = 3


def is_unknown(config: Mapping[str, Any]) -> bool:
    """Whether no row of the table, and no refusal, is about the config's ``model_type``."""
    if config.get("edgekit_family"):
        return False
    name = config.get("model_type")
    return not (isinstance(name, str) and (name in FAMILIES or name in REFUSED))


def resembling(config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
    """Families whose tensors, for this config, are exactly the stored ones in name and shape.

    The same tensors can mean different arithmetic (an activation, a scale, a router's function),
    so a resemblance is a question to the user, never an answer.
    """
    found = []
    for name in FAMILIES:
        try:
            architecture = describe(config, family=name)
        except BadInputError:
            continue
        wanted = {spec.source.tensor: spec.source.shape for spec in architecture.tensors()}
        rest = shapes.keys() - wanted.keys()
        known = len(architecture.without(rest)) == len(rest)
        if known and all(shapes.get(n) == shape for n, shape in wanted.items()):
            found.append(name)
    return found


def unknown_family(
    directory: Path, config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]
) -> BadInputError:
    """The refusal of a checkpoint of an unknown family, with the families it resembles."""
    source = directory / "config.json"
    name = config.get("model_type")
    similar = resembling(config, shapes)
    if not similar:
        return BadInputError(
            f"{source}: model_type {brief(name)} is not supported and its tensors are those of no "
            "known family; see `edgekit inspect --families`"
        )
    code = " and brings code (auto_map), which edgekit never runs" if config.get("auto_map") else ""
    named = ", ".join(similar[:SHOWN])
    return BadInputError(
        f"{source}: model_type {brief(name)} is not known{code}; its tensors are those of "
        f"{named}: if it is one, say --as {similar[0]}"
    )
