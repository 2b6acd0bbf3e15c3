"""``edgekit serve``."""

from __future__ import annotations

import json as jsonlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgekit.cli.common import Json, parse_bytes
from edgekit.errors import BadInputError
from edgekit.progress import Silent, default_progress

if TYPE_CHECKING:
    from edgekit.server.serve import Serving

app = typer.Typer(add_completion=False)


@app.command()
def command(
    pack: Annotated[
        Path | None,
        typer.Argument(help="A pack or a compiled variant; the assistant's largest by default."),
    ] = None,
    port: Annotated[int, typer.Option("--port", help="0 takes a free one.")] = 0,
    host: Annotated[
        str, typer.Option("--host", help="Another address than loopback needs a certificate.")
    ] = "127.0.0.1",
    device: Annotated[
        str, typer.Option("--device", help="Target to run on; the best one here by default.")
    ] = "",
    experts: Annotated[
        int,
        typer.Option(min=0, help="Of a pack with nested sizes; the largest that fits by default."),
    ] = 0,
    token_file: Annotated[
        Path | None, typer.Option("--token-file", help="Holds the token; made when missing.")
    ] = None,
    state_file: Annotated[
        Path | None, typer.Option("--state-file", help="Told the address and tokens, as JSON.")
    ] = None,
    embeddings: Annotated[
        Path | None, typer.Option("--embeddings", help="An embedding pack for /v1/embeddings.")
    ] = None,
    parallel: Annotated[int, typer.Option(min=1, max=256, help="Answers at the same time.")] = 16,
    max_queue: Annotated[int, typer.Option(min=1, max=4096, help="Requests that may wait.")] = 64,
    cache_memory: Annotated[
        str, typer.Option("--cache-memory", help="For prompts and answers, such as 2GB.")
    ] = "",
    exit_with_parent: Annotated[
        bool, typer.Option("--exit-with-parent", help="Stop when standard input closes.")
    ] = False,
    allow_damaged: Annotated[
        bool, typer.Option("--allow-damaged", help="Load a pack whose files do not match.")
    ] = False,
    tls_cert: Annotated[
        Path | None, typer.Option("--tls-cert", help="Certificate chain, PEM.")
    ] = None,
    tls_key: Annotated[Path | None, typer.Option("--tls-key", help="Its key, PEM.")] = None,
    print_token: Annotated[
        bool, typer.Option("--print-token", help="Print the token, which is a secret.")
    ] = False,
    json: Json = False,
) -> None:
    """Answer programs on this machine over the APIs of OpenAI, Anthropic and Ollama."""
    from edgekit.local.listen import Tls
    from edgekit.server.serve import Options, serve

    if (tls_cert is None) != (tls_key is None):
        raise BadInputError("--tls-cert and --tls-key belong together; give both")
    options = Options(
        pack=pack or known_pack(),
        host=host,
        port=port,
        device=device,
        experts=experts,
        token_file=token_file,
        state_file=state_file,
        embeddings=embeddings,
        parallel=parallel,
        max_queue=max_queue,
        cache_bytes=parse_bytes(cache_memory) if cache_memory else None,
        child=exit_with_parent,
        allow_damaged=allow_damaged,
        tls=Tls(tls_cert, tls_key) if tls_cert and tls_key else None,
    )

    def ready(serving: Serving) -> None:
        shown = serving.token if print_token else ""
        if json:
            print(jsonlib.dumps(_facts(serving, state_file, shown)), flush=True)
        else:
            print(_told(serving, state_file, shown), flush=True)

    serve(options, ready, Silent() if json else default_progress())


def known_pack() -> Path:
    """The pack that the assistant would begin with.

    Raises:
        BadInputError: there is none.
    """
    from edgekit.assistant.folders import Folders
    from edgekit.assistant.packs import Packs

    folders = Folders.of(None)
    best = Packs(folders.data, folders.packs, folders.system_packs).best()
    if best is None:
        raise BadInputError("no pack is known here; give one, or let `edgekit assistant` make one")
    return best


def _facts(serving: Serving, state_file: Path | None, token: str) -> dict[str, object]:
    facts: dict[str, object] = {
        "url": serving.url,
        "model": serving.model,
        "pid": os.getpid(),
        "token_file": str(serving.token_file) if serving.token_file else None,
        "state_file": str(state_file) if state_file else None,
    }
    return {**facts, "token": token} if token else facts


def _told(serving: Serving, state_file: Path | None, token: str) -> str:
    where = serving.token_file or state_file
    lines = [
        f"{serving.model} answers at {serving.url}",
        f"The token is in {where}; it loads the model now, /health tells when it is ready.",
    ]
    if token:
        lines.append(f"Token: {token}")
    if serving.exposed:
        lines.append("Other machines can reach this address; whoever has the token may use it.")
    if serving.token_file:
        key = f'"$(cat {serving.token_file})"'
        lines += [
            "",
            f"export OPENAI_BASE_URL={serving.url}/v1 OPENAI_API_KEY={key}",
            f"export ANTHROPIC_BASE_URL={serving.url} ANTHROPIC_API_KEY={key}",
            f"export OLLAMA_HOST={serving.url} OLLAMA_API_KEY={key}",
        ]
    return "\n".join([*lines, "", "Ctrl-C stops it."])
