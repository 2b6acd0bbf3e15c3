"""What each neuron, hidden channel and layer of a model does, measured in one pass.

After Minitron (arXiv 2407.14679, section 3): a feed-forward neuron is worth the L2 norm, over all
tokens, of what the down projection reads from it, and a hidden channel the magnitude of what the
norms make of it, the mean over a sequence and the L2 norm over sequences, summed over all norms.
An expert's neurons count with the gate that multiplies them. Layers are compared by what enters and
what leaves them (Block Influence, arXiv 2403.03853; angular distance of blocks, arXiv 2403.17887).

The same pass sees how much of the energy that each norm divides by lies in each channel, from
which the norm of a narrower model is set right (:mod:`edgekit.distill.slice_hidden`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from edgekit.architecture import Architecture, Layer, Norm, ShortConv
from edgekit.describe import family_of
from edgekit.distill.mixture import Routing
from edgekit.distill.open_model import OpenModel
from edgekit.errors import BadInputError
from edgekit.progress import Progress
from edgekit.sequences import TokenSequence, equal_length_runs, stacked

BATCH_TOKENS = 1024
COMPARED_TOKENS = 128  # at once, of all layers in double precision
SEQUENCE_TOKENS = 2  # fewest; a sequence of one token says nothing about what follows
Array = NDArray[np.float64]


@dataclass(frozen=True)
class Importance:
    """What one pass found; N is the number of transformers' layers, H the hidden size.

    Attributes:
        neurons: worth [I] by the module name of the down projection that reads them; channels of a
            short convolution by that of its output projection.
        channels: worth [H] of the hidden channels.
        energy: by the module name of a norm, the mean over tokens of each channel's share [H] of
            what the norm divides by.
        influence: [N + 1, N + 1]; at (a, b) the mean of 1 - cos between what enters layer a and
            what enters layer b (N: what leaves the last), 0 below the diagonal.
        angle: likewise the mean of arccos(cos) / pi.
        tokens: how many were seen.
    """

    neurons: dict[str, Array]
    channels: Array
    energy: dict[str, Array]
    influence: Array
    angle: Array
    tokens: int


def hidden_norms(architecture: Architecture) -> Iterator[tuple[Norm, int]]:
    """Every norm over the hidden channels and its layer, -1 for the final norm."""
    for layer in architecture.layers:
        for norm in layer.norms():
            yield norm, layer.index
        if layer.beside:
            yield layer.beside.dense_post_norm, layer.index
            yield layer.beside.mixture_norm, layer.index
            yield layer.beside.mixture_post_norm, layer.index
    yield architecture.final_norm, -1


def neuron_places(layer: Layer) -> Iterator[tuple[str, int]]:
    """Module name of every down projection of a layer, experts' too, and its width."""
    if layer.dense:
        yield layer.dense.down, layer.dense.size
    if layer.mixture:
        for expert in range(layer.mixture.num_experts):
            yield layer.mixture.expert(expert, "down"), layer.mixture.intermediate_size
        if layer.mixture.shared:
            yield layer.mixture.shared.down, layer.mixture.shared.size


@torch.no_grad()
def measure_importance(
    opened: OpenModel, sequences: Sequence[TokenSequence], progress: Progress
) -> Importance:
    """Run ``sequences`` through the model once.

    Raises:
        BadInputError: there are no sequences, or a value is not finite.
    """
    text = [s for s in sequences if len(s.tokens) >= SEQUENCE_TOKENS]
    if not text:
        raise BadInputError("there is no calibration text to measure on; raise [data] tokens")
    watch = _Watch(opened)
    with ExitStack() as stack:
        watch.attach(stack)
        total = sum(len(s.tokens) for s in text)
        with progress.task("measure neurons, channels and layers", total) as task:
            for begin, end in equal_length_runs(text, BATCH_TOKENS):
                ids = torch.from_numpy(stacked(text[begin:end])).to(opened.device)
                watch.sequences = end - begin
                opened.decoder(input_ids=ids, use_cache=False)
                watch.compare_layers()
                task.advance(ids.numel())
    return watch.result(total)


