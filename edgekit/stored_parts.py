"""Where a checkpoint keeps a tensor: whole, or as a part of a bigger one.

Families store the same matrix differently: an expert may be its own tensor, one slice of
``[E, 2 I, H]``, every second column of ``[E, H, 2 I]``, or rows of ``[E * I, H]``. A
:class:`Part` is a numpy view of the stored tensor, so one description serves reading and writing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

Range = tuple[int, int, int]  # start, stop, step


@dataclass(frozen=True)
class Part:
    """A view of the stored ``tensor`` of ``shape``.

    The stored tensor is seen as ``split`` (its own shape if empty), then indexed axis by axis, then
    transposed, or its axes put into the order ``axes``. The result holds the elements of the wanted
    tensor in its order.
    """

    tensor: str
    shape: tuple[int, ...]
    split: tuple[int, ...] = ()
    index: tuple[int | Range, ...] = ()
    transposed: bool = False
    axes: tuple[int, ...] = ()

    @property
    def whole(self) -> bool:
        """Whether the part is the stored tensor itself."""
        return not (self.split or self.index or self.transposed or self.axes)

    @property
    def rows(self) -> slice | None:
        """Rows of the stored first axis that the part lies in; None for all of them."""
        if not self.index or (self.split and self.shape[0] % self.split[0]):
            return None
        each = self.shape[0] // self.split[0] if self.split else 1
        first = self.index[0]
        start, stop = (first, first + 1) if isinstance(first, int) else first[:2]
        return slice(start * each, stop * each)

    def view(self, stored: NDArray[Any]) -> NDArray[Any]:
        """The part of a stored array, without a copy where numpy can."""
        return self._indexed(stored, self.split, self.index)

    def read(self, decode: Callable[[slice | None], NDArray[Any]]) -> NDArray[Any]:
        """The part, of which ``decode`` gives the rows of the stored tensor that it lies in."""
        values = decode(self.rows)
        if self.rows is None:
            return self.view(values)
        first = self.index[0]
        count = 1 if isinstance(first, int) else first[1] - first[0]
        within: int | Range = 0 if isinstance(first, int) else (0, count, first[2])
        split = (count, *self.split[1:]) if self.split else ()
        return self._indexed(values, split, (within, *self.index[1:]))

    def _indexed(
        self, stored: NDArray[Any], split: tuple[int, ...], index: tuple[int | Range, ...]
    ) -> NDArray[Any]:
        array = stored.reshape(split) if split else stored
        if index:
            array = array[tuple(i if isinstance(i, int) else slice(*i) for i in index)]
        if self.axes:
            return array.transpose(self.axes)
        return array.T if self.transposed else array


def rows(tensor: str, shape: tuple[int, ...], start: int, stop: int) -> Part:
    """Rows ``start`` to ``stop`` of a stored matrix or vector."""
    return Part(tensor, shape, index=((start, stop, 1),))
