"""Low-rank adapters (LoRA, arXiv 2106.09685): beside a matrix W two small ones, W + alpha/r B A.

A is random and B zero at first, so training begins at the student as it is. While it lasts, what
the adapters add is added to the outputs of linear layers and of experts, and the matrices are not
touched; merged, it is in the matrices, and the model is a plain one again.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from edgekit.distill.mixture import Adapter, MixtureBlock
from edgekit.distill.open_model import OpenModel
from edgekit.errors import BadInputError

STACKED = ("gate_up", "down")  # matrices of a mixture's experts


@dataclass(frozen=True)
class Place:
    """A matrix that an adapter can stand beside, and the module that multiplies by it."""

    name: str
    module: nn.Module
    weight: nn.Parameter  # [out, in], or [experts, out, in]


def adapted_places(opened: OpenModel, trained: Mapping[str, nn.Parameter]) -> list[Place]:
    """The matrices among ``trained`` of linear layers and experts in the decoder's layers."""
    names = {id(parameter): name for name, parameter in trained.items()}
    return [
        Place(names[id(weight)], module, weight)
        for layer in opened.layers
        for module, weight in _matrices(layer)
        if id(weight) in names
    ]


def _matrices(layer: nn.Module) -> Iterator[tuple[nn.Module, nn.Parameter]]:
    for module in layer.modules():
        if type(module) is nn.Linear:  # what is derived from it may multiply otherwise
            yield module, module.weight
        elif isinstance(module, MixtureBlock):
            for name in STACKED:
                yield module, getattr(module, name)


class Adapters:
    """Adapters of ``rank`` in the places of ``trained`` that can have one.

    Attributes:
        parameters: what is trained now, by name: adapters, and what cannot have one.

    Raises:
        BadInputError: no place can have one.
    """

    def __init__(
        self,
        opened: OpenModel,
        trained: Mapping[str, nn.Parameter],
        rank: int,
        alpha: float,
        seed: int,
    ) -> None:
        places = adapted_places(opened, trained)
        if not places:
            raise BadInputError(
                "[distill] lora_rank: trainable names no matrices of layers, which are all that "
                "can have adapters; add attention, mlp or experts, or set lora_rank to 0"
            )
        self._factor = alpha / rank
        self._pairs: list[tuple[Place, nn.Parameter, nn.Parameter]] = []
        self._hooks: list[Any] = []
        self.parameters = dict(trained)
        random = torch.Generator().manual_seed(seed)
        for place in places:
            *stack, rows, columns = place.weight.shape
            bound = 1 / math.sqrt(columns)
            a = torch.rand(*stack, rank, columns, generator=random) * (2 * bound) - bound
            down = nn.Parameter(a.to(place.weight))
            up = nn.Parameter(torch.zeros(*stack, rows, rank).to(place.weight))
            del self.parameters[place.name]
            self.parameters[f"{place.name}.lora_a"] = down
            self.parameters[f"{place.name}.lora_b"] = up
            place.weight.requires_grad_(False)
            self._pairs.append((place, down, up))
            self._attach(place, down, up)

    def _attach(self, place: Place, down: Tensor, up: Tensor) -> None:
        if isinstance(place.module, MixtureBlock):
            projection = place.name.rpartition(".")[2]
            place.module.adapters[projection] = Adapter(down, up, self._factor)
            return

        def add(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
            return output + self._factor * functional.linear(functional.linear(inputs[0], down), up)

        self._hooks.append(place.module.register_forward_hook(add))

    @torch.no_grad()
    def merge(self) -> None:
        """Add the adapters to the matrices and take them away."""
        for hook in self._hooks:
            hook.remove()
        for place, down, up in self._pairs:
            if isinstance(place.module, MixtureBlock):
                place.module.adapters.clear()
            for matrix, a, b in _each(place.weight, down, up):
                matrix.add_(b @ a, alpha=self._factor)


def _each(*stacks: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """The matrices of [out, in] or, one after another, of [experts, out, in]."""
    yield from zip(*(s if s.dim() == 3 else s[None] for s in stacks), strict=True)
