"""Checkpoints: a directory with ``config.json``, safetensors weights and a tokenizer.

Opening a checkpoint reads headers only, checks the shard index and compares every shape with what
the config promises, so a damaged download is refused before any work; so is a tensor that the
architecture has no place for, because without it the model would say something else. Weights are
read by memory map, one tensor at a time. Code and pickles in a checkpoint are never loaded.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekit.architecture import EMBEDDING, HEAD, Architecture, TensorSpec, describe
from edgekit.errors import BadInputError
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
    """An opened, unquantized checkpoint.

    Attributes:
        path: the directory.
        config: the raw ``config.json``, read only.
        architecture: the resolved shape.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config: Mapping[str, Any] = MappingProxyType(read_config(path))
        if "quantization_config" in self.config:
            raise BadInputError(
                f"{path / 'config.json'}: the checkpoint is quantized already; "
                "give the original, unquantized checkpoint"
            )
        self.architecture: Architecture = describe(self.config, str(path / "config.json"))
        self._files = {name: TensorFile(path / name) for name in shard_names(path)}
        self._where = self._locate()
        self._specs = {spec.name: spec for spec in self.architecture.tensors()}
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
        for spec in self._specs.values():
            stored = self.info(spec.name).shape
            if stored != spec.shape:
                raise BadInputError(
                    f"{self._where[spec.name].path}: {spec.name} has shape {list(stored)} but "
                    f"config.json implies {list(spec.shape)}; config and weights do not belong "
                    "together"
                )
        for name, file in self._where.items():
            if name not in self._specs and not self._is_redundant(name):
                raise BadInputError(
                    f"{file.path}: {name!r} is not a tensor of a {self.architecture.model_type} "
                    "as edgekit knows it and cannot be left out; give a checkpoint without it"
                )

    def _is_redundant(self, name: str) -> bool:
        """Whether a tensor repeats what config and embedding say; some writers store these."""
        tied_head = name == HEAD and self.architecture.tie_word_embeddings
        return tied_head or name.endswith(".rotary_emb.inv_freq")

    @property
    def specs(self) -> list[TensorSpec]:
        """Tensors of the architecture, in forward order."""
        return list(self._specs.values())

    def info(self, name: str) -> TensorInfo:
        """Stored dtype and shape of a tensor."""
        if name not in self._where:
            raise BadInputError(
                f"{self.path}: tensor {name!r} is missing from the weights; "
                "download the checkpoint again"
            )
        return self._where[name].info(name)

    def float32(self, name: str, part: Any = ...) -> NDArray[np.float32]:
        """One tensor as float32 (bf16, f16 and f32 are read), or a part of it."""
        self.info(name)
        return self._where[name].float32(name, part)

    @property
    def dtype(self) -> str:
        """Stored dtype of the embedding, "BF16", "F16" or "F32": the checkpoint's precision."""
        return self.info(EMBEDDING).dtype

    @property
    def nbytes(self) -> int:
        """Bytes of the architecture's tensors on disk."""
        return sum(self.info(name).nbytes for name in self._specs)


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
) -> None:
    """Write ``config.json`` and ``model.safetensors`` into an existing, empty directory.

    ``tensor`` is asked for each tensor of the architecture that ``config`` describes, in forward
    order, and gives float32 of the right shape; norms are stored as float32, the rest as ``dtype``.
    """
    architecture = describe(config)
    specs = architecture.tensors()
    layout = [TensorInfo(s.name, "F32" if s.role == "norm" else dtype, s.shape) for s in specs]
    with TensorFileWriter(directory / WEIGHTS, layout, {"format": "pt"}) as writer:
        for spec, info in zip(specs, layout, strict=True):
            values = np.asarray(tensor(spec), np.float32)
            if info.dtype != "BF16":
                values = values.astype(DTYPES[info.dtype][1])
            writer.write(spec.name, values)
            advance()
    text = json.dumps(dict(config), indent=2, ensure_ascii=False) + "\n"
    (directory / "config.json").write_text(text, encoding="utf-8")


def copy_tokenizer(source: Path, target: Path, names: Iterable[str] = TOKENIZER_FILES) -> None:
    """Copy tokenizer, chat template and licence files that exist."""
    for name in names:
        if (source / name).is_file():
            (target / name).write_bytes((source / name).read_bytes())
