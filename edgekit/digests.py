"""Digests that decide whether a step must run again."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Sequence
from importlib import metadata, resources
from pathlib import Path
from typing import Any

from edgekit.atomic import write_json
from edgekit.checkpoint import TOKENIZER_FILES, read_json, shard_names
from edgekit.errors import BadInputError
from edgekit.pack import file_sha256
from edgekit.progress import Progress

# Modules that every step builds on; a change in one of them runs everything again.
CORE = (
    "architecture", "mixers", "families", "family_parts", "family_table", "family_values",
    "hybrid_families", "layer_patterns", "describe", "describe_attention", "describe_mixture",
    "describe_parts", "describe_states", "describe_state_tensors", "describe_tensors",
    "stored_parts", "config_values", "rope", "checkpoint", "source_weights", "layout",
    "tensorfile", "scheme", "sequences", "text", "chat_turns",
)  # fmt: skip
# What else a step runs: sub-packages, or the modules that measure; and the tools of each, another
# version of which runs its steps again.
PACKAGES = ("distill", "quantize", "runtimes")
MODULES: dict[str, tuple[str, ...]] = {
    "measure": ("evaluate", "bootstrap", "manifest"),
    "parity": ("compilation", "parity", "parity_cases", "self_check"),
}
TOOLS: dict[str, tuple[str, ...]] = {
    "distill": ("torch", "transformers", "numpy", "tokenizers"),
    "quantize": ("numpy",),
    "runtimes": ("openvino", "openvino-genai", "onnxruntime", "onnxruntime-genai"),
    "measure": ("numpy",),
    "parity": ("torch", "transformers"),
}


def json_digest(value: Any) -> str:
    """sha256 of a JSON value, keys sorted."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def code_digest(parts: Sequence[str]) -> str:
    """sha256 of the core modules, of ``parts`` (keys of ``TOOLS``), and their tools' versions."""
    digest = hashlib.sha256()
    versions = tool_versions()
    core = resources.files("edgekit")
    files = [core / f"{name}.py" for name in CORE]
    files += _modules("source_formats")
    for part in parts:
        files += [core / f"{name}.py" for name in MODULES.get(part, ())]
        if part in PACKAGES:
            files += _modules(part)
        for tool in TOOLS[part]:
            digest.update(f"{tool} {versions.get(tool, '-')}\0".encode())
    for file in files:
        digest.update(file.name.encode() + b"\0" + file.read_bytes() + b"\0")
    return digest.hexdigest()


def _modules(package: str) -> list[Any]:
    folder = resources.files(f"edgekit.{package}")
    return sorted((f for f in folder.iterdir() if f.name.endswith(".py")), key=str)


def checkpoint_digest(directory: Path, memory: Path, progress: Progress) -> str:
    """sha256 over config, weights and tokenizer of a checkpoint.

    Hashes of large files are remembered in ``memory`` by size and time of change.
    """
    names = ["config.json", *shard_names(directory)]
    names += [n for n in TOKENIZER_FILES if (directory / n).is_file()]
    known = _remembered(memory)
    fresh: dict[str, list[Any]] = {}
    total = sum((directory / n).stat().st_size for n in names)
    with progress.task("hash the model", total) as task:
        for name in names:
            status = (directory / name).stat()
            key = str((directory / name).absolute())
            stamp = [status.st_size, status.st_mtime_ns]
            if key in known and known[key][:2] == stamp:
                fresh[key] = known[key]
            else:
                fresh[key] = [*stamp, file_sha256(directory / name)]
            task.advance(status.st_size)
    if fresh != known:
        write_json(memory, {**known, **fresh})
    hashes = {name: fresh[str((directory / name).absolute())][2] for name in names}
    return json_digest(hashes)


def _remembered(memory: Path) -> dict[str, Any]:
    """What ``memory`` says; a damaged one is only forgotten."""
    try:
        return read_json(memory)
    except BadInputError:
        return {}


def tool_versions() -> dict[str, str]:
    """Versions of the tools that a result depends on, where installed."""
    versions = {}
    for name in ("edgekit", *dict.fromkeys(itertools.chain(*TOOLS.values()))):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions
