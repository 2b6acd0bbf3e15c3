"""The whole model made to say what the narrower one will, for comparison with what was written.

No weight is cut: neurons that go are silenced where the down projections read them, and channels
that go where the norms read and write them. Nothing here knows the plan's cuts or its factors, but
for the correction of the norms, which is a choice (:mod:`edgekit.distill.slice_hidden`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from edgekit.architecture import Norm, TensorSpec
from edgekit.distill.merge_tensors import PRECISIONS
from edgekit.distill.open_model import OpenModel
from edgekit.distill.prune import round_as_written
from edgekit.distill.slice_hidden import Indices
from edgekit.distill.slice_importance import (
    Importance,
    find_module,
    hidden_norms,
    hooked_modules,
)
from edgekit.distill.slice_plan import WidthPlan


@torch.no_grad()
def narrow_in_memory(opened: OpenModel, plan: WidthPlan, importance: Importance) -> None:
    """Let ``opened``, which is loaded, say what the planned model will; there is no way back."""
    if opened.checkpoint.source.method != "none":
        round_as_written(opened)
    _silence_neurons(opened, plan)
    if plan.architecture.hidden_size < opened.architecture.hidden_size:
        _round_scaled(opened, plan)
        _silence_channels(opened, plan, importance)


def _silence_neurons(opened: OpenModel, plan: WidthPlan) -> None:
    for layer in opened.architecture.layers:
        for name in hooked_modules(layer):
            if name in plan.neurons:
                module = find_module(opened, name, layer.index)
                module.register_forward_pre_hook(_only(plan.neurons[name]))
        if layer.mixture:
            down = opened.mixtures[layer.index].down  # [E, H, I]
            for expert, weight in enumerate(down):
                kept = torch.from_numpy(plan.neurons[layer.mixture.expert(expert, "down")])
                weight.copy_(_kept(weight, kept))


def _silence_channels(opened: OpenModel, plan: WidthPlan, importance: Importance) -> None:
    channels = torch.from_numpy(plan.channels)
    wider = math.sqrt(opened.architecture.hidden_size / len(channels))

    def read(x: Tensor) -> Tensor:
        """x whose mean square over all channels is that of the kept ones over themselves."""
        return _kept(x, channels) * wider

    embedding = opened.decoder.get_input_embeddings()
    embedding.register_forward_hook(lambda _, __, output: _kept(output, channels))
    for norm, index in hidden_norms(opened.architecture):
        share = math.sqrt(importance.energy[norm.module][plan.channels].sum())
        module = find_module(opened, norm.module, index)
        module.register_forward_pre_hook(_reading(norm, channels, read))
        module.register_forward_hook(_saying(channels, share))
        layer = opened.architecture.layers[index] if index >= 0 else None
        block = opened.mixtures.get(index)
        if block and layer and norm == layer.feed_forward_norm and block.router_scale is not None:
            block.router_scale.mul_(share)  # behind a norm of the router's own, of the same x
            block.route = _routing(block.route, read)  # type: ignore[method-assign]


def _kept(values: Tensor, kept: Indices | Tensor) -> Tensor:
    """``values`` [..., n] with zeros in all but the places ``kept``."""
    mask = values.new_zeros(values.shape[-1])
    mask[kept] = 1
    return values * mask


def _only(kept: Indices) -> Callable[..., Any]:
    """A hook that lets a module read the places ``kept`` only."""
    return lambda _, args: (_kept(args[0], torch.from_numpy(kept)), *args[1:])


def _reading(norm: Norm, channels: Tensor, read: Callable[[Tensor], Tensor]) -> Callable[..., Any]:
    def hook(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        x = args[0]
        if norm.kind == "layer":
            x = x - x[..., channels].mean(-1, keepdim=True)
        return (read(x), *args[1:])

    return hook


def _saying(channels: Tensor, share: float) -> Callable[..., Any]:
    """A hook: a norm says ``share`` times as much, but for its bias, and of ``channels`` only."""

    def hook(module: nn.Module, _: object, output: Tensor) -> Tensor:
        bias = getattr(module, "bias", None)
        shift = torch.zeros(output.shape[-1]) if bias is None else bias
        return _kept((output - shift) * share + shift, channels)

    return hook


def _routing(route: Callable[[Tensor], Any], read: Callable[[Tensor], Tensor]) -> Any:
    return lambda x: route(read(x))


def _round_scaled(opened: OpenModel, plan: WidthPlan) -> None:
    """Round the matrices that are scaled as they are written, which is after scaling."""
    stored = plan.stored_as(opened.checkpoint)
    for name, scale in plan.scales.items():
        spec = opened.architecture.by_name.get(name)  # an absent bias is scaled as well
        if spec is None or len(spec.shape) == 1:
            continue
        weight = _matrix(opened, spec)
        precision = PRECISIONS[stored.get(spec.source.tensor, opened.checkpoint.dtype)]
        written = (weight.double() * scale.factor).float().to(precision)
        weight.copy_(written.double() / scale.factor)


def _matrix(opened: OpenModel, spec: TensorSpec) -> Any:
    """The parameter for a matrix outside the routed experts."""
    module = spec.name.removesuffix(".weight")
    if module == opened.architecture.head:
        return opened.model.get_output_embeddings().weight
    return find_module(opened, module, spec.layer).weight
