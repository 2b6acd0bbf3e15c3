"""Read a logit cache with numpy and safetensors alone; docs/cache-format.md describes every byte.

    python examples/read_cache.py CACHE [--verify]

Each sequence comes with the teacher's targets at the positions that count. Of drawn targets the
entries of position t are ``first[t]`` to ``first[t + 1]``: token ``ids[e]`` was drawn ``counts[e]``
times, so its share of the position's draws is on average its probability. Of top-k targets they are
row t: ``logprobs[t, k]`` of the token ``ids[t, k]``, and ``tail[t]`` of all other tokens together.
"""

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import numpy as np
from safetensors import safe_open


@dataclass
class Sequence:
    """``counted``: at which positions the next token is learned, and has targets."""

    tokens: np.ndarray  # int32 [T]
    counted: np.ndarray  # bool [T]
    domain: str
    held_out: bool


def _tensors(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    with safe_open(path, "np") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118


def read_sequences(directory: Path) -> list[Sequence]:
    """All sequences, in the order of the file."""
    values, metadata = _tensors(directory / "sequences.safetensors")
    domains = json.loads(metadata["domains"])
    counted = values.get("counted", np.ones(len(values["tokens"]), np.uint8)).astype(bool)
    ends, labels, held_out = values["offsets"][1:], values["domain"], values["held_out"]
    return [
        Sequence(values["tokens"][a:b], counted[a:b], domains[label], bool(held))
        for a, b, label, held in zip(values["offsets"], ends, labels, held_out, strict=False)
    ]


def read_shard(path: Path) -> dict[str, np.ndarray]:
    """Every tensor of a shard; ids as int64, halves as float32, and ``first`` where it is drawn."""
    values, _ = _tensors(path)
    powers = 256 ** np.arange(values["ids"].shape[-1])
    values["ids"] = values["ids"].astype(np.int64) @ powers  # 2 or 3 bytes, the lowest first
    if "unique" in values:
        values["first"] = np.append(0, np.cumsum(values.pop("unique"), dtype=np.int64))
    halves = {name: v.astype(np.float32) for name, v in values.items() if v.dtype == np.float16}
    return {**values, **halves}


def read_cache(directory: Path) -> Iterator[tuple[Sequence, dict[str, np.ndarray]]]:
    """Each sequence with its targets, those of training text first."""
    index = json.loads((directory / "index.json").read_text(encoding="utf-8"))
    assert (index["format"], index["version"]) == ("edgekit logit cache", 2), directory
    text = read_sequences(directory)
    for held_out, split in ((False, "training"), (True, "held_out")):
        sequences = iter([s for s in text if s.held_out == held_out])
        for shard in index[split]:
            values, begin = read_shard(directory / shard["file"]), 0
            for _ in range(shard["sequences"]):
                sequence = next(sequences)
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
    whole = [f for f in files if f.is_file() and sha256(f.read_bytes()).hexdigest() == files[f]]
    return [f.name for f in files if f not in whole]


if __name__ == "__main__":
    cache, verify = Path(sys.argv[1]), "--verify" in sys.argv[2:]
    if verify and (broken := damaged(cache)):
        raise SystemExit(f"damaged: {', '.join(broken)}")
    for text, taught in read_cache(cache):
        shapes = {name: v.shape for name, v in taught.items()}
        print(text.domain, "held out" if text.held_out else "training", len(text.tokens), shapes)
