"""The mixture of every layer, from a family's row and a config."""

from __future__ import annotations

import math

from edgekit.architecture import FeedForward, Mixture, Norm
from edgekit.config_values import ConfigReader
from edgekit.families import Family, MoeRow, Separate, Stacked
from edgekit.family_values import activation, flag, lookup, norm_epsilon, number, whole, width

MAX_EXPERTS = 1 << 18  # in all layers; each is three tensors, described one by one
STACKED_NAMES = Separate()


def mixture_layers(row: Family, read: ConfigReader, layers: int) -> list[Mixture | None]:
    """One per layer; None for a dense one.

    Raises:
        BadInputError: a value is absent, absurd, or contradicts another.
    """
    if row.moe is None:
        return [None] * layers
    sparse = row.moe.sparse(read, layers) if row.moe.sparse else (True,) * layers
    return [_mixture(row, row.moe, read, layer, layers) if sparse[layer] else None
            for layer in range(layers)]  # fmt: skip


def _mixture(row: Family, moe: MoeRow, read: ConfigReader, layer: int, layers: int) -> Mixture:
    prefix = row.names.inside(layer)
    block = prefix + moe.block
    experts = width(read, moe.num_experts, maximum=65_536)
    if layers * experts > MAX_EXPERTS:
        raise read.bad(
            moe.num_experts.names[0],
            f"is {experts}: over {layers} layers that is more than {MAX_EXPERTS} experts",
        )
    top_k = width(read, moe.top_k, maximum=65_536)
    if top_k > experts:
        raise read.bad(moe.top_k.names[0], f"{top_k} is more than the {experts} experts")
    _check_scoring(moe, read, top_k)
    groups, top_groups = _groups(moe, read, experts)
    kind = moe.activation or activation(read, row.activation)
    # an expert's own tensors keep their names; parts of a bigger one get those of most families
    names = moe.experts if isinstance(moe.experts, Separate) else STACKED_NAMES
    parts = [("gate", names.gate), ("up", names.up), ("down", names.down)]
    if isinstance(moe.experts, Stacked) and moe.experts.interleaved:
        parts = [("gate_up", "experts.{e}.gate_up_proj"), ("down", names.down)]
    correction = block + moe.correction if moe.correction and flag(read, moe.correction_if) else ""
    return Mixture(
        router=block + moe.router,
        expert_names=tuple((projection, block + name) for projection, name in parts),
        num_experts=experts,
        num_experts_per_tok=top_k,
        intermediate_size=width(read, moe.width),
        activation=kind,
        scoring=moe.scoring,
        normalize=flag(read, moe.normalize),
        normalize_epsilon=number(read, moe.normalize_epsilon),
        normalize_clamp=moe.normalize_clamp,
        scaling=number(read, moe.scaling) if moe.scaling else 1.0,
        router_bias=moe.router_bias,
        correction=correction,
        num_groups=groups,
        top_groups=top_groups,
        num_identities=whole(read, moe.identities) if moe.identities else 0,
        group_score=moe.group_score,
        jitter=number(read, moe.jitter) if moe.jitter else 0.0,
        router_norm=_router_norm(row, moe, read, block),
        router_scale=block + moe.router_scale if moe.router_scale else "",
        expert_scale=block + moe.expert_scale if moe.expert_scale else "",
        expert_bias=moe.expert_bias,
        output_bias=block + moe.output_bias if moe.output_bias else "",
        shared=_shared(row, moe, read, prefix),
        shared_gate=block + moe.shared_gate if moe.shared_gate else "",
    )  # fmt: skip


def _router_norm(row: Family, moe: MoeRow, read: ConfigReader, block: str) -> Norm | None:
    if not moe.router_scale:
        return None
    size, eps = width(read, row.hidden_size), norm_epsilon(read, row.norm_eps)
    return Norm(block + moe.router + ".norm", size, eps, weight=False)


def _check_scoring(moe: MoeRow, read: ConfigReader, top_k: int) -> None:
    name = moe.top_k.names[0]
    if moe.scoring == "sparsemixer" and top_k != 2:
        raise read.bad(name, f"is {top_k}; this router is defined for 2")
    if moe.scoring == "sigmoid_input" and top_k != 1:
        raise read.bad(
            name, f"is {top_k}; gates that scale the experts' input are supported for 1 only"
        )


def _groups(moe: MoeRow, read: ConfigReader, experts: int) -> tuple[int, int]:
    """Number of groups and how many of them a token may use; 1 and 1 without groups."""
    if moe.groups is None or moe.top_groups is None:
        return 1, 1
    if moe.grouped_if:
        inner, name = lookup(read, moe.grouped_if[0])
        if inner.config.get(name, moe.grouped_if[0].default) != moe.grouped_if[1]:
            return 1, 1
    groups, top = whole(read, moe.groups) or 1, whole(read, moe.top_groups) or 1
    if experts % groups or top > groups:
        raise read.bad(
            moe.groups.names[0], f"{groups} with {top} chosen does not fit {experts} experts"
        )
    if moe.group_score == "top2" and groups > 1 and experts // groups < 2:
        raise read.bad(moe.groups.names[0], f"{groups} leaves groups of one expert")
    return groups, top


def _shared(row: Family, moe: MoeRow, read: ConfigReader, prefix: str) -> FeedForward | None:
    size = math.prod(whole(read, key) for key in moe.shared_width) if moe.shared_width else 0
    if not size:
        return None
    gate, up, down = (prefix + moe.shared + name for name in moe.shared_names)
    bias = flag(read, row.mlp_bias)
    return FeedForward(gate, up, down, size, activation(read, row.activation), bias)
