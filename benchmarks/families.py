"""Which families each tool turns into a correct graph: edgekit beside its peers.

    pip install ".[bench,dev]"
    python benchmarks/families.py [--families llama,mixtral] [--resume] [--out families.json]

For every family of edgekit's table, and for some that are not in it, writes one tiny random
checkpoint whose weights are float16 values and takes its logits from transformers in float32 with
eager attention. Then edgekit for both runtimes, optimum-intel (OpenVINO, fp32) and
onnxruntime-genai's builder (fp32, CPU) each make a graph of it, each in a process of its own with a
time limit. Every graph is run in float32: a prompt longer than the sliding windows, then single
tokens with the cache. edgekit's int4 is run too, with float32 activations, against transformers on
the numbers that the codes stand for. An outcome is

    ok        top-1 agrees at 99 % of the positions without a tie, and the mean KL of the prompt
              and that of the decoded tokens are at most 1e-3 nats/token
    wrong     a graph was written, but it does not load, does not run or disagrees
    refused   the tool raised
    timeout   the tool did not end

Seconds are from the start of the work to the written files, without Python's imports; memory is the
process's peak, imports included. Linux only: a warm process per tool forks for every job. A
quarter of an hour on two cores.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from families_beyond import BEYOND, DENSE_BEYOND
from families_results import COLUMNS, OURS, Outcome, Result, Results, Row
from families_table import print_table, write_markdown

from edgekit.atomic import write_json
from edgekit.family_table import FAMILIES

HERE = Path(__file__).parent
MARKDOWN = HERE.parent / "docs" / "families-peers.md"
LIMIT = 240.0  # seconds of one job
INT4 = "int4-g32"


class Warm:
    """A process that has imported one tool; ``run`` gives it a job and waits for the answer."""

    def __init__(self, tool: str, work: Path) -> None:
        self.work = work
        self._answer, self._log = work / f"{tool}.json", work / f"{tool}.log"
        with (work / f"{tool}.err").open("w") as errors:
            self._process = subprocess.Popen(
                [sys.executable, str(HERE / "families_worker.py"), tool],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                bufsize=1,
            )

    def run(self, **arguments: str) -> dict[str, Any]:
        """What the job measured, or ``error``."""
        order = {
            "arguments": arguments,
            "answer": str(self._answer),
            "log": str(self._log),
            "work": str(self.work),
            "limit": LIMIT,
        }
        self._answer.unlink(missing_ok=True)
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write(json.dumps(order) + "\n")
        line = self._process.stdout.readline()
        if line.strip() == "ready":  # the first answer comes after the imports
            line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"{self._log.with_suffix('.err').read_text()}\nthe worker ended")
        return dict(json.loads(line))

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait()


class Bench:
    """The warm processes, and one family's turn through all of them."""

    def __init__(self, work: Path) -> None:
        self.work = work
        tools = ("reference", "edgekit", "optimum-intel", "genai builder", "check")
        self._warm = {tool: Warm(tool, work) for tool in tools}

    def family(self, name: str, known: Row) -> Row:
        """``known`` with what it lacks: a result per column, or why there is no reference."""
        model, logits = self._fresh(name), self.work / "logits.npz"  # tools say the folder's name
        reference = self._warm["reference"].run(family=name, model=str(model), logits=str(logits))
        if "error" in reference:
            return Row(sparse=known.sparse, no_reference=reference["error"] or "out of time")
        results = {
            column: known.results.get(column) or self._one(column, model, logits)
            for column in COLUMNS
        }
        int4 = self._int4(name, model) if name in FAMILIES else {}
        shutil.rmtree(model)
        return Row(sparse=known.sparse, results=results, int4=int4)

    def _one(self, column: str, model: Path, logits: Path) -> Result:
        out = self._fresh("out")
        built = self._build(column, model, out)
        return self._check(built, out, logits) if built.outcome == "ok" else built

    def _int4(self, name: str, model: Path) -> dict[str, Result]:
        """edgekit's packed graphs against transformers on the numbers that the codes stand for."""
        results = {}
        for column in OURS:
            out, logits = self._fresh("out"), self.work / "int4.npz"
            built = self._build(column, model, out, scheme=INT4)
            if built.outcome == "ok":
                reference = self._warm["reference"].run(
                    family=name,
                    model=str(self._fresh("dequantized")),
                    logits=str(logits),
                    quantized=str(out / "quantized"),
                )
                if "error" in reference:
                    why = {"outcome": "wrong", "reason": f"reference: {reference['error']}"}
                    built = built.model_copy(update=why)
                else:
                    built = self._check(built, out, logits)
            results[column] = built
        return results

    def _build(self, column: str, model: Path, out: Path, **more: str) -> Result:
        tool, _, target = column.partition(" (")
        if tool == "edgekit":
            more["target"] = target.rstrip(")")
        built = self._warm[tool].run(model=str(model), out=str(out), **more)
        outcome: Outcome = "refused" if "error" in built else "ok"
        if built["timed_out"]:
            outcome = "timeout"
        return Result.model_validate(
            {**built, "outcome": outcome, "reason": built.get("error", "")}
        )

    def _check(self, built: Result, out: Path, logits: Path) -> Result:
        graph, weights = written(out)
        checked = self._warm["check"].run(
            graph=str(graph), weights=str(weights), logits=str(logits)
        )
        if checked["timed_out"] or "error" in checked:
            reason = "does not run: " + (checked.get("error") or "out of time")
            return built.model_copy(update={"outcome": "wrong", "reason": reason})
        kept = ("top1", "max_kl", "kl_prefill", "kl_decode")
        built = built.model_copy(update={key: checked[key] for key in kept})
        if checked["correct"]:
            return built
        reason = (
            f"top-1 {100 * checked['top1']:.0f} %, KL {checked['kl_prefill']:.2g} (prompt), "
            f"{checked['kl_decode']:.2g} (decoded)"
        )
        return built.model_copy(update={"outcome": "wrong", "reason": reason})

    def _fresh(self, name: str) -> Path:
        directory = self.work / name
        shutil.rmtree(directory, ignore_errors=True)
        shutil.rmtree(f"{directory}-cache", ignore_errors=True)
        directory.mkdir()
        return directory

    def close(self) -> None:
        """End the processes."""
        for warm in self._warm.values():
            warm.close()


