"""What each way to choose experts costs on a real model, and whether ``auto`` finds the best.

    python benchmarks/shrink_criteria.py TEACHER [--work DIR] [--merge] [--json FILE]

TEACHER is a sparse checkpoint with a tokenizer, such as the one of `edgekit demo`. It continues
edgekit's prompts of six domains; half of the held-out sequences are for ``auto`` to choose on, the
other half for the table, so no row has seen the text that it is judged by. KL to the teacher in
nats per token with 95 % intervals over sequences, at 75 % and 50 % of the experts, worst domain
first; random keep-sets are the control. "tied": not told from the best row of the criteria on the
worst domain by resampling both on the same sequences. About forty minutes on two cores, two hours
with ``--merge``.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import get_args

import torch

from edgekit.distill.automatic import Candidate, choose_by_measurement
from edgekit.distill.calibration import make_sequences
from edgekit.distill.collect import collect
from edgekit.distill.criteria import CRITERIA
from edgekit.distill.divergence import Measured, RememberedTargets, measure, remember
from edgekit.distill.keep import choose, super_experts
from edgekit.distill.masked import measure_masked
from edgekit.distill.merge import merge
from edgekit.distill.merge_groups import Method
from edgekit.distill.merge_pass import MergeOptions
from edgekit.distill.open_model import OpenModel, open_model
from edgekit.distill.statistics import Statistics
from edgekit.progress import Progress, default_progress
from edgekit.recipe import DataSection
from edgekit.sequences import FILE_NAME, TokenSequence, read_sequences

TEXT = DataSection(tokens=12_288, held_out_tokens=12_288, sequence_length=128, seed=11)
SHARES = (0.75, 0.5)
RANDOM_MASKS = 4
AUTO = "auto"


@dataclass(frozen=True)
class Row:
    """One way at one size."""

    keep: int
    method: str
    kind: str  # criterion, control, auto or merging
    measured: Measured


@dataclass(frozen=True)
class Bench:
    """The opened teacher, its statistics and its answers to two halves of the held-out text."""

    teacher: Path
    opened: OpenModel
    text: list[TokenSequence]
    statistics: Statistics
    choosing: RememberedTargets
    judging: RememberedTargets
    work: Path
    progress: Progress


def make_text(teacher: Path, work: Path, progress: Progress) -> list[TokenSequence]:
    """The text, made unless ``work`` has it."""
    if not (work / FILE_NAME).is_file():
        (work / "text").mkdir(exist_ok=True)
        make_sequences(teacher, TEXT, work, progress, work / "text")
    return read_sequences(work / FILE_NAME)


def prepare(
    teacher: Path, opened: OpenModel, text: list[TokenSequence], work: Path, progress: Progress
) -> Bench:
    """Measure the teacher's experts and remember its answers."""
    halves: tuple[list[TokenSequence], list[TokenSequence]] = ([], [])
    counts: dict[str, int] = {}
    for sequence in (s for s in text if s.held_out):
        number = counts[sequence.domain] = counts.get(sequence.domain, -1) + 1
        halves[number % 2].append(sequence)
    return Bench(
        teacher,
        opened,
        text,
        collect(teacher, text, work / "chunks", progress),
        *(remember(opened.model, half, progress) for half in halves),
        work,
        progress,
    )


def measure_all(bench: Bench, merging: bool) -> Iterator[Row]:
    """Every way at every size."""
    mixture = bench.opened.architecture.moe
    assert mixture is not None
    for share in SHARES:
        keep = round(share * mixture.num_experts)

        def one(name: str, kind: str, criterion: str, seed: int = 0, keep: int = keep) -> Row:
            kept = choose(bench.statistics, mixture, keep, criterion, seed).kept
            found = measure_masked(bench.opened, kept, bench.judging, bench.progress, name)
            return Row(keep, name, kind, found)

        criteria = [c for c in CRITERIA if c != "random"]
        candidates = {
            c: Candidate(choose(bench.statistics, mixture, keep, c).kept) for c in criteria
        }
        found = choose_by_measurement(bench.opened, candidates, bench.choosing, bench.progress)
        print(f"keep {keep}: {found.reason}", file=sys.stderr)
        for criterion in criteria:
            row = one(criterion, "criterion", criterion)
            yield row
            if criterion == found.chosen:
                yield Row(keep, f"{AUTO} ({criterion})", AUTO, row.measured)
        for seed in range(RANDOM_MASKS):
            yield one(f"random {seed}", "control", "random", seed)
        for method in get_args(Method) if merging else ():
            yield Row(keep, method, "merging", merged(bench, method, share))


