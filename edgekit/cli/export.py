"""``edgekit export gguf``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgekit.cli.common import Json, print_json, size
from edgekit.progress import default_progress

app = typer.Typer(add_completion=False, help="Write a quantized model for other programs.")


@app.callback()
def main() -> None:
    """Write a quantized model for other programs."""


@app.command()
def gguf(
    model: Annotated[Path, typer.Argument(help="A quantized checkpoint or a compiled variant.")],
    out: Annotated[Path, typer.Option("--out", help="File to write; must not exist.")],
    pre: Annotated[
        str, typer.Option(help="llama.cpp's name of the pre-tokenizer, if edgekit finds none.")
    ] = "",
    json: Json = False,
) -> None:
    """Write a GGUF file for llama.cpp, Ollama and LM Studio."""
    from edgekit.gguf_export import export_gguf

    report = export_gguf(model, out, default_progress(), pre)
    if json:
        print_json(report)
        return
    kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(report.tensors.items()))
    print(
        f"{size(report.size_bytes)}, {report.architecture}, {kinds}, context "
        f"{report.context_length}: {out}"
    )
