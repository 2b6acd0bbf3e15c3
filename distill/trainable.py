"""Which weights of an opened model are trained.

The parts of the recipe's ``trainable`` are found by what a module is and where it stands in a
layer, because every family names its weights differently.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import nn

from edgekit.distill.mixture import MixtureBlock
from edgekit.distill.open_model import OpenModel
from edgekit.distill.seats import BLOCKS
from edgekit.errors import BadInputError

ROUTER = ("router", "router_bias", "router_scale", "expert_scale")
CHOICE_ONLY = "correction"  # decides which experts are chosen and nothing else: has no gradient
FEED_FORWARD = (*BLOCKS, "mlps", "shared_mlp", "router", "experts")  # names in a decoder layer


def trainable_parameters(opened: OpenModel, parts: Sequence[str]) -> dict[str, nn.Parameter]:
    """Switch on the gradients of ``parts`` and return them by name, in the model's order.

    Raises:
        BadInputError: the model has no such weights.
    """
    wanted = {id(p) for part in parts for p in _part(opened, part)}
    chosen = {
        name: parameter
        for name, parameter in opened.model.named_parameters()
        if id(parameter) in wanted and name.rpartition(".")[2] != CHOICE_ONLY
    }
    if not chosen:
        raise BadInputError(
            f"[distill] trainable: the student has no weights of {', '.join(parts)}; name others"
        )
    for parameter in chosen.values():
        parameter.requires_grad_(True)
    return chosen


def _part(opened: OpenModel, part: str) -> Iterator[nn.Parameter]:
    if part == "all":
        yield from opened.model.parameters()
    elif part in ("router", "experts"):
        for block in opened.mixtures.values():
            for name, parameter in block.named_parameters(recurse=False):
                if (name in ROUTER) == (part == "router"):
                    yield parameter
    elif part == "norms":
        for module in opened.model.modules():
            if is_norm(module):
                yield from module.parameters()
    elif part == "embedding":
        for table in (opened.model.get_input_embeddings(), opened.model.get_output_embeddings()):
            yield from table.parameters()
    else:
        yield from _of_layers(opened, feed_forward=part == "mlp")


def _of_layers(opened: OpenModel, feed_forward: bool) -> Iterator[nn.Parameter]:
    """What the layers have in their dense feed-forwards and shared experts, or in the attention's
    place, norms inside it included."""
    for layer in opened.layers:
        for name, child in layer.named_children():
            if is_norm(child) or (name in FEED_FORWARD) != feed_forward:
                continue
            for module in child.modules():
                if not isinstance(module, MixtureBlock):
                    yield from module.parameters(recurse=False)


def is_norm(module: nn.Module) -> bool:
    """Whether a module is a normalisation; transformers has a class of every family."""
    name = type(module).__name__
    return "Norm" in name and not any(True for _ in module.children())
