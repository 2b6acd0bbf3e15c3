"""What the tables of a recipe are made of."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

DivergenceName = Literal[
    "forward_kl", "reverse_kl", "jsd", "skew_forward", "skew_reverse", "total_variation"
]


class Section(BaseModel):
    """Base of every table of a recipe: strict about keys and types, and immutable."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)
