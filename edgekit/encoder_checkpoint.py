"""An encoder's checkpoint: ``config.json``, safetensors weights, tokenizer, sentence-transformers'
settings. Headers and shapes are checked when it is opened; weights are read one tensor at a time.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgekit.checkpoint import check_tensors, read_config, shard_names
from edgekit.encoder import ENCODERS, WORDS, Encoder, describe_encoder
from edgekit.encoder_settings import EmbeddingSettings, read_settings
from edgekit.source_weights import Codes, SourceWeights
from edgekit.tensorfile import TensorFile


class EncoderCheckpoint:
    """An opened checkpoint.

    Attributes:
        path: the directory.
        config: the raw ``config.json``.
        architecture: the resolved shape.
        settings: pooling, length and prefixes.
        source: the float tensors that the files stand for, under the names they are stored by.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = read_config(path)
        described = str(path / "config.json")
        describe_encoder(self.config, described)  # refused before any weights are looked at
        self._files = {name: TensorFile(path / name) for name in shard_names(path)}
        where = {name: file for file in self._files.values() for name in file.tensors}
        self.source = SourceWeights(self.config, where, described)
        wrapper = ENCODERS[self.config["model_type"]].wrapper
        prefix = wrapper if f"{wrapper}{WORDS}.weight" in self.source else ""
        self.architecture: Encoder = describe_encoder(self.config, described, prefix)
        self.settings: EmbeddingSettings = read_settings(path, self.architecture)
        self._check_shapes()

    def __enter__(self) -> EncoderCheckpoint:
        return self

    def __exit__(self, *_: object) -> None:
        for file in self._files.values():
            file.close()

    def _check_shapes(self) -> None:
        wanted = {spec.source.tensor: spec.shape for spec in self.architecture.tensors()}
        check_tensors(self.path, self.source, wanted, self.architecture)

    def float32(self, name: str, rows: slice | None = None) -> NDArray[np.float32]:
        """One tensor of the architecture as float32, or some of its rows."""
        return self.source.float32(self.architecture.by_name[name].source.tensor, rows)

    def codes(self, name: str, rows: slice | None = None) -> Codes | None:
        """The integers of a matrix, or of its rows, if it is stored in edgekit's form."""
        return self.source.codes(self.architecture.by_name[name].source.tensor, rows)