def written(out: Path) -> tuple[Path, Path]:
    """The graph in a tool's output and, for OpenVINO, the file of its weights."""
    variant = out / "variant"
    graphs = (
        (variant / "openvino" / "openvino_model.xml", variant / "weights.safetensors"),
        (variant / "model.onnx", variant / "weights.safetensors"),
        (out / "openvino_model.xml", out / "openvino_model.bin"),
        (out / "model.onnx", out / "model.onnx.data"),
    )
    return next((pair for pair in graphs if pair[0].is_file()), graphs[-1])


def is_sparse(family: str) -> bool:
    """Whether a family has experts."""
    if family in FAMILIES:
        return FAMILIES[family].moe is not None
    return family not in DENSE_BEYOND


def all_families() -> list[str]:
    """Those of edgekit's table, then some that it refuses."""
    return [*FAMILIES, *BEYOND]


def complete(family: str, row: Row | None) -> bool:
    """Whether a row has all that can be measured."""
    if row is None or row.no_reference:
        return row is not None
    return row.results.keys() == set(COLUMNS) and bool(row.int4) >= (family in FAMILIES)


def measure(families: Sequence[str], out: Path, rows: dict[str, Row]) -> None:
    """Measure what ``rows`` lacks and save after every family."""
    missing = [family for family in families if not complete(family, rows.get(family))]
    if not missing:
        return
    with tempfile.TemporaryDirectory() as work:
        bench = Bench(Path(work))
        for number, family in enumerate(missing, 1):
            start = time.perf_counter()
            known = rows.get(family) or Row(sparse=is_sparse(family))
            row = rows[family] = bench.family(family, known)
            outcomes = ", ".join(f"{c}: {r.outcome}" for c, r in row.results.items())
            packed = ", ".join(r.outcome for r in row.int4.values())
            print(
                f"{number}/{len(missing)} {family}: {outcomes or row.no_reference}; "
                f"int4: {packed or 'none'} ({time.perf_counter() - start:.0f} s)",
                file=sys.stderr,
                flush=True,
            )
            results = Results(date=datetime.now(UTC).date().isoformat(), families=rows)
            write_json(out, results.model_dump())
        bench.close()


def main() -> None:
    """Measure, save, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--families", default="", help="comma-separated; all by default")
    parser.add_argument("--resume", action="store_true", help="keep the results that --out has")
    parser.add_argument("--out", type=Path, default=Path("families.json"))
    parser.add_argument("--markdown", type=Path, default=MARKDOWN, help="the generated table")
    arguments = parser.parse_args()
    families = [f for f in arguments.families.split(",") if f] or all_families()
    unknown = sorted(set(families) - set(all_families()))
    if unknown:
        parser.error(f"no tiny model of {', '.join(unknown)}; known: {', '.join(all_families())}")
    rows: dict[str, Row] = {}
    if arguments.resume and arguments.out.is_file():
        rows = Results.model_validate_json(arguments.out.read_text()).families
    measure(families, arguments.out, rows)
    stored = Results.model_validate_json(arguments.out.read_text())
    ordered = {f: stored.families[f] for f in all_families() if f in stored.families}
    print_table(ordered)
    write_markdown(arguments.markdown, ordered, stored.date)


if __name__ == "__main__":
    main()
