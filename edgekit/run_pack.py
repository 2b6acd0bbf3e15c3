"""Make a pack from the steps of a finished run, without running them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edgekit.checkpoint import read_json
from edgekit.errors import BadInputError
from edgekit.evaluate import EvaluationReport
from edgekit.gates import check_gates, require_gates
from edgekit.make_pack import make_pack
from edgekit.manifest import Manifest
from edgekit.progress import Progress
from edgekit.recipe import load_recipe
from edgekit.run_directory import INPUTS, RECIPE, STEP_FILE
from edgekit.steps import plan_steps, step_digest


def pack_run(run: Path, out: Path, overrides: Sequence[str], progress: Progress) -> Manifest:
    """Write the pack of ``run`` into the empty directory ``out``.

    Raises:
        BadInputError: ``run`` is not a run directory, or a step is unfinished.
        GateFailedError: a gate does not hold and is not overridden.
    """
    if not (run / RECIPE).is_file():
        raise BadInputError(f"{run}: not a run directory; make one with `edgekit build`")
    recipe = load_recipe(run / RECIPE)
    records: dict[str, dict[str, Any]] = {}
    digests = {name: str(value) for name, value in read_json(run / INPUTS).items()}
    for number, step in enumerate(plan_steps(recipe), 1):
        file = run / f"{number:02d}-{step.name}" / STEP_FILE
        digests[step.name] = step_digest(step, digests)
        records[step.name] = read_json(file) if file.is_file() else {}
        if records[step.name].get("digest") != digests[step.name]:
            raise BadInputError(
                f"{run}: the step {step.name} is not finished for its recipe and this edgekit; run "
                "`edgekit build` again"
            )
        if step.name == "compile":
            variant = file.parent
    evaluation = EvaluationReport.model_validate(records["evaluate"]["report"])
    gates = check_gates(recipe.gates, evaluation, overrides)
    require_gates(gates)
    return make_pack(recipe, variant, digests["teacher"], records, evaluation, gates, out, progress)
