"""Read a logit cache with numpy and safetensors alone; docs/cache-format.md describes every byte.

    python examples/read_cache.py CACHE [--verify]

Each sequence comes with the teacher's targets at the positions that count. Of drawn targets the
entries of position t are ``first[t]`` to ``first[t + 1]``: ``shares[e]`` of the token ``ids[e]`` is
on average its probability. Of top-k targets they are row t: ``logprobs[t, k]`` of the token
``ids[t, k]``, and ``tail[t]`` of all other tokens together.
"""

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from itertools import islice
from pathlib import Path

import numpy as np
from safetensors import safe_open
from safetensors.numpy import load_file


@dataclass
class Sequence:
    """``counted``: at which positions the next token is learned, and has targets."""

    tokens: np.ndarray  # int32 [T]
    counted: np.ndarray  # bool [T]
    domain: str
    held_out: bool


def read_sequences(directory: Path) -> list[Sequence]:
    """All sequences, in the order of the file."""
    with safe_open(directory / "sequences.safetensors", "np") as file:
        values = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        domains = json.loads(file.metadata()["domains"])
    counted = values.get("counted", np.ones(len(values["tokens"]), np.uint8)).astype(bool)
    columns = values["offsets"], values["offsets"][1:], values["domain"], values["held_out"]
    return [
        Sequence(values["tokens"][a:b], counted[a:b], domains[label], bool(held))
        for a, b, label, held in zip(*columns, strict=False)
    ]


def read_shard(path: Path) -> dict[str, np.ndarray]:
    """The tensors of a shard; ids as int64, and ``first`` and all ``shares`` where it is drawn."""
    values = load_file(path)
    values["ids"] = values["ids"].astype(np.int64) @ 256 ** np.arange(values["ids"].shape[-1])
    if "kept" in values:
        kept, drawn = (values.pop(name).astype(np.int64) for name in ("kept", "drawn"))
        values["first"] = np.append(0, np.cumsum(kept + drawn))
        row = np.repeat(np.arange(len(kept)), kept + drawn)  # the position of every entry
        own = np.arange(len(row)) < (values["first"][:-1] + kept)[row]
        left = 255 - np.bincount(row[own], values["shares"], len(kept))
        equal = (left / drawn.clip(1))[row]  # what tokens without a share of their own have
        equal[own] = values["shares"]
        values["shares"] = equal / 255
    return values


def read_cache(directory: Path) -> Iterator[tuple[Sequence, dict[str, np.ndarray]]]:
    """Each sequence with its targets, those of training text first."""
    index = json.loads((directory / "index.json").read_text(encoding="utf-8"))
    assert (index["format"], index["version"]) == ("edgekit logit cache", 3), directory
    text = read_sequences(directory)
    for held_out, split in ((False, "training"), (True, "held_out")):
        sequences = iter([s for s in text if s.held_out == held_out])
        for shard in index[split]:
            values, begin = read_shard(directory / shard["file"]), 0
            for sequence in islice(sequences, shard["sequences"]):
                end = begin + int(sequence.counted.sum())
                yield sequence, _rows(values, begin, end)
                begin = end


def _rows(values: dict[str, np.ndarray], begin: int, end: int) -> dict[str, np.ndarray]:
    if "first" not in values:
        return {name: v[begin:end] for name, v in values.items()}
    first = values["first"][begin : end + 1]
    parts = {name: v[first[0] : first[-1]] for name, v in values.items() if name != "first"}
    return {**parts, "entropy": values["entropy"][begin:end], "first": first - first[0]}


def damaged(directory: Path) -> list[str]:
    """Shards that are missing or have other bytes than were captured."""
    index = json.loads((directory / "index.json").read_text(encoding="utf-8"))
    files = {directory / s["file"]: s["sha256"] for s in (*index["training"], *index["held_out"])}
    found = {f: sha256(f.read_bytes()).hexdigest() for f in files if f.is_file()}
    return [f.name for f, digest in files.items() if found.get(f) != digest]


if __name__ == "__main__":
    if "--verify" in sys.argv[2:] and (broken := damaged(Path(sys.argv[1]))):
        raise SystemExit(f"damaged: {', '.join(broken)}")
    for text, taught in read_cache(Path(sys.argv[1])):
        shapes = {name: v.shape for name, v in taught.items()}
        print(text.domain, "held out" if text.held_out else "training", len(text.tokens), shapes)
