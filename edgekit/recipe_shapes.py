"""The tables that give a student another shape before it is trained: dense, narrower, shallower."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from edgekit.recipe_section import Fraction, Section, contradiction


class DenseSection(Section):
    """``[dense]``: what ``[shrink]`` or ``[student]`` gave, or the teacher, as a dense model."""

    choice: Literal["do_acp", "acp", "cp", "frequency", "random", "neurons"] = Field(
        "do_acp", description="whole experts by what they are worth, or the best neurons of all"
    )
    experts: int = Field(0, ge=0, description="per layer; 0: as many as a token uses")
    neurons: int = Field(0, ge=0, description='per layer, with choice = "neurons"')
    scaling: Literal["uniform", "marginal", "fitted", "auto"] = Field(
        "auto", description="the constants that stand for gates; auto: measured on held-out text"
    )
    family: str = Field("", description="the dense family, where there are several")
    multiple_of: int = Field(128, ge=1, le=65_536, description="of the feed-forward's width")
    warm_up: int = Field(
        0, ge=0, le=10**6, description="steps in which every layer learns what its mixture said"
    )
    seed: int = Field(0, ge=0, lt=2**32)


class SliceSection(Section):
    """``[slice]``: what the tables before gave, narrower or shallower."""

    feed_forward: Fraction = Field(1.0, description="share of the neurons that stays")
    hidden: Fraction = Field(1.0, description="share of the hidden channels that stays")
    layers: int = Field(0, ge=0, description="layers to leave out, as one block")
    multiple_of: int = Field(128, ge=1, le=65_536, description="of every width")

    @model_validator(mode="after")
    def _takes_something_away(self) -> SliceSection:
        if (self.feed_forward, self.hidden, self.layers) == (1.0, 1.0, 0):
            raise contradiction("nothing to slice; set feed_forward, hidden or layers")
        return self
