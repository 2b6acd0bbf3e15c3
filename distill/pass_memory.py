"""What a calibration pass will need, said before it starts."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from edgekit.architecture import Architecture, Attention, Mixture
from edgekit.distill.accumulate import HALVES
from edgekit.distill.chunks import BATCH_TOKENS, Text
from edgekit.distill.mixture_weights import is_routed
from edgekit.distill.open_model import OpenModel
from edgekit.family_table import FAMILIES
from edgekit.memory import available_memory
from edgekit.plan import BASE_MEMORY, FLOAT32_BYTES

FLOAT64_BYTES = 8
COPIES = 2  # of what is loaded outside the mixtures, in float32: as read, and as converted
STATES = 12  # of a layer's input that a forward has at once, about
SHARE = 0.6  # of the available memory that a model in memory may take


@dataclass(frozen=True)
class PassNeeds:
    """Bytes: memory with the model whole and layer by layer; disk for sums, and for the hidden
    states that streaming keeps."""

    whole: int
    streamed: int
    sums_disk: int
    states_disk: int


@dataclass(frozen=True)
class WeightNeeds:
    """Bytes while weights are loaded: all of them, the largest layer alone, what is in no layer."""

    whole: int
    largest_layer: int
    rest: int


def weight_needs(opened: OpenModel) -> WeightNeeds:
    """What loading ``opened`` needs."""
    architecture, width = opened.architecture, opened.dtype.itemsize
    layers = [0] * len(opened.layers)
    rest = 0
    for spec in architecture.tensors():
        size = spec.parameters * width
        if not is_routed(spec, architecture):
            size += spec.parameters * FLOAT32_BYTES * COPIES
        if spec.layer >= 0:
            layers[spec.layer // opened.parts] += size
        else:
            rest += size
    weights = architecture.parameters() * width
    return WeightNeeds(weights + max(*layers, rest), max(layers), rest)


def pass_needs(opened: OpenModel, text: Text) -> PassNeeds:
    """What a pass over ``text`` needs; ``opened`` need not be loaded."""
    architecture, weights = opened.architecture, weight_needs(opened)
    sums = [
        _sums_bytes(layer.mixture, architecture.hidden_size, len(text.domains))
        for layer in architecture.layers
        if layer.mixture
    ]
    batch = batch_bytes(architecture, text)
    tokens = sum(len(s.tokens) for s in text.sequences)
    return PassNeeds(
        whole=BASE_MEMORY + weights.whole + 2 * sum(sums) + batch,
        streamed=BASE_MEMORY + weights.largest_layer + max(4 * max(sums), 3 * sum(sums)) + batch,
        sums_disk=(len(text.chunks) + 1) * sum(sums),
        states_disk=2 * tokens * architecture.hidden_size * FLOAT32_BYTES,
    )


def free_memory(device: torch.device) -> int:
    """Bytes that are available where the model runs."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return available_memory()


def _sums_bytes(mixture: Mixture, hidden_size: int, domains: int) -> int:
    """Of one layer's sums."""
    experts, choices = mixture.num_experts, mixture.num_experts + mixture.num_identities
    each = HALVES * domains * 7 + hidden_size + 2 * mixture.intermediate_size + experts
    return FLOAT64_BYTES * (experts * each + choices * (choices + domains) + domains)


def batch_bytes(architecture: Architecture, text: Text) -> int:
    """Of the activations of one batch in one layer."""
    tokens = max(text.longest, min(BATCH_TOKENS, sum(len(s.tokens) for s in text.sequences)))
    widths = [architecture.intermediate_size]
    for layer in architecture.layers:
        if layer.mixture:
            shared = layer.mixture.shared.size if layer.mixture.shared else 0
            widths.append(layer.mixture.intermediate_size + shared)
        widths += [layer.dense.size] if layer.dense else []
    heads = max(
        a.num_heads * (a.head_dim if isinstance(a, Attention) else a.nope_dim + a.rope_dim)
        for a in architecture.attentions
    )
    values = STATES * architecture.hidden_size + 4 * max(widths) + 6 * heads
    if FAMILIES[architecture.model_type].eager:  # attention keeps a score per pair of tokens
        values += 3 * text.longest * max(a.num_heads for a in architecture.attentions)
    return tokens * values * FLOAT32_BYTES
