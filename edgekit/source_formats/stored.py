"""What every format shares: the files as one set of tensors, and a logical tensor made of them.

A logical tensor is what the model computes with, a float matrix under its usual name; the files may
store it as several tensors. Shapes and data types are checked when it is found, data are read when
rows of it are asked for, so that opening is quick and working memory is that of the rows.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekit.errors import BadInputError
from edgekit.tensorfile import TensorFile, TensorInfo

Float = NDArray[np.float32]


class Tensors:
    """The stored tensors of all files of a checkpoint, by name."""

    def __init__(self, files: Mapping[str, TensorFile]) -> None:
        self._files = files

    def __contains__(self, name: object) -> bool:
        return name in self._files

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def path(self, name: str) -> Path:
        """The file that holds a tensor."""
        return self._files[name].path

    def info(self, name: str) -> TensorInfo:
        """Stored dtype and shape."""
        return self._files[name].info(name)

    def array(self, name: str) -> NDArray[Any]:
        """The stored bytes as a view, without a copy."""
        return self._files[name].array(name)

    def float32(self, name: str, rows: slice) -> Float:
        """A copy of rows of a tensor that is stored as floats."""
        return self._files[name].float32(name, rows if self.info(name).shape else ...)

    def forget(self, name: str) -> None:
        """Take the pages of a tensor out of the process's memory again."""
        self._files[name].forget(name)

    def bad(self, name: str, what: str) -> BadInputError:
        """The error about a stored tensor: "<file>: tensor '<name>' <what>"."""
        return BadInputError(f"{self.path(name)}: tensor {name!r} {what}")

    def partner(self, name: str, *choices: str) -> TensorInfo:
        """The tensor that ``name`` cannot be read without: the first of ``choices`` there is."""
        for choice in choices:
            if choice in self:
                return self.info(choice)
        wanted = " or ".join(repr(choice) for choice in choices)
        raise self.bad(
            name, f"cannot be read without {wanted}, which is missing; download it again"
        )

    def expect(self, name: str, dtypes: tuple[str, ...], shape: tuple[int, ...]) -> None:
        """Refuse a tensor that is not of one of ``dtypes``, or not of ``shape``."""
        info = self.info(name)
        if info.dtype not in dtypes:
            raise self.bad(
                name,
                f"is {info.dtype}, expected {' or '.join(dtypes)}; download the checkpoint again",
            )
        if info.shape != shape:
            raise self.bad(
                name,
                f"has shape {list(info.shape)}, expected {list(shape)}; config and weights do not "
                "belong together, download the checkpoint again",
            )


class StoredTensor(ABC):
    """A logical tensor.

    Attributes:
        name: what the model calls it, e.g. ``model.layers.0.self_attn.q_proj.weight``.
        shape: of the float tensor.
        dtype: short name of the stored form, e.g. ``BF16``, ``fp8-e4m3``, ``gptq-int4-g128``.
        parts: the stored tensors that it is made of.
    """

    def __init__(
        self,
        tensors: Tensors,
        name: str,
        shape: tuple[int, ...],
        dtype: str,
        parts: tuple[str, ...],
    ) -> None:
        self.tensors = tensors
        self.name = name
        self.shape = shape
        self.dtype = dtype
        self.parts = parts

    @property
    def nbytes(self) -> int:
        """Bytes of all parts in the files."""
        return sum(self.tensors.info(part).nbytes for part in self.parts)

    @abstractmethod
    def decode(self, start: int, stop: int) -> Float:
        """Entries ``start`` to ``stop`` of the first axis, as float32."""


def ceil_divide(count: int, size: int) -> int:
    """How many blocks of ``size`` hold ``count``."""
    return -(-count // size)
