"""``edgekit chat``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from edgekit.cli.common import Json, print_json
from edgekit.errors import BadInputError
from edgekit.progress import default_progress
from edgekit.runtimes.devices import locate
from edgekit.runtimes.engine import Engine, Message, Sampling, Stats, load_engine

app = typer.Typer(add_completion=False)


@app.command()
def command(
    pack: Annotated[Path, typer.Argument(help="A pack or a compiled variant.")],
    once: Annotated[str, typer.Option("--once", help="Ask one question and stop.")] = "",
    device: Annotated[
        str, typer.Option("--device", help="Target to run on; the best one here by default.")
    ] = "",
    experts: Annotated[
        int,
        typer.Option(min=0, help="Of a pack with nested sizes; the largest that fits by default."),
    ] = 0,
    system: Annotated[str, typer.Option("--system", help="System message.")] = "",
    temperature: Annotated[float, typer.Option(help="0 is greedy.")] = 0.7,
    top_p: Annotated[float, typer.Option(help="Nucleus size.")] = 0.9,
    top_k: Annotated[int, typer.Option(help="0 switches it off.")] = 40,
    repetition_penalty: Annotated[float, typer.Option(help="1 is none.")] = 1.1,
    max_tokens: Annotated[int, typer.Option(help="Longest answer.")] = 512,
    seed: Annotated[int | None, typer.Option(min=0, help="Makes sampling repeatable.")] = None,
    stop: Annotated[list[str] | None, typer.Option(help="Ends the answer; repeatable.")] = None,
    allow_damaged: Annotated[
        bool, typer.Option("--allow-damaged", help="Load a pack whose files do not match.")
    ] = False,
    json: Json = False,
) -> None:
    """Talk to a pack; without a terminal, answer standard input."""
    directory, device = locate(
        pack, device, default_progress(), allow_damaged, experts=experts, notify=_told
    )
    sampling = Sampling(
        max_tokens, temperature, top_p, top_k, repetition_penalty, seed, tuple(stop or ())
    )
    engine = load_engine(directory, device)
    if once or json or not sys.stdin.isatty():
        question = (once or sys.stdin.read()).strip()
        if not question:
            raise BadInputError("the question is empty; give it with --once or on standard input")
        answer_once(engine, question, sampling, system, json)
    else:
        converse(engine, sampling, system)


def answer_once(
    engine: Engine, question: str, sampling: Sampling, system: str = "", json: bool = False
) -> None:
    """Answer one question on standard output."""
    messages = [*_opening(system), Message(role="user", content=question)]
    text, stats = answer(engine, messages, sampling, echo=not json)
    if json:
        speed = round(stats.tokens_per_second, 2)
        print_json({"answer": text, "stats": {**vars(stats), "tokens_per_second": speed}})


def ask(engine: Engine, question: str, sampling: Sampling, echo: bool = False) -> str:
    """The answer to one question without history."""
    return answer(engine, [Message(role="user", content=question)], sampling, echo)[0]


def answer(
    engine: Engine, messages: list[Message], sampling: Sampling, echo: bool
) -> tuple[str, Stats]:
    """Stream one answer; returns it whole with its statistics."""
    parts: list[str] = []
    stats = Stats()
    for event in engine.generate(messages, sampling):
        parts.append(event.text)
        stats = event.stats if event.finish else stats
        if echo:
            print(event.text, end="", flush=True)
    if echo:
        print()
    return "".join(parts), stats


def converse(engine: Engine, sampling: Sampling, system: str = "") -> None:
    """Chat in a terminal until /exit or the end of input; /new forgets the conversation."""
    messages = _opening(system)
    print("\n/new forgets, /exit leaves, Ctrl-C stops an answer.", file=sys.stderr)
    while True:
        try:
            question = input("\n> ").strip()
        except (EOFError, KeyboardInterrupt):
            print()
            return
        if question == "/exit":
            return
        if question == "/new":
            messages = _opening(system)
        elif question:
            messages.append(Message(role="user", content=question))
            try:
                text, stats = answer(engine, messages, sampling, echo=True)
            except KeyboardInterrupt:
                print()
                messages.pop()
                continue
            except BadInputError as error:  # such as a conversation longer than the context
                print(f"error: {error}", file=sys.stderr)
                messages.pop()
                continue
            messages.append(Message(role="assistant", content=text))
            print(
                f"  {stats.tokens_per_second:.0f} tokens/s, first token "
                f"{1e3 * stats.time_to_first_token:.0f} ms", file=sys.stderr,
            )  # fmt: skip


def _told(text: str) -> None:
    print(text, file=sys.stderr)


def _opening(system: str) -> list[Message]:
    return [Message(role="system", content=system)] if system else []
