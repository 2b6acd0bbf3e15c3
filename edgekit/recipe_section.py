"""What the tables of a recipe are made of."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field
from pydantic_core import PydanticCustomError

DivergenceName = Literal[
    "forward_kl", "reverse_kl", "jsd", "skew_forward", "skew_reverse", "total_variation"
]
Fraction = Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)]
CONTRADICTION = "contradiction"  # the type of an error that edgekit found, its sentence whole


def contradiction(sentence: str) -> PydanticCustomError:
    """For a validator to raise; ``sentence`` says what is wrong and what to do."""
    return PydanticCustomError(CONTRADICTION, "{sentence}", {"sentence": sentence})


class Section(BaseModel):
    """Base of every table of a recipe: strict about keys and types, and immutable."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)
