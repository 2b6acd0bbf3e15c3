"""``edgekit inspect``."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.table import Table

from edgekit.cli.common import AsFamily, Json, console, count, print_json, size, table
from edgekit.errors import BadInputError
from edgekit.family_listing import FamilyLine, family_lines, refused_families
from edgekit.inspection import inspect_model
from edgekit.progress import default_progress
from edgekit.sources import resolve_config

app = typer.Typer(add_completion=False)


@app.command()
def command(
    model: Annotated[str, typer.Argument(help="Directory, hf://…, FILE.gguf, package:NAME.")] = "",
    families: Annotated[
        bool, typer.Option("--families", help="Print the table of families instead.")
    ] = False,
    family: AsFamily = "",
    json: Json = False,
) -> None:
    """What a checkpoint is: family, parameters total and active, experts, sizes, memory."""
    if families:
        _families(json)
        return
    if not model:
        raise BadInputError("inspect needs a MODEL (or --families); give a checkpoint directory")
    result = inspect_model(resolve_config(model, default_progress()), family)
    if json:
        print_json(result)
        return
    rows = [
        ("family", result.family),
        ("parameters", f"{count(result.parameters)} ({count(result.active_parameters)} active)"),
        ("layers, hidden size", f"{result.num_hidden_layers}, {result.hidden_size}"),
        ("attention heads / KV heads x dim",
         f"{result.num_attention_heads} / {result.num_key_value_heads} x {result.head_dim}"),
        ("vocabulary", str(result.vocab_size)),
        ("context", f"{result.context_length} tokens"),
        ("KV cache", f"{size(result.kv_bytes_per_token)} per token in 16 bits"),
        ("chat template", "yes" if result.chat_template else "no"),
    ]  # fmt: skip
    if result.num_experts:
        experts = f"{result.num_experts}, {result.num_experts_per_tok} per token"
        rows.insert(2, ("experts per layer", experts))
    if result.weights_verified:
        rows.append(("weights", f"{size(result.stored_bytes)} {result.dtype}, shapes verified"))
    elif result.stored_bytes:
        rows.append(("weights", size(result.stored_bytes)))
    rows += [(f"size as {name}", size(value)) for name, value in result.size_per_scheme.items()]
    console().print(table(model, ["", ""], rows))
    for note in result.notes:
        print(f"note: {note}")


def _families(json: bool) -> None:
    lines, refused = family_lines(), refused_families()
    if json:
        print_json({"families": lines, "refused": refused})
        return
    screen = console()
    for title, sparse in (("sparse", True), ("dense", False)):
        chosen = [line for line in lines if line.sparse == sparse]
        screen.print(_family_table(f"{len(chosen)} {title} families", chosen))
    for line in lines:
        if line.note:
            screen.print(f"{line.family}: {line.note}.", markup=False, highlight=False, style="dim")
    for name, reason in refused.items():
        screen.print(f"{name}: refused, {reason}.", markup=False, highlight=False, style="dim")


def _family_table(title: str, lines: list[FamilyLine]) -> Table:
    result = Table(title=title, title_justify="left", title_style="bold")
    for column in ("family", "attention", "norms", "experts", "OpenVINO", "ONNX"):
        result.add_column(column, no_wrap=column in ("family", "norms"))
    for line in lines:
        marks = ["yes" if r in line.runtimes else "no" for r in ("openvino", "onnx")]
        result.add_row(line.family, line.attention, line.layers, line.experts or "–", *marks)
    return result
