"""Options that the verbs of ``edgekit shrink`` share, and the text that they ask for."""

from __future__ import annotations

from typing import Annotated

import typer

from edgekit.recipe import DataSection, checked

Data = Annotated[list[str] | None, typer.Option("--data", help=".txt, .jsonl, .parquet.")]
Tokens = Annotated[int, typer.Option(help="Calibration tokens.")]
HeldOut = Annotated[int, typer.Option(help="Tokens to measure on.")]
Length = Annotated[int, typer.Option(help="Tokens per sequence.")]
Streamed = Annotated[
    bool, typer.Option("--streamed", help="A layer in memory at a time, even if all would fit.")
]


def sampling(
    data: list[str] | None, tokens: int, held_out_tokens: int, sequence_length: int, seed: int
) -> DataSection:
    """The text that the options ask for."""
    return checked(
        DataSection, files=tuple(data or ()), tokens=tokens, held_out_tokens=held_out_tokens,
        sequence_length=sequence_length, seed=seed,
    )  # fmt: skip
