"""What ``benchmarks/families.py`` measures and keeps in its JSON."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

Outcome = Literal["ok", "refused", "wrong", "timeout"]
COLUMNS = (
    "edgekit (openvino-cpu)",
    "edgekit (onnx-cpu)",
    "optimum-intel",
    "genai builder",
)
OURS = COLUMNS[:2]


class Result(BaseModel):
    """One tool on one family. The agreement is absent where no graph ran."""

    model_config = ConfigDict(frozen=True)

    outcome: Outcome
    reason: str = ""
    seconds: float = 0.0  # of the work, by the clock
    cpu_seconds: float = 0.0
    imports_mb: float = 0.0
    growth_mb: float = 0.0  # from the end of the imports to the peak
    top1: float | None = None  # share of the positions without a tie
    kl_prefill: float | None = None  # nats/token, mean of the prompt
    kl_decode: float | None = None
    max_kl: float | None = None


class Row(BaseModel):
    """One family; ``results`` and ``int4`` by column."""

    model_config = ConfigDict(frozen=True)

    sparse: bool
    results: dict[str, Result] = {}
    int4: dict[str, Result] = {}
    no_reference: str = ""  # why there is nothing to compare with


class Results(BaseModel):
    """The whole file."""

    date: str = ""
    families: dict[str, Row] = {}
