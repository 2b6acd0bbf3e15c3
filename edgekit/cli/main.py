"""The command line: one verb, one module.

``edgekit VERB …`` imports ``edgekit.cli.VERB`` alone and runs its ``app``, a ``typer.Typer``. The
list of verbs below is static, so that ``edgekit --help`` imports nothing.
"""

from __future__ import annotations

import importlib
import io
import json
import sys
from collections.abc import Sequence

VERBS = {
    "demo": "the whole road on a small real model, then a chat",
    "inspect": "what a checkpoint is: family, parameters, experts, sizes",
    "plan": "what fits where, at what risk, and what a device refuses",
    "build": "run a recipe: the whole road, resumable",
    "shrink": "one step alone: fewer experts",
    "distill": "capture a teacher's logits; train a student on them",
    "quantize": "write a quantized checkpoint",
    "compile": "write the runtimes' graphs over the weights file",
    "export": "write a GGUF file for llama.cpp, Ollama and LM Studio",
    "evaluate": "KL, agreement, perplexity and speed of what will run",
    "parity": "compare the compiled graphs with PyTorch",
    "pack": "make (also of an embedding model), show, verify or archive a pack",
    "chat": "talk to a pack",
    "serve": "answer programs over a local API: OpenAI's, Anthropic's, Ollama's",
    "assistant": "the desktop assistant: chat, documents and history, private and offline",
    "bench": "measure a pack's speed on every target",
    "devices": "what this machine has, and what would be chosen",
    "doctor": "check the installation and say what to do",
}

# modules that are not in the small install, and the extra that brings them
EXTRAS = {
    **dict.fromkeys(
        ("torch", "transformers", "accelerate", "compressed_tensors", "gguf", "onnx", "matplotlib",
         "pyarrow"), "build",
    ),
    **dict.fromkeys(("onnxruntime", "onnxruntime_genai"), "onnx"),
    **dict.fromkeys(("starlette", "uvicorn", "llguidance"), "serve"),
    **dict.fromkeys(("httpx", "markdown_it", "nh3", "pypdfium2", "mcp", "webview"), "assistant"),
}  # fmt: skip
INTERRUPTED = "interrupted; run the same command again to continue"


def usage() -> str:
    """The text of ``edgekit --help``."""
    lines = [
        "Usage: edgekit VERB [OPTIONS] …",
        "",
        "From a cloud Mixture-of-Experts checkpoint to a small model that chats on an AI PC.",
        "",
        *(f"  {verb:<10}{text}" for verb, text in VERBS.items()),
        "",
        "edgekit VERB --help explains a verb; every verb takes --json. Exit codes: 0 done,",
        "1 a defect of edgekit, 2 bad input, 3 a gate failed, 4 a device, runtime or extra is",
        "missing, 5 not enough memory or disk, 130 interrupted.",
    ]
    return "\n".join(lines)


def run(arguments: Sequence[str] | None = None) -> None:
    """Entry point; exits with the documented code."""
    for stream in (sys.stdin, sys.stdout, sys.stderr):  # Windows pipes have a code page of old
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding="utf-8", errors="replace")
    sys.exit(main(list(sys.argv[1:] if arguments is None else arguments)))


def main(arguments: list[str]) -> int:
    """Run the command line and return the exit code."""
    if not arguments or arguments[0] in ("--help", "-h", "help"):
        print(usage())
        return 0
    if arguments[0] == "--version":
        from edgekit import __version__

        print(__version__)
        return 0
    verb, rest = arguments[0], arguments[1:]
    as_json = "--json" in rest
    if verb not in VERBS:
        import difflib

        close = difflib.get_close_matches(verb, VERBS, n=1)
        hint = f", did you mean {close[0]}?" if close else ""
        return _fail(f"no verb {verb!r}{hint}; see edgekit --help", 2, as_json)
    return _run_verb(verb, rest, as_json)


def _run_verb(verb: str, rest: list[str], as_json: bool) -> int:
    import click

    from edgekit.errors import EdgekitError, missing_extra

    try:
        module = importlib.import_module(f"edgekit.cli.{verb}")
        result = module.app(args=rest, prog_name=f"edgekit {verb}", standalone_mode=False)
        code = result if isinstance(result, int) else 0
        return _fail(INTERRUPTED, 130, as_json) if code == 130 else code
    except EdgekitError as error:
        return _fail(str(error), error.exit_code, as_json)
    except click.ClickException as error:
        return _fail(error.format_message(), error.exit_code, as_json)
    except (KeyboardInterrupt, click.Abort):
        return _fail(INTERRUPTED, 130, as_json)
    except ModuleNotFoundError as error:
        extra = EXTRAS.get((error.name or "").partition(".")[0])
        if extra is None:
            raise
        missing = missing_extra(str(error.name), extra)
        return _fail(str(missing), missing.exit_code, as_json)
    except MemoryError:
        return _fail("not enough memory; close other programs or use a larger machine", 5, as_json)
    except OSError as error:
        return _system_failure(error, as_json)


def _system_failure(error: OSError, as_json: bool) -> int:
    """What the system refused outside the places that expect it."""
    from edgekit.atomic import FULL, no_space

    name = error.filename or "a file"
    if error.errno in FULL:
        return _fail(str(no_space(str(name))), 5, as_json)
    reason = error.strerror or type(error).__name__
    return _fail(f"{name}: {reason.lower()}; check the path", 2, as_json)


def _fail(message: str, code: int, as_json: bool) -> int:
    if as_json:
        print(json.dumps({"error": message, "exit_code": code}), file=sys.stderr)
    else:
        print(f"error: {message}", file=sys.stderr)
    return code