@dataclass
class _Watch:
    """The running sums, on the model's device in float64, and the hooks that fill them."""

    opened: OpenModel
    neurons: dict[str, Tensor] = field(default_factory=dict)
    channels: dict[str, Tensor] = field(default_factory=dict)  # per norm, squared
    energy: dict[str, Tensor] = field(default_factory=dict)
    between: dict[str, Tensor] = field(default_factory=dict)
    sequences: int = 1  # of the current batch
    stream: list[Tensor] = field(default_factory=list)  # of the current batch, [B, T, H] each

    def attach(self, stack: ExitStack) -> None:
        """Hook every module; ``stack`` takes the hooks away again."""
        architecture = self.opened.architecture
        for layer in architecture.layers:
            for module in hooked_modules(layer):
                hook = _down_hook(self.neurons, module)
                stack.callback(
                    self._module(module, layer.index).register_forward_pre_hook(hook).remove
                )
            block = self.opened.mixtures.get(layer.index)
            if block is not None:
                block.observer = _Experts(self.neurons, block.mixture.expert)
                stack.callback(setattr, block, "observer", None)
        for norm, index in hidden_norms(architecture):
            found = self._module(norm.module, index)
            stack.callback(found.register_forward_hook(self._norm_hook(norm)).remove)
        for number, decoder_layer in enumerate(self.opened.layers):
            stack.enter_context(_entry(decoder_layer, self.stream))
            if number == len(self.opened.layers) - 1:
                stack.callback(decoder_layer.register_forward_hook(self._exit_hook).remove)

    def _module(self, name: str, layer: int) -> nn.Module:
        return find_module(self.opened, name, layer)

    def _norm_hook(self, norm: Norm) -> Callable[..., None]:
        def hook(_: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
            x, y = args[0].double(), output.double()
            means = y.reshape(self.sequences, -1, y.shape[-1]).abs().mean(1)
            _add(self.channels, norm.module, means.square().sum(0))
            if norm.kind == "layer":
                x = x - x.mean(-1, keepdim=True)
            squares = x.reshape(-1, x.shape[-1]).square()
            share = squares / squares.sum(-1, keepdim=True).clamp(min=1e-300)
            _add(self.energy, norm.module, share.sum(0))

        return hook

    def _exit_hook(self, _: nn.Module, __: tuple[Any, ...], output: Any) -> None:
        self.stream.append(output[0] if isinstance(output, tuple) else output)

    def compare_layers(self) -> None:
        """Compare the states between the layers that the last batch left behind."""
        states = torch.stack([s.flatten(0, -2) for s in self.stream], 1)  # [T, N + 1, H]
        self.stream.clear()
        for some in states.split(COMPARED_TOKENS):
            unit = nn.functional.normalize(some.double(), dim=-1)
            cosine = (unit @ unit.mT).clamp(-1.0, 1.0)
            _add(self.between, "influence", (1 - cosine).sum(0).triu(1))
            _add(self.between, "angle", (cosine.arccos() / torch.pi).sum(0).triu(1))

    def result(self, tokens: int) -> Importance:
        """The sums as what they stand for."""
        for layer in self.opened.architecture.layers:
            for module, size in neuron_places(layer):  # an expert that no token reached
                if module not in self.neurons:
                    self.neurons[module] = torch.zeros(size, dtype=torch.float64)
        channels = torch.stack([total.sqrt() for total in self.channels.values()]).sum(0)
        result = Importance(
            neurons={name: _array(total.sqrt()) for name, total in self.neurons.items()},
            channels=_array(channels),
            energy={name: _array(total / tokens) for name, total in self.energy.items()},
            influence=_array(self.between["influence"] / tokens),
            angle=_array(self.between["angle"] / tokens),
            tokens=tokens,
        )
        for name, values in (*result.neurons.items(), ("the norms", result.channels)):
            if not np.isfinite(values).all():
                raise BadInputError(
                    f"{self.opened.path}: {name} gives values that are not finite on the "
                    "calibration text; check the checkpoint"
                )
        return result


class _Experts:
    """Adds up the gated neurons of each expert of a mixture."""

    def __init__(self, sums: dict[str, Tensor], name: Callable[[int, str], str]) -> None:
        self.sums, self.name = sums, name

    def routed(self, x: Tensor, routing: Routing) -> None:
        """Nothing is taken from the router."""

    def expert(
        self, expert: int, tokens: Tensor, gate: Tensor, hidden: Tensor, output: Tensor
    ) -> None:
        """``hidden`` [n, I] of the tokens of one expert, ``gate`` [n]."""
        gated = hidden.double() * gate.double()[:, None]
        _add(self.sums, self.name(expert, "down"), gated.square().sum(0))


def hooked_modules(layer: Layer) -> Iterator[str]:
    """Down projections of a layer that are modules of transformers', and a convolution's output."""
    if layer.dense:
        yield layer.dense.down
    if layer.mixture and layer.mixture.shared:
        yield layer.mixture.shared.down
    if isinstance(layer.attention, ShortConv):
        yield layer.attention.output


def find_module(opened: OpenModel, name: str, layer: int) -> nn.Module:
    """transformers' module for a name of edgekit's; ``layer`` -1 is below the decoder itself."""
    names = family_of(opened.checkpoint.config, str(opened.path)).names
    if layer < 0:
        module: nn.Module = opened.decoder.get_submodule(name.rpartition(".")[2])
        return module
    inside = name.removeprefix(names.inside(layer))
    return opened.layers[layer // opened.parts].get_submodule(inside)


def _down_hook(sums: dict[str, Tensor], name: str) -> Callable[..., None]:
    def hook(_: nn.Module, args: tuple[Any, ...]) -> None:
        hidden = args[0].double()
        _add(sums, name, hidden.reshape(-1, hidden.shape[-1]).square().sum(0))

    return hook


@contextmanager
def _entry(layer: nn.Module, stream: list[Tensor]) -> Iterator[None]:
    """Append what enters ``layer`` to ``stream``."""

    def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        stream.append(args[0] if args else kwargs["hidden_states"])

    handle = layer.register_forward_pre_hook(hook, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def _add(sums: dict[str, Tensor], name: str, values: Tensor) -> None:
    sums[name] = sums[name] + values if name in sums else values


def _array(values: Tensor) -> Array:
    return values.cpu().numpy()
