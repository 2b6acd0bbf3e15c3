"""Replace an opened model's matrices by what quantization will make of them."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from numpy.typing import NDArray

from edgekit.architecture import TensorSpec
from edgekit.distill.mixture_weights import is_routed, write_routed
from edgekit.distill.open_model import OpenModel
from edgekit.progress import Progress, Task
from edgekit.quantize.write import fake_quantized
from edgekit.recipe import QuantizeSection
from edgekit.scheme import Scheme


def fake_quantize(opened: OpenModel, section: QuantizeSection, progress: Progress) -> None:
    """Round every matrix that ``section`` packs; the result is still in the model's precision.

    Parameters become new objects, so whatever trains the model asks for them afterwards.
    """
    layers: dict[int, list[TensorSpec]] = {}
    for spec in opened.checkpoint.specs:
        number = spec.layer // opened.parts if spec.layer >= 0 else -1
        layers.setdefault(number, []).append(spec)
    total = opened.architecture.parameters()
    with progress.task("round the weights", total) as task:
        for specs in layers.values():  # transformers may put tensors of one layer together
            _round(opened, specs, section, task)
    opened.model.tie_weights()


def _round(
    opened: OpenModel, specs: Iterable[TensorSpec], section: QuantizeSection, task: Task
) -> None:
    scheme = Scheme.parse(section.scheme)
    checkpoint = opened.checkpoint
    changed: dict[str, NDArray[np.float32]] = {}
    for spec in specs:
        packing = scheme.packing(spec)
        if packing:
            values = fake_quantized(checkpoint.float32(spec.name), packing, section.method)
            if is_routed(spec, opened.architecture):
                block = opened.mixtures[spec.layer]
                write_routed(spec, block, torch.from_numpy(values))
            else:
                part = spec.source
                if part.tensor not in changed:
                    whole = checkpoint.source.float32(part.tensor)
                    changed[part.tensor] = np.array(whole, order="C")
                view = part.view(changed[part.tensor])
                view[...] = values.reshape(view.shape)
        task.advance(spec.parameters)
    opened.put({name: torch.from_numpy(values) for name, values in changed.items()})
