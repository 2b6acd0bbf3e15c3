"""Gates: measured conditions of the recipe that must hold before a pack is made."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from edgekit.errors import BadInputError, GateFailedError
from edgekit.evaluate import EvaluationReport
from edgekit.manifest import GateResult
from edgekit.recipe import GatesSection

Measure = Callable[[EvaluationReport], list[float]]


@dataclass(frozen=True)
class Gate:
    """A gate of the recipe: ``measure`` gives one value per target, the worst one counts."""

    field: str
    measure: Measure
    unit: str

    @property
    def is_maximum(self) -> bool:
        """Whether the limit bounds from above."""
        return self.field.startswith("max_")


def _speeds(report: EvaluationReport, name: str) -> list[float]:
    return [float(getattr(r.speed, name)) for r in report.results if r.speed]


GATES: tuple[Gate, ...] = (
    Gate("max_kl", lambda r: [t.quality["all"].kl.value for t in r.results], "nats per token"),
    Gate(
        "min_top1_agreement",
        lambda r: [t.quality["all"].top1_agreement.value for t in r.results], "",
    ),
    Gate(
        "max_perplexity_ratio",
        lambda r: [
            t.quality["all"].perplexity.value / t.quality["all"].teacher_perplexity.value
            for t in r.results
        ], "times the teacher's",
    ),
    Gate("min_tokens_per_second", lambda r: _speeds(r, "tokens_per_second"), "tokens/s"),
    Gate("max_time_to_first_token_ms", lambda r: _speeds(r, "time_to_first_token_ms"), "ms"),
    Gate("max_size_mb", lambda r: [r.size_bytes / 1e6], "MB"),
)  # fmt: skip


def known_gates(limits: GatesSection, overrides: Sequence[str]) -> None:
    """Refuse an override that names no gate of the recipe.

    Raises:
        BadInputError: names those that it sets.
    """
    known = [g.field for g in GATES if getattr(limits, g.field) is not None]
    for name in overrides:
        if name not in known:
            raise BadInputError(
                f"--override-gate {name}: the recipe sets no such gate; it sets "
                f"{', '.join(known) or 'none'}"
            )


def check_gates(
    limits: GatesSection, report: EvaluationReport, overrides: Sequence[str] = ()
) -> list[GateResult]:
    """Every gate that the recipe sets, passed or not.

    Raises:
        BadInputError: an override names no gate of the recipe, or a gate has nothing to judge.
    """
    known_gates(limits, overrides)
    results = []
    for gate in GATES:
        limit = getattr(limits, gate.field)
        if limit is None:
            continue
        # NaN compares as false with everything: sorted first, it is the worst value and fails
        values = sorted(gate.measure(report), key=lambda v: (not math.isnan(v), v))
        if not values:
            raise BadInputError(
                f"[gates] {gate.field}: nothing was measured that it could judge; remove it or "
                "name a target that this machine can run"
            )
        measured = values[-1] if gate.is_maximum and not math.isnan(values[0]) else values[0]
        passed = measured <= limit if gate.is_maximum else measured >= limit
        waived = not passed and gate.field in overrides
        results.append(
            GateResult(
                name=gate.field, limit=limit, measured=measured, passed=passed, overridden=waived
            )
        )
    return results


def require_gates(results: Sequence[GateResult]) -> None:
    """Stop unless every gate passed or was overridden.

    Raises:
        GateFailedError: names each failed gate and by how much.
    """
    units = {g.field: g.unit for g in GATES}
    failed = [r for r in results if not r.passed and not r.overridden]
    if failed:
        misses = "; ".join(
            f"{r.name} is {r.measured:.4g} {units[r.name]}".rstrip()
            + f", limit {r.limit:.4g} (missed by {abs(r.measured - r.limit) / r.limit:.1%})"
            for r in failed
        )
        flags = " ".join(f"--override-gate {r.name}" for r in failed)
        raise GateFailedError(
            f"gate failed: {misses}; improve the recipe, or accept it with `{flags}`"
        )
