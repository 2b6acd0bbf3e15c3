"""``edgekit inspect``."""

from __future__ import annotations

import typer

from edgekit.cli.common import Json, Model, console, count, print_json, size, table
from edgekit.inspection import inspect_model
from edgekit.progress import default_progress
from edgekit.sources import resolve_config

app = typer.Typer(add_completion=False)


@app.command()
def command(model: Model, json: Json = False) -> None:
    """What a checkpoint is: family, parameters total and active, experts, sizes, memory."""
    result = inspect_model(resolve_config(model, default_progress()))
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
