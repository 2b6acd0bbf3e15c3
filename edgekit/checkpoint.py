"""Checkpoints: a directory with ``config.json``, safetensors weights and a tokenizer.

Opening a checkpoint reads headers only, checks the shard index and compares every shape with what
the config promises, so a damaged download is refused before any work; so is a tensor that the
architecture has no place for, because without it the model would say something else. Weights are
read by memory map, one tensor at a time. Code and pickles in a checkpoint are never loaded.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from edgekit.architecture import Architecture, TensorSpec
from edgekit.describe import describe
from edgekit.errors import BadInputError
from edgekit.resemblance import is_unknown, unknown_family
from edgekit.source_weights import Codes, SourceWeights
from edgekit.tensorfile import DTYPES, TensorFile, TensorFileWriter, TensorInfo

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
# Everything beside config and weights that a checkpoint carries along the road.
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "generation_config.json",
    "LICENSE",
)


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object; ``BadInputError`` when it is missing or malformed."""
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        raise BadInputError(
            f"{path} is missing; give the directory of a Hugging Face checkpoint"
        ) from None
    except OSError as error:
        raise BadInputError(f"{path}: cannot be read ({error.strerror}); check the path") from error
    return parse_json(raw, str(path))


def parse_json(raw: bytes, source: str) -> dict[str, Any]:
    """A JSON object from bytes; ``source`` names them in errors."""
    try:
        value = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise BadInputError(f"{source}: not valid JSON; download the file again") from error
    if not isinstance(value, dict):
        raise BadInputError(f"{source}: not a JSON object; download the file again")
    return value


def read_config(directory: Path) -> dict[str, Any]:
    """``config.json`` of a checkpoint directory."""
    if not directory.is_dir():
        raise BadInputError(f"{directory} is not a directory; give a checkpoint directory")
    return read_json(directory / "config.json")


class Checkpoint:
    """An opened checkpoint; weights that are stored quantized are read as what they stand for.

    ``family`` reads a checkpoint of an unknown ``model_type`` as one of that family; its config
    then says so in ``edgekit_family``.

    Attributes:
        path: the directory.
        config: the raw ``config.json`` without its ``quantization_config``, read only.
        architecture: the resolved shape.
        source: the float tensors that the files stand for.
    """

    def __init__(self, path: Path, family: str = "") -> None:
        self.path = path
        config = read_config(path)
        settings = config.get("quantization_config")
        if isinstance(settings, dict) and "edgekit_scheme" in settings:
            raise BadInputError(
                f"{path / 'config.json'}: the checkpoint is quantized already; "
                "give the original, unquantized checkpoint"
            )
        plain = {key: value for key, value in config.items() if key != "quantization_config"}
        if family:
            plain["edgekit_family"] = family
        self.config: Mapping[str, Any] = MappingProxyType(plain)
        unknown = is_unknown(plain)
        if not unknown:  # what config.json says is refused before any weights are looked at
            self.architecture: Architecture = describe(plain, str(path / "config.json"))
        self._files = {name: TensorFile(path / name) for name in shard_names(path)}
        self.source = SourceWeights(config, self._locate(), str(path / "config.json"))
        if unknown:
            shapes = {name: self.source.shape(name) for name in self.source.names()}
            raise unknown_family(path, plain, shapes)
        self._check_shapes()

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(self, *_: object) -> None:
        for file in self._files.values():
            file.close()

    def _locate(self) -> dict[str, TensorFile]:
        where = {name: file for file in self._files.values() for name in file.tensors}
        if len(self._files) > 1:
            for name, shard in _weight_map(self.path).items():
                if name not in self._files[shard].tensors:
                    raise BadInputError(
                        f"{self.path / INDEX}: tensor {name!r} is not in {shard}; "
                        "download the checkpoint again"
                    )
        return where

    def _check_shapes(self) -> None:
        wanted = {spec.source.tensor: spec.source.shape for spec in self.specs}
        check_tensors(self.path, self.source, wanted, self.architecture)

    @property
    def specs(self) -> list[TensorSpec]:
        """Tensors of the architecture, in forward order."""
        return list(self.architecture.tensors())

    def float32(self, name: str, rows: slice | None = None) -> NDArray[np.float32]:
        """One tensor of the architecture as float32, or some of its rows, in its own order."""
        spec = self.architecture.by_name[name]
        part = spec.source
        if part.whole:
            return self.source.float32(part.tensor, rows)
        values = part.read(lambda stored: self.source.float32(part.tensor, stored))
        whole = np.ascontiguousarray(values).reshape(spec.shape)
        return whole if rows is None else whole[rows]

    def codes(self, name: str, rows: slice | None = None) -> Codes | None:
        """The integers of a matrix, or of its rows, if it is stored whole and in edgekit's form."""
        part = self.architecture.by_name[name].source
        return self.source.codes(part.tensor, rows) if part.whole else None

    @property
    def dtype(self) -> str:
        """The checkpoint's precision, "BF16", "F16" or "F32": that of its embedding."""
        stored = self.source.dtype(self.architecture.embedding + ".weight")
        return stored if stored in ("F16", "F32") else "BF16"

    @property
    def dtypes(self) -> dict[str, str]:
        """How the stored tensors that are plain floats are stored, by name."""
        names = {spec.source.tensor for spec in self.specs}
        kinds = {name: self.source.dtype(name) for name in names}
        return {name: kind for name, kind in kinds.items() if kind in ("BF16", "F16", "F32")}

    @property
    def stored_as(self) -> str:
        """How most of the matrices are stored, such as "BF16" or "fp8-e4m3"."""
        sizes: dict[str, int] = {}
        for spec in self.specs:
            kind = self.source.dtype(spec.source.tensor)
            sizes[kind] = sizes.get(kind, 0) + spec.parameters
        return max(sizes, key=lambda kind: sizes[kind])

    @property
    def nbytes(self) -> int:
        """Bytes of the architecture's tensors on disk."""
        names = {spec.source.tensor for spec in self.specs}
        return sum(self.source.nbytes(name) for name in names)


