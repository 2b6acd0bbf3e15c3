"""Where a checkpoint keeps a tensor: whole, or as a part of a bigger one.

Families store the same matrix differently: an expert may be its own tensor, one slice of
``[E, 2 I, H]``, every second column of ``[E, H, 2 I]``, or rows of ``[E * I, H]``. A
:class:`Part` is a numpy view of the stored tensor, so one description serves reading and writing.
"""

from __future__ import annotations

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
    def rows(self) -> slice | None:
        """Range of the stored first axis that the part lies in; None for all of it."""
        if not self.index or (self.split and self.split[0] != self.shape[0]):
            return None
        first = self.index[0]
        return slice(first, first + 1) if isinstance(first, int) else slice(first[0], first[1])

    def view(self, stored: NDArray[Any]) -> NDArray[Any]:
        """The part of a stored array, without a copy where numpy can."""
        array = stored.reshape(self.split) if self.split else stored
        if self.index:
            array = array[tuple(i if isinstance(i, int) else slice(*i) for i in self.index)]
        if self.axes:
            return array.transpose(self.axes)
        return array.T if self.transposed else array


def rows(tensor: str, shape: tuple[int, ...], start: int, stop: int) -> Part:
    """Rows ``start`` to ``stop`` of a stored matrix or vector."""
    return Part(tensor, shape, index=((start, stop, 1),))
