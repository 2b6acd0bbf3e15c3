"""A model that was opened without its layers, made callable.

It is loaded whole where that takes less than half of the memory that is free; else every call reads
one layer after another, and only one is in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from edgekit.distill.open_model import OpenModel
from edgekit.memory import available_memory

FLOAT = 4  # bytes


@contextmanager
def resident(opened: OpenModel, streamed: bool = False) -> Iterator[None]:
    """Let ``opened.model`` be called; embedding, norm and head have to be loaded. Afterwards no
    layer is in memory. With ``streamed`` it is never loaded whole."""
    whole = not streamed and 2 * FLOAT * opened.architecture.parameters() < available_memory()
    handles = []
    for number, layer in enumerate(opened.layers):
        if whole:
            opened.load_layer(number)
        else:
            handles.append(layer.register_forward_pre_hook(_calling(opened.load_layer, number)))
            handles.append(layer.register_forward_hook(_calling(opened.drop_layer, number)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        for number in range(len(opened.layers)):
            opened.drop_layer(number)


def _calling(function: Callable[[int], None], number: int) -> Callable[..., None]:
    """A hook that ignores what it is told."""
    return lambda *_: function(number)