def shard_names(path: Path) -> list[str]:
    """Names of the safetensors files of a checkpoint directory.

    Raises:
        BadInputError: there are none (pickles are named and refused), or the index names an
            absent or unsafe file.
    """
    if (path / WEIGHTS).is_file():
        return [WEIGHTS]
    if (path / INDEX).is_file():
        shards = sorted(set(_weight_map(path).values()))
        for shard in shards:
            if not (path / shard).is_file():
                raise BadInputError(
                    f"{path / INDEX}: names {shard}, which is not there; download the rest of "
                    "the checkpoint"
                )
        return shards
    pickles = [f.name for pattern in ("*.bin", "*.pt", "*.pth") for f in path.glob(pattern)]
    if pickles:
        raise BadInputError(
            f"{path / pickles[0]}: pickle weights can run code and are never loaded; "
            "convert the checkpoint to safetensors"
        )
    raise BadInputError(f"{path}: no {WEIGHTS} and no {INDEX}; the weights are missing")


def _weight_map(path: Path) -> dict[str, str]:
    value = read_json(path / INDEX).get("weight_map")
    if not isinstance(value, dict) or not value:
        raise BadInputError(f"{path / INDEX}: no weight_map; download the file again")
    for name, shard in value.items():
        if not isinstance(shard, str) or Path(shard).name != shard or shard in (".", ".."):
            raise BadInputError(
                f"{path / INDEX}: {name!r} is said to be in {shard!r}, which is not a plain file "
                "name; do not use this checkpoint"
            )
    return value


