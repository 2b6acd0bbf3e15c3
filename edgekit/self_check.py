"""A variant checks itself without PyTorch, against a few log-probabilities stored at its build.

``reference.json`` holds a short prompt, the reference's most likely tokens at each position with
their log-probabilities, and how far every target was from them on the machine that built it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from edgekit.atomic import write_json
from edgekit.checkpoint import read_config
from edgekit.describe import describe
from edgekit.errors import BadInputError
from edgekit.evaluate import log_softmax
from edgekit.parity import compiled_targets, open_session
from edgekit.parity_cases import Case, Float, run_case
from edgekit.rules import TARGETS

FILE_NAME = "reference.json"
CASE = "decode"  # a prompt, then token by token: both of a graph's ways
TOP = 8
SLACK, FACTOR = 0.02, 3.0  # a machine may be off by so much, or so many times the builder's


class StoredReference(BaseModel):
    """The most likely tokens [positions][TOP] and their log-probabilities in nats.

    ``deviation`` is what each target's graph, as shipped, was off by when it was built, on the CPU
    of that machine: the mean absolute difference of those log-probabilities.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    tokens: list[int]
    prefill: int
    top_tokens: list[list[int]]
    log_probabilities: list[list[float]]
    deviation: dict[str, float]


class SelfCheck(BaseModel):
    """One target of a variant on this machine; ``failure`` is empty when it is right.

    ``num_experts`` are those of each layer, 0 for a dense model.
    """

    model_config = ConfigDict(frozen=True)

    target: str
    num_experts: int = 0
    top1_agreement: float
    deviation: float
    built_deviation: float
    failure: str = ""


def write_reference(
    variant: Path, expected: Sequence[tuple[Case, list[Float]]], targets: Sequence[str]
) -> None:
    """Store what the reference said in ``variant``."""
    case, rows = next((case, rows) for case, rows in expected if case.name == CASE)
    likely = log_softmax(rows[0])
    top = np.argsort(-likely, axis=-1, kind="stable")[:, :TOP]
    stored = StoredReference(
        tokens=list(case.rows[0]),
        prefill=case.prefill[0],
        top_tokens=top.tolist(),
        log_probabilities=_rounded(np.take_along_axis(likely, top, -1)),
        deviation={},
    )
    measured = {t: round(_run(variant, t, stored)[1], 4) for t in compiled_targets(variant)}
    of_runtime = {TARGETS[t].runtime: value for t, value in measured.items()}
    built = measured | {t: of_runtime[TARGETS[t].runtime] for t in targets}
    complete = stored.model_copy(update={"deviation": built})
    write_json(variant / FILE_NAME, complete.model_dump(mode="json"))


def _rounded(values: np.ndarray) -> list[list[float]]:
    return [[round(float(v), 4) for v in row] for row in values]


def read_reference(variant: Path) -> StoredReference:
    """The stored reference of a variant.

    Raises:
        BadInputError: it has none, or it is damaged.
    """
    path = variant / FILE_NAME
    try:
        return StoredReference.model_validate_json(path.read_bytes())
    except OSError:
        raise BadInputError(
            f"{path} is missing: the variant was compiled without a reference; compile it again "
            "where torch and transformers are installed"
        ) from None
    except ValidationError as error:
        raise BadInputError(f"{path}: not a stored reference; get the pack again") from error


def check_variant(variant: Path, targets: Sequence[str]) -> list[SelfCheck]:
    """Run every target of ``variant`` on its device and compare with the stored reference."""
    stored = read_reference(variant)
    return [_check(variant, target, stored) for target in targets]


def _check(variant: Path, target: str, stored: StoredReference) -> SelfCheck:
    agreement, deviation = _run(variant, target, stored, TARGETS[target].device)
    if target not in stored.deviation:
        raise BadInputError(
            f"{variant / FILE_NAME}: says nothing of {target}; compile the variant for it"
        )
    built = stored.deviation[target]
    limit = max(FACTOR * built, built + SLACK)
    failure = ""
    if not deviation <= limit:  # also NaN
        failure = (
            f"its log-probabilities are off by {deviation:.3f} nats, {built:.3f} where it was "
            f"built; update the driver of {TARGETS[target].device} or use another device"
        )
    moe = describe(read_config(variant)).moe
    return SelfCheck(
        target=target, num_experts=moe.num_experts if moe else 0, top1_agreement=agreement,
        deviation=deviation, built_deviation=built, failure=failure,
    )  # fmt: skip


def _run(
    variant: Path, target: str, stored: StoredReference, device: str = "CPU"
) -> tuple[float, float]:
    """Top-1 agreement, and the mean absolute difference of the stored log-probabilities."""
    count = len(stored.tokens)
    case = Case(CASE, (tuple(stored.tokens),), (stored.prefill,), decode=count - stored.prefill)
    found = log_softmax(run_case(open_session(variant, target, device), case)[0])
    top = np.array(stored.top_tokens)
    difference = np.take_along_axis(found, top, -1) - np.array(stored.log_probabilities)
    agreement = float((found.argmax(-1) == top[:, 0]).mean())
    return agreement, float(np.abs(difference).mean())
