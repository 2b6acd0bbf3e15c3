"""``edgekit compile``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgekit.atomic import atomic_directory
from edgekit.cli.common import Json, Out, print_json, size
from edgekit.progress import default_progress

app = typer.Typer(add_completion=False)


@app.command()
def command(
    model: Annotated[Path, typer.Argument(help="A quantized checkpoint.")],
    out: Out,
    target: Annotated[list[str] | None, typer.Option(help="Repeatable.")] = None,
    parity: Annotated[
        bool, typer.Option(help="Compare the graphs with PyTorch before keeping them.")
    ] = True,
    prove: Annotated[
        bool, typer.Option("--prove", help="Ask Intel's offline NPU compiler, too.")
    ] = False,
    lab: Annotated[
        Path | None, typer.Option(help="Where that compiler is on Linux: tests/windows/lab.sh.")
    ] = None,
    json: Json = False,
) -> None:
    """Write the runtimes' graphs over the weights file, and check them against PyTorch."""
    from edgekit.compilation import Checks, compile_checked

    targets = target or ["openvino-cpu"]
    checks = Checks(parity, prove, lab)
    with atomic_directory(out) as directory:
        report = compile_checked(model, targets, directory, default_progress(), checks)
    if json:
        print_json(report)
        return
    sizes = " and ".join(map(str, report.nested))
    nested = f" for {sizes} experts" if len(report.nested) > 1 else ""
    graphs = ", ".join(f"{name} {size(value)}" for name, value in report.graph_bytes.items())
    print(f"weights {size(report.weights_bytes)}, graphs{nested} {graphs}: {out}")
    for result in report.parity.results:
        name = result.target
        if nested:
            name += f", {result.num_experts} experts"
        print(
            f"{name}: KL to PyTorch {result.mean_kl:.1e} nats per token in float32, "
            f"{result.shipped_mean_kl:.1e} as shipped, over {result.positions} positions"
        )
    for proof in report.npu_proofs:
        print(
            f"NPU {proof.platform}: {proof.parts} parts, {size(proof.blob_bytes)} in "
            f"{proof.seconds:.0f} s (compiler {proof.compiler})"
        )
    if report.parity.skipped:
        print(f"not compared with PyTorch: {report.parity.skipped}")
