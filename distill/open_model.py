"""A checkpoint as a model that runs, whole or layer by layer.

transformers builds the model without memory for its weights; edgekit's mixtures take the place of
its sparse blocks (:mod:`edgekit.distill.seats`); the weights come through
:class:`edgekit.checkpoint.Checkpoint`, which reads every stored form, an expert at a time. A layer
can be loaded and dropped by itself, so a model does not have to fit in memory, and every weight can
be given back under its name in the checkpoint.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from edgekit.architecture import Architecture, TensorSpec
from edgekit.atomic import write_json
from edgekit.checkpoint import Checkpoint
from edgekit.distill.loading import Model, quiet_transformers
from edgekit.distill.mixture import MixtureBlock
from edgekit.distill.mixture_weights import is_routed, read_mixture, routed_tensor
from edgekit.distill.seats import take_seats
from edgekit.family_table import FAMILIES
from edgekit.quantize.reference import plain_config


class OpenModel:
    """A model of transformers whose weights edgekit loads.

    Attributes:
        path: the checkpoint's directory.
        checkpoint: the open checkpoint.
        architecture: its shape. A layer of transformers is ``parts`` layers of it.
        model: call it with ``input_ids`` int64 [B, T] and ``use_cache=False``.
        decoder: the part of it below the head, from ``input_ids`` to hidden states.
        layers: transformers' decoder layers.
        mixtures: the sparse feed-forwards by layer of ``architecture``.
    """

    def __init__(self, checkpoint: Checkpoint, dtype: torch.dtype, device: str) -> None:
        from transformers.conversion_mapping import get_model_conversion_mapping

        self.path = checkpoint.path
        self.checkpoint = checkpoint
        self.architecture: Architecture = checkpoint.architecture
        self.dtype, self.device = dtype, torch.device(device)
        self.model: Model = _skeleton(checkpoint, dtype)
        self.decoder = _decoder(self.model)
        self.layers = _decoder_layers(self.decoder)
        self.parts = len(self.architecture.layers) // len(self.layers)
        self.mixtures: dict[int, MixtureBlock] = take_seats(
            self.model, self.layers, self.architecture, dtype
        )
        self._mapping = get_model_conversion_mapping(self.model)
        self._stored = _stored_by_layer(checkpoint, self.parts)
        self.model.eval()
        self.model.requires_grad_(False)
        self.after_loading: Callable[[], None] = lambda: None  # changes what a layer was loaded as

    def load(self) -> None:
        """Load every weight."""
        self.load_rest()
        for number in range(len(self.layers)):
            self.load_layer(number)

    def load_rest(self) -> None:
        """Load what is in no layer: embedding, final norm, head."""
        for name in self._stored[-1]:  # one by one: as read and as kept is twice the memory
            self._load([name])
        self.model.tie_weights()

    def load_layer(self, number: int) -> None:
        """Load one decoder layer of transformers."""
        self._load(self._stored[number])
        for index in range(number * self.parts, (number + 1) * self.parts):
            if index in self.mixtures:
                read_mixture(self.checkpoint, index, self.mixtures[index], self.device)
        if FAMILIES[self.architecture.model_type].ignored:
            _fill_unused(self.layers[number], self.device)
        self.after_loading()

    def drop_layer(self, number: int) -> None:
        """Free the weights of a layer."""
        for module in self.layers[number].modules():
            for name, parameter in module.named_parameters(recurse=False):
                empty = torch.empty_like(parameter, device="meta")
                setattr(module, name, nn.Parameter(empty, requires_grad=False))

    def tensors(self) -> Callable[[TensorSpec], NDArray[np.float32]]:
        """Gives any tensor of the architecture, in float32, as the model has it now."""
        from transformers.core_model_loading import revert_weight_conversion

        state = {
            name: value
            for name, value in self.model.state_dict().items()
            if ".mixture." not in name
        }
        stored = revert_weight_conversion(self.model, state)

        def tensor(spec: TensorSpec) -> NDArray[np.float32]:
            if is_routed(spec, self.architecture):
                values = routed_tensor(spec, self.mixtures[spec.layer])
            else:
                values = stored[spec.source.tensor].detach().float().cpu().numpy()
                values = spec.source.view(values)
            return np.ascontiguousarray(values).reshape(spec.shape)

        return tensor

    def _load(self, names: Iterable[str]) -> None:
        source = self.checkpoint.source
        self.put({n: torch.from_numpy(np.array(source.float32(n), order="C")) for n in names})

    def put(self, weights: Mapping[str, torch.Tensor]) -> None:
        """Give the model tensors under their names in the checkpoint's files, routed experts and
        routers excepted. The parameters that they become are new objects."""
        from transformers.core_model_loading import convert_and_load_state_dict_in_model
        from transformers.modeling_utils import LoadStateDictConfig

        config = LoadStateDictConfig(
            weight_mapping=self._mapping, dtype=self.dtype, device_map={"": str(self.device)}
        )
        with quiet_transformers():
            convert_and_load_state_dict_in_model(self.model, dict(weights), config, None)
        self.model.requires_grad_(False)


@contextmanager
def open_model(
    path: Path, *, dtype: torch.dtype = torch.float32, device: str = "cpu", load: bool = True
) -> Iterator[OpenModel]:
    """Open a checkpoint; with ``load`` its weights are in memory.

    Raises:
        BadInputError: the checkpoint is damaged or of an unknown family.
    """
    with Checkpoint(path) as checkpoint:
        opened = OpenModel(checkpoint, dtype, device)
        if load:
            opened.load()
        yield opened


def _skeleton(checkpoint: Checkpoint, dtype: torch.dtype) -> Model:
    """The model without memory for its weights; what is computed from the config is real."""
    from accelerate import init_empty_weights

    eager = FAMILIES[checkpoint.architecture.model_type].eager
    with quiet_transformers(), init_empty_weights(include_buffers=False):
        from transformers import AutoModelForCausalLM

        return AutoModelForCausalLM.from_config(
            _transformers_config(checkpoint),
            dtype=dtype,
            trust_remote_code=False,
            experts_implementation="eager",
            attn_implementation="eager" if eager else None,
        )


def _transformers_config(checkpoint: Checkpoint) -> Any:
    """The config as transformers reads it from a file, where it decodes infinite numbers."""
    from transformers import AutoConfig

    with tempfile.TemporaryDirectory() as directory:
        write_json(Path(directory) / "config.json", plain_config(dict(checkpoint.config)))
        return AutoConfig.from_pretrained(directory, trust_remote_code=False)


def _decoder(model: Model) -> Any:
    """The part of the model below its head; DBRX names it differently."""
    return model.model if hasattr(model, "model") else model.transformer


def _decoder_layers(decoder: nn.Module) -> nn.ModuleList:
    """The list of layers; families name it differently."""
    return next(m for m in decoder.children() if isinstance(m, nn.ModuleList))


def _stored_by_layer(checkpoint: Checkpoint, parts: int) -> dict[int, list[str]]:
    """Stored tensors that transformers loads, by its layers; -1 for those in no layer.

    Tensors of the mixtures are left to edgekit. Those that the architecture does without (an index
    beside the attention) may still be weights of transformers' model.
    """
    architecture = checkpoint.architecture
    stored: dict[int, dict[str, None]] = {}
    places: dict[str, int] = {}
    for spec in checkpoint.specs:
        number = spec.layer // parts if spec.layer >= 0 else -1
        prefix = _layer_prefix(spec.source.tensor)
        if prefix:
            places[prefix] = number
        if not is_routed(spec, architecture):
            stored.setdefault(number, {})[spec.source.tensor] = None
    for name in architecture.without(checkpoint.source.names()):
        number = places.get(_layer_prefix(name), -1)
        if number >= 0:
            stored[number][name] = None
    return {number: list(names) for number, names in stored.items()}


def _fill_unused(layer: nn.Module, device: torch.device) -> None:
    """Zeros for what the architecture does without and the checkpoint left out.

    Every tensor of the architecture is in a checkpoint that was opened, so nothing else is missing.
    """
    for module in layer.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.is_meta:
                zeros = torch.zeros_like(parameter, device=device)
                setattr(module, name, nn.Parameter(zeros, requires_grad=False))


def _layer_prefix(name: str) -> str:
    """``model.layers.3.`` of a name; empty outside the layers."""
    match = re.match(r".*?\.\d+\.", name)
    return match[0] if match else ""