def merged(bench: Bench, method: Method, share: float) -> Measured:
    """The teacher with merged experts, from its checkpoint on."""
    options = MergeOptions(method=method, keep=share, protected=super_experts(bench.statistics))
    with (
        tempfile.TemporaryDirectory(dir=bench.work) as out,
        tempfile.TemporaryDirectory(dir=bench.work) as scratch,
    ):
        merge(bench.teacher, bench.text, options, Path(out), Path(scratch), bench.progress)
        with open_model(Path(out)) as opened:
            return measure(opened.model, bench.judging, bench.progress, method)


def table(rows: list[Row]) -> str:
    """Markdown: one table per size, best worst domain first."""
    lines = []
    for keep in dict.fromkeys(row.keep for row in rows):
        mine = [row for row in rows if row.keep == keep]
        found = {row.method: row.measured.divergence() for row in mine}
        best = min(
            (row for row in mine if row.kind == "criterion"), key=lambda r: found[r.method].worst
        )
        domains = list(found[best.method].domains)
        lines += [f"\n| keep {keep} | all | worst | {' | '.join(domains)} | |"]
        lines += ["|---" * (len(domains) + 4) + "|"]
        for row in sorted(mine, key=lambda r: found[r.method].worst):
            values = found[row.method]
            cells = [values.all.text(3), f"{values.worst:.3f}"]
            cells += [values.domains[d].text(3) for d in domains]
            note = "" if row.measured.worse_than(best.measured) else "tied"
            note = "best" if row is best else note
            lines.append(f"| {row.method} | {' | '.join(cells)} | {note} |")
    return "\n".join(lines)


def verdicts(rows: list[Row]) -> list[str]:
    """How ``auto`` stands to the single criterion that turned out best, at each size."""
    result = []
    for auto in (row for row in rows if row.kind == AUTO):
        singles = [r for r in rows if r.kind == "criterion" and r.keep == auto.keep]
        best = min(singles, key=lambda r: r.measured.divergence().worst)
        mine, least = (r.measured.divergence().worst for r in (auto, best))
        if mine <= least:
            state = "at"
        elif auto.measured.worse_than(best.measured):
            state = "WORSE than"
        else:
            state = "not told from"
        result.append(
            f"keep {auto.keep}: {auto.method} has {mine:.3f} on its worst domain, {state} the best "
            f"single criterion, {best.method} with {least:.3f}"
        )
    return result


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("teacher", type=Path)
    parser.add_argument("--work", type=Path, help="keeps text and statistics for another run")
    parser.add_argument("--merge", action="store_true", help="measure merging as well")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    progress = default_progress()
    with tempfile.TemporaryDirectory() as directory:
        work: Path = arguments.work or Path(directory)
        work.mkdir(parents=True, exist_ok=True)
        text = make_text(arguments.teacher, work, progress)
        with open_model(arguments.teacher) as opened:
            bench = prepare(arguments.teacher, opened, text, work, progress)
            rows = list(measure_all(bench, arguments.merge))
    tokens = sum(len(v) for v in rows[0].measured.values)
    print(f"{arguments.teacher.name}, {tokens} held-out tokens in "
          f"{len(rows[0].measured.values)} sequences, {platform.machine()}, torch "
          f"{torch.__version__}")  # fmt: skip
    print(table(rows))
    print("\n" + "\n".join(verdicts(rows)))
    if arguments.json:
        values = [
            {k: v for k, v in asdict(row).items() if k != "measured"}
            | {"divergence": row.measured.divergence().model_dump()}
            for row in rows
        ]
        arguments.json.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
