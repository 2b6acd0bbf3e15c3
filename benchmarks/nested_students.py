"""What sharing one file costs: prefixes of a nested student beside students of their own.

    python benchmarks/nested_students.py MODEL SEQUENCES [--steps 60] [--trainable router]

MODEL is a checkpoint with experts, SEQUENCES the directory of a build's step "data". Prints, for
every size, the KL to MODEL on held-out text of the prefix and of experts chosen for that size
alone, before and after healing on cached logits: all prefixes in one run, the others one by one,
with as many steps per student.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from edgekit.distill.capture import CaptureOptions, capture
from edgekit.distill.divergence import Divergence
from edgekit.distill.nested import compare_healed
from edgekit.distill.shrink import shrink
from edgekit.progress import default_progress
from edgekit.recipe import DistillSection, ShrinkSection

SHARES = (1.0, 0.75, 0.5)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("sequences", type=Path)
    parser.add_argument("--criterion", default="reap")
    parser.add_argument("--steps", type=int, default=60, help="of healing, per student; 0: none")
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--batch-tokens", type=int, default=256)
    parser.add_argument("--trainable", nargs="+", default=["router"])
    options = parser.parse_args()
    progress = default_progress()
    section = ShrinkSection(keep=max(SHARES), criterion=options.criterion, nested=SHARES)
    with tempfile.TemporaryDirectory() as name:
        student, cache, scratch = (Path(name) / part for part in ("student", "cache", "scratch"))
        student.mkdir()
        report = shrink(options.model, options.sequences, section, student, progress, scratch)
        nested = report.nested
        assert nested is not None
        if options.steps:
            cache.mkdir()
            capture(
                options.model, options.sequences, CaptureOptions("top_k", top_k=64), cache, progress
            )
            params = DistillSection(
                steps=options.steps, batch_tokens=options.batch_tokens,
                learning_rate=options.learning_rate, trainable=tuple(options.trainable),
                precision="float32",
            )  # fmt: skip
            nested = compare_healed(options.model, nested, cache, params, progress)
    for row in nested.prefixes:
        print(f"{row.experts} experts, {row.shared_experts:.0%} in common with those chosen alone")
        for label, before, after in (
            ("prefix", row.prefix, row.healed),
            ("alone", row.separate, row.healed_separate),
        ):
            healed = f"   healed {_text(after)}" if after else ""
            print(f"    {label:8} {_text(before)}{healed}")


def _text(divergence: Divergence) -> str:
    worst = divergence.worst_domain
    return f"{divergence.all.text(4)}, {worst} {divergence.worst:.4f}"


if __name__ == "__main__":
    main()