def write_checkpoint(
    directory: Path,
    config: Mapping[str, Any],
    tensor: Callable[[TensorSpec], NDArray[np.float32]],
    dtype: str = "BF16",
    advance: Callable[[], None] = lambda: None,
    stored_as: Mapping[str, str] | None = None,
    shard_bytes: int = 0,
) -> None:
    """Write ``config.json`` and weights into an existing, empty directory.

    ``tensor`` is asked for each tensor of the architecture that ``config`` describes and gives
    float32 of the right shape; norms are stored as float32, the rest as ``dtype``, but those in
    ``stored_as`` as it says. Tensors that the family stores as parts of a bigger one are put
    together again, as few of its rows at a time as the parts allow, so that memory holds an expert
    and not all of them. The weights are
    ``model.safetensors``, or, where that would have more than ``shard_bytes`` (0: no limit),
    several files with an index.
    """
    stored: dict[str, list[TensorSpec]] = {}
    for spec in describe(config).tensors():
        stored.setdefault(spec.source.tensor, []).append(spec)
    kinds = {name: "F32" if specs[0].role == "norm" else dtype for name, specs in stored.items()}
    kinds |= dict(stored_as or {})
    layout = [
        TensorInfo(name, kinds[name], specs[0].source.shape) for name, specs in stored.items()
    ]
    shards = _shards(layout, shard_bytes)
    for name, part in shards.items():
        with TensorFileWriter(directory / name, part, {"format": "pt"}) as writer:
            for info in part:
                for first_row, values in _assembled(stored[info.name], tensor, advance):
                    if info.dtype != "BF16":
                        values = values.astype(DTYPES[info.dtype][1])
                    writer.write(info.name, values, first_row)
    if len(shards) > 1:
        where = {info.name: name for name, part in shards.items() for info in part}
        index = {"metadata": {"total_size": sum(i.nbytes for i in layout)}, "weight_map": where}
        (directory / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    text = json.dumps(dict(config), indent=2, ensure_ascii=False) + "\n"
    (directory / "config.json").write_text(text, encoding="utf-8")


def _shards(layout: Iterable[TensorInfo], limit: int) -> dict[str, list[TensorInfo]]:
    """Tensors by file name, in order; a tensor that is larger than the limit has its own file."""
    parts: list[list[TensorInfo]] = [[]]
    size = 0
    for info in layout:
        if limit and parts[-1] and size + info.nbytes > limit:
            parts.append([])
            size = 0
        parts[-1].append(info)
        size += info.nbytes
    if len(parts) == 1:
        return {WEIGHTS: parts[0]}
    count = len(parts)
    return {f"model-{n:05}-of-{count:05}.safetensors": part for n, part in enumerate(parts, 1)}


def _assembled(
    specs: list[TensorSpec],
    tensor: Callable[[TensorSpec], NDArray[np.float32]],
    advance: Callable[[], None],
) -> Iterator[tuple[int | None, NDArray[np.float32]]]:
    """A stored tensor from the tensors that are its parts: whole, or by rows with their start."""
    shape = specs[0].source.shape
    pieces: dict[tuple[int, int], list[TensorSpec]] = {}
    for spec in specs:
        rows = spec.source.rows
        span = (0, shape[0]) if rows is None else (rows.start, rows.stop)
        pieces.setdefault(span, []).append(spec)
    ends = [0, *(stop for _, stop in pieces)]
    if [start for start, _ in pieces] != ends[:-1]:  # parts that share rows
        pieces = {(0, shape[0]): specs}
    for (start, stop), parts in pieces.items():
        whole = (start, stop) == (0, shape[0])
        values = np.empty((stop - start, *shape[1:]), np.float32)
        for spec in parts:
            part = spec.source.view(values) if whole else spec.source.read(partial(_given, values))
            part[...] = np.asarray(tensor(spec), np.float32).reshape(part.shape)
            advance()
        yield None if whole else start, values


def _given(values: NDArray[np.float32], _: slice | None) -> NDArray[np.float32]:
    """The rows that were made already, whichever are asked for."""
    return values


def copy_tokenizer(source: Path, target: Path, names: Iterable[str] = TOKENIZER_FILES) -> None:
    """Copy tokenizer, chat template and licence files that exist."""
    for name in names:
        if (source / name).is_file():
            (target / name).write_bytes((source / name).read_bytes())


class LeavesOut(Protocol):
    """A description of a model that knows which tensors of a checkpoint it can do without."""

    @property
    def model_type(self) -> str:
        """The ``model_type`` of its config."""

    def without(self, names: Iterable[str]) -> list[str]:
        """Those of ``names`` that may be left out."""


def check_tensors(
    path: Path,
    source: SourceWeights,
    wanted: Mapping[str, tuple[int, ...]],
    architecture: LeavesOut,
) -> None:
    """Refuse weights that are not what the config promises: names and shapes.

    Raises:
        BadInputError: names the first tensor that is missing, of another shape, or unknown.
    """
    for name, shape in wanted.items():
        if name not in source:
            raise BadInputError(
                f"{path}: tensor {name!r} is missing from the weights; "
                "download the checkpoint again"
            )
        stored = source.shape(name)
        if stored != shape:
            raise BadInputError(
                f"{source.path(name)}: {name} has shape {list(stored)} but config.json implies "
                f"{list(shape)}; config and weights do not belong together"
            )
    rest = [name for name in source.names() if name not in wanted]
    left_out = set(architecture.without(rest))
    for name in rest:
        if name not in left_out:
            raise BadInputError(
                f"{source.path(name)}: {name!r} is not a tensor of a {architecture.model_type} as "
                "edgekit knows it and cannot be left out; give a checkpoint without it"
            )
