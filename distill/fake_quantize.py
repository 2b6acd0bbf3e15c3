"""Replace a model's matrices by what quantization will make of them."""

from __future__ import annotations

import torch

from edgekit.architecture import Architecture
from edgekit.distill.loading import Model
from edgekit.distill.trainable import named_weights
from edgekit.progress import Progress
from edgekit.quantize.write import fake_quantized
from edgekit.recipe import QuantizeSection
from edgekit.scheme import Scheme


@torch.no_grad()
def fake_quantize(
    model: Model, architecture: Architecture, section: QuantizeSection, progress: Progress
) -> None:
    """Round every matrix that ``section`` packs, in place; the result is still float32."""
    scheme = Scheme.parse(section.scheme)
    weights = named_weights(model, architecture)
    with progress.task("round the weights", architecture.parameters()) as task:
        for spec in architecture.tensors():
            packing = scheme.packing(spec)
            if packing:
                weight = weights[spec.name]
                rounded = fake_quantized(weight.float().numpy(), packing, section.method)
                weight.copy_(torch.from_numpy(rounded))
            task.advance(spec.parameters)
