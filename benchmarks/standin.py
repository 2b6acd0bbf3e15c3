"""How the demo's stand-in MoE behaves, against plain constructions.

    python benchmarks/standin.py DENSE_MODEL_DIR

Prints perplexity on held-out text for the dense model and for stand-ins of several shapes, and
what dropping two of eight experts costs by criterion and by chance. About ten minutes.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from edgekit.checkpoint import Checkpoint
from edgekit.distill.calibration import make_sequences
from edgekit.distill.loading import load_model
from edgekit.distill.shrink import choose, write_with_experts
from edgekit.distill.standin import StandInOptions, make_standin, perplexity
from edgekit.distill.statistics import collect_statistics
from edgekit.progress import Silent, default_progress
from edgekit.recipe import DataSection, ShrinkSection
from edgekit.sequences import FILE_NAME, read_sequences

SHAPES = {
    "704 neurons": StandInOptions(),
    "576 neurons": StandInOptions(neurons=576),
    "704, no refit": StandInOptions(ridge=1e9),
}


def main() -> None:
    """Compare the shapes, then the ways to drop experts."""
    dense = Path(sys.argv[1])
    progress = default_progress()
    with tempfile.TemporaryDirectory() as directory:
        work = Path(directory)
        section = DataSection(tokens=8192, held_out_tokens=2048, sequence_length=128, seed=7)
        make_sequences(dense, section, work, progress)
        sequences = read_sequences(work / FILE_NAME)
        held_out = [s for s in sequences if s.held_out]
        for name, options in SHAPES.items():
            out = work / name.replace(" ", "-")
            out.mkdir()
            report = make_standin(dense, sequences, out, progress, options)
            ratio = report.perplexity / report.dense_perplexity
            print(f"{name:16} dense {report.dense_perplexity:.2f}, MoE {report.perplexity:.2f} "
                  f"({ratio - 1:+.1%})", flush=True)  # fmt: skip
        teacher = work / "704-neurons"
        calibration = [s for s in sequences if not s.held_out][:24]
        with Checkpoint(teacher) as checkpoint:
            model = load_model(teacher)
            statistics = collect_statistics(model, checkpoint.architecture, calibration, progress)
            del model
            ways = [ShrinkSection(keep=0.75, criterion=c) for c in ("reap", "frequency")]
            ways += [ShrinkSection(keep=0.75, criterion="random", seed=s) for s in range(3)]
            for number, way in enumerate(ways):
                out = work / f"drop{number}"
                out.mkdir()
                write_with_experts(checkpoint, choose(statistics, 6, way), out, Silent())
                value = perplexity(load_model(out), held_out, progress)
                label = way.criterion + (f" {way.seed}" if way.criterion == "random" else "")
                print(f"6 of 8 by {label:12} {value:.2f}", flush=True)


if __name__ == "__main__":
    main()
