"""What a training will need, said before it starts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn

from edgekit.architecture import (
    Architecture,
    Attention,
    GatedDelta,
    LatentAttention,
    Layer,
    Mixer,
    SelectiveScan,
    ShortConv,
)
from edgekit.distill.divergence import FORWARD_TOKENS
from edgekit.distill.head import CHUNK_BYTES
from edgekit.distill.lora import adapted_places
from edgekit.distill.open_model import OpenModel
from edgekit.distill.pass_memory import free_memory, weight_needs
from edgekit.distill.processes import Processes
from edgekit.distill.rows import PACKED_TOKENS
from edgekit.distill.trainable import trainable_parameters
from edgekit.family_table import FAMILIES
from edgekit.memory import require_memory
from edgekit.plan import BASE_MEMORY, FLOAT32_BYTES
from edgekit.recipe import DistillSection

KEPT_BY_OPTIMIZER = {"adamw": 2, "adafactor": 0}  # values per weight; rows and columns are few
LOGIT_COPIES = 3  # logits, a softmax that becomes their gradient, that of all but some tokens
NORM_COPIES = 3  # of what a norm reads
CHUNK, CHUNK_COPIES = 64, 24  # of tokens that a gated delta compares with each other
SCAN_CHUNK, SCAN_COPIES = 256, 4
SCORE_COPIES = 3  # where attention keeps a score of every pair of tokens


@dataclass(frozen=True)
class TrainingNeeds:
    """Bytes: ``fixed`` whatever is trained on, and ``per_token`` of a micro-batch beside them.

    ``longest`` is the longest sequence, below which no micro-batch can be.
    """

    fixed: int
    per_token: int
    longest: int

    def total(self, micro_batch_tokens: int) -> int:
        """With micro-batches of so many tokens."""
        return self.fixed + self.per_token * max(self.longest, micro_batch_tokens)

    def largest(self, available: int) -> int:
        """Tokens of the largest micro-batch that fits; 0 if not one sequence does."""
        tokens = (available - self.fixed) // max(1, self.per_token)
        return int(tokens) if tokens >= self.longest else 0


def training_needs(
    opened: OpenModel, params: DistillSection, longest: int, shares: int = 1
) -> TrainingNeeds:
    """What training ``opened``, which need not be loaded, on sequences of at most ``longest``
    tokens takes; its layers are split into ``shares``, of which this process has one."""
    architecture = opened.architecture
    parameters = trainable_parameters(opened, params.trainable)
    trained, loaded = _trained_values(parameters, opened, params), weight_needs(opened).whole
    if shares > 1:
        inside = {id(parameter): parameter.numel() for parameter in opened.layers.parameters()}
        trained -= _elsewhere(sum(inside.get(id(p), 0) for p in parameters.values()), shares)
        loaded = _loaded_share(opened, sum(inside.values()), shares)
    kept = 1 + KEPT_BY_OPTIMIZER[params.optimizer]  # gradient and what the optimizer keeps
    row = max(longest, min(params.micro_batch_tokens, PACKED_TOKENS))
    logits = min(CHUNK_BYTES, FLOAT32_BYTES * FORWARD_TOKENS * architecture.vocab_size)
    measured = FLOAT32_BYTES * max(FORWARD_TOKENS, longest) * architecture.vocab_size
    return TrainingNeeds(
        fixed=BASE_MEMORY
        + loaded
        + FLOAT32_BYTES * kept * trained
        + LOGIT_COPIES * max(logits, measured),
        per_token=FLOAT32_BYTES
        * activation_values(architecture, row, params.activation_checkpointing),
        longest=longest,
    )


def require_training_memory(
    needs: TrainingNeeds,
    opened: OpenModel,
    params: DistillSection,
    processes: Processes,
    force: bool = False,
) -> None:
    """Refuse a training that will not fit.

    Raises:
        OutOfResourcesError: says the largest micro-batch that would fit, or what else to save.
    """
    available = free_memory(opened.device) // processes.sharing
    largest = needs.largest(available)
    if largest:
        advice = f"lower micro_batch_tokens to {largest}, which would fit, or pass --force"
    else:
        ways = "activation_checkpointing, lora_rank, optimizer adafactor"
        if processes.sharded:
            ways = "more processes, activation_checkpointing"
        advice = (
            f"not one sequence of {needs.longest} tokens fits: save memory by {ways} or fewer "
            "parts in trainable, or pass --force"
        )
    tokens = max(params.micro_batch_tokens, needs.longest)
    what = f"{opened.path}: training in micro-batches of {tokens} tokens"
    require_memory(needs.total(tokens), what, force, available=available, advice=advice)


def activation_values(architecture: Architecture, row: int, checkpointing: bool) -> int:
    """Values that the backward pass needs of one token of a row of ``row`` tokens, about."""
    eager = FAMILIES[architecture.model_type].eager
    width = architecture.hidden_size
    inside = [_of_layer(layer, width, row, eager) for layer in architecture.layers]
    if checkpointing:
        return width * len(inside) + max(inside)
    return sum(inside)


def _of_layer(layer: Layer, width: int, row: int, eager: bool) -> int:
    norms = sum(1 for _ in layer.norms())
    values = NORM_COPIES * norms * width + _of_mixer(layer.attention, width, row, eager)
    if layer.dense:
        values += width + 5 * layer.dense.size
    if layer.mixture:
        mixture = layer.mixture
        each = 2 * width + 5 * mixture.intermediate_size
        values += 2 * width + mixture.num_experts_per_tok * each + 4 * mixture.num_experts
        if mixture.shared:
            values += width + 5 * mixture.shared.size
    return values


def _of_mixer(mixer: Mixer, width: int, row: int, eager: bool) -> int:
    if isinstance(mixer, ShortConv):
        return width + 8 * mixer.size
    if isinstance(mixer, GatedDelta):
        compared = CHUNK_COPIES * CHUNK * mixer.num_value_heads
        return width + 20 * mixer.conv_size + compared
    if isinstance(mixer, SelectiveScan):
        compared = SCAN_COPIES * SCAN_CHUNK * mixer.num_heads
        return width + 20 * mixer.conv_size + compared
    if isinstance(mixer, Attention):
        queries = mixer.num_heads * mixer.head_dim
        keys = 2 * mixer.num_key_value_heads * mixer.head_dim
        values = width + 4 * (queries + keys)
    else:
        head = mixer.nope_dim + mixer.rope_dim
        latent = mixer.q_lora_rank + mixer.kv_lora_rank
        values = width + 3 * latent + 4 * mixer.num_heads * (2 * head + mixer.value_dim)
    # heads of two sizes have no kernel without scores on a CPU, sinks have none anywhere
    if eager or isinstance(mixer, LatentAttention) or mixer.sinks:
        values += SCORE_COPIES * mixer.num_heads * row
    return values


def _loaded_share(opened: OpenModel, inside: int, shares: int) -> int:
    """Bytes of the weights of a share, of which ``inside`` values are in layers, and of the largest
    layer while it is loaded, or runs: whole, with its gradient and what is sent of that."""
    needs = weight_needs(opened)
    largest = max(sum(p.numel() for p in layer.parameters()) for layer in opened.layers)
    weights = opened.architecture.parameters() - _elsewhere(inside, shares)
    return FLOAT32_BYTES * weights + max(needs.largest_layer, 3 * FLOAT32_BYTES * largest)


def _elsewhere(values: int, shares: int) -> int:
    """Of values that are split into ``shares`` those that others have."""
    return values - -(-values // shares)


def _trained_values(
    trained: Mapping[str, nn.Parameter], opened: OpenModel, params: DistillSection
) -> int:
    """How many weights get a gradient."""
    values = sum(parameter.numel() for parameter in trained.values())
    if params.lora_rank:
        for place in adapted_places(opened, trained):
            *stack, rows, columns = place.weight.shape
            copies = stack[0] if stack else 1
            values += copies * params.lora_rank * (rows + columns) - place.weight.numel()
    return values
