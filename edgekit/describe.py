"""From a ``config.json`` and a row of the family table to an :class:`Architecture`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from reprlib import repr as brief  # an absurd value must not fill the screen
from typing import Any

from edgekit.architecture import Architecture, Beside, FeedForward, Layer, Mixer, Mixture, Norm
from edgekit.config_values import ConfigReader
from edgekit.describe_attention import attention_layers
from edgekit.describe_mixture import mixture_layers
from edgekit.describe_tensors import tensor_specs
from edgekit.errors import BadInputError
from edgekit.families import Family, Key
from edgekit.family_table import FAMILIES, REFUSED
from edgekit.family_values import activation, flag, lookup, norm_epsilon, number, width

MAX_LAYERS = 1_000


def describe(
    config: Mapping[str, Any], source: str = "config.json", family: str = ""
) -> Architecture:
    """Resolve a ``config.json``; ``source`` names it in errors.

    ``family`` takes a row of the table in place of the config's ``model_type``; a config that says
    ``edgekit_family`` does the same.

    Raises:
        BadInputError: the family is unknown or cannot be compiled, remote code is asked for, or a
            value is absent, of the wrong type, out of range, or contradicts another.
    """
    row = family_of(config, source, family)
    read = ConfigReader(config, source)
    _check_expected(row, read)
    hidden = width(read, row.hidden_size)
    count = width(read, row.layers, maximum=MAX_LAYERS) * row.names.parts
    if row.check:
        row.check(read, count)
    attentions = attention_layers(row, read, hidden, count)
    mixtures = mixture_layers(row, read, count)
    only_sparse = all(mixtures) and not (row.moe and row.moe.beside)
    dense_size = 1 if only_sparse else _dense_size(row, read)
    layers = tuple(
        _layer(row, read, i, hidden, dense_size, attention, mixture)
        for i, (attention, mixture) in enumerate(zip(attentions, mixtures, strict=True))
    )
    tied = read.flag("tie_word_embeddings", default=flag(read, row.tied))
    architecture = Architecture(
        model_type=row.model_type,
        vocab_size=read.count("vocab_size"),
        hidden_size=hidden,
        intermediate_size=dense_size,
        tie_word_embeddings=tied,
        context_length=_context_length(row, read),
        layers=layers,
        embedding=row.names.embedding,
        final_norm=_final_norm(row, read, hidden),
        head=row.names.head,
        head_bias=flag(read, row.head_bias) and not tied,
        embedding_scale=_embedding_scale(row, read, hidden),
        logit_scale=_logit_scale(row, read),
        logit_soft_cap=number(read, row.logit_soft_cap),
        expert_count_keys=row.moe.num_experts.names if row.moe and row.moe.shrinks else (),
        runtimes=row.runtimes,
        ignored=_ignored(row, mixtures),
        specs=(),
    )
    return tensor_specs(architecture, row)


def family_of(config: Mapping[str, Any], source: str, family: str = "") -> Family:
    """The row of a config.

    Raises:
        BadInputError: there is none, or it is one that cannot be compiled.
    """
    name = family or config.get("edgekit_family") or config.get("model_type")
    if isinstance(name, str) and name in FAMILIES:
        return FAMILIES[name]
    if family or config.get("edgekit_family"):
        raise BadInputError(
            f"{source}: read as {brief(name)}, which is no family (--as); see `edgekit inspect "
            "--families` for their names"
        )
    if isinstance(name, str) and name in REFUSED:
        raise BadInputError(
            f"{source}: model_type {brief(name)} cannot be compiled: {REFUSED[name]}"
        )
    known = "see `edgekit inspect --families` for the supported ones"
    if config.get("auto_map"):
        raise BadInputError(
            f"{source}: model_type {brief(name)} needs code from the checkpoint (auto_map), which "
            f"edgekit never runs; {known}"
        )
    raise BadInputError(f"{source}: model_type {brief(name)} is not supported; {known}")


def _norm(row: Family, read: ConfigReader, module: str, size: int) -> Norm:
    return Norm(
        module, size, norm_epsilon(read, row.norm_eps), row.norm_kind,
        row.norm_weight, row.norm_bias, row.unit_offset,
    )  # fmt: skip


def _final_norm(row: Family, read: ConfigReader, hidden: int) -> Norm:
    norm = _norm(row, read, row.names.final_norm, hidden)
    if row.final_norm_eps is None:
        return norm
    return replace(norm, eps=norm_epsilon(read, row.final_norm_eps))


def _layer(
    row: Family,
    read: ConfigReader,
    index: int,
    hidden: int,
    dense_size: int,
    attention: Mixer,
    mixture: Mixture | None,
) -> Layer:
    names, prefix = row.names, row.names.inside(index)

    def norm(name: str) -> Norm | None:
        return _norm(row, read, names.inside(index, name), hidden) if name else None

    parallel = flag(read, row.parallel)
    dense = None
    beside = _beside(row, read, prefix, hidden) if mixture else None
    shortcut = bool(mixture and row.moe and row.moe.shortcut)
    if mixture is None or beside or shortcut:
        block = names.inside(index, names.feed_forward)
        dense = FeedForward(
            block + names.gate if names.gate else "", block + names.up, block + names.down,
            dense_size, activation(read, row.activation), flag(read, row.mlp_bias),
        )  # fmt: skip
    own_norm = names.feed_forward_norm
    if isinstance(row.parallel, Key) and parallel:
        own_norm = ""  # StableLM drops its second norm where the parts are parallel
    return Layer(
        index=index,
        attention=attention,
        dense=dense,
        mixture=mixture,
        attention_norm=norm(names.attention_norm),
        attention_post_norm=norm(names.attention_post_norm),
        feed_forward_norm=norm(own_norm),
        feed_forward_post_norm=norm(names.feed_forward_post_norm),
        parallel=parallel,
        residual_scale=number(read, row.residual_scale),
        beside=beside,
        shortcut=shortcut,
        scalar=prefix + row.layer_scalar if row.layer_scalar else "",
    )


def _ignored(row: Family, mixtures: list[Mixture | None]) -> tuple[str, ...]:
    """Patterns of unused tensors; ``{identities}`` stands for the numbers of such experts."""
    mixture = next((m for m in mixtures if m), None)
    if mixture is None:
        return row.ignored
    first = mixture.num_experts
    numbers = "|".join(str(first + i) for i in range(mixture.num_identities))
    return tuple(pattern.replace("{identities}", numbers) for pattern in row.ignored)


def _beside(row: Family, read: ConfigReader, prefix: str, hidden: int) -> Beside | None:
    if row.moe is None or not row.moe.beside:
        return None
    return Beside(*(_norm(row, read, prefix + name, hidden) for name in row.moe.beside))


def _dense_size(row: Family, read: ConfigReader) -> int:
    return width(read, row.width) if isinstance(row.width, Key) else row.width(read)


def _check_expected(row: Family, read: ConfigReader) -> None:
    """Refuse an option under which the model computes something that no graph writes."""
    for name, value in row.expects:
        inner, leaf = lookup(read, Key((name,)))
        given = inner.config.get(leaf)
        allowed = value if isinstance(value, tuple) else (value,)
        if given is not None and given not in allowed:
            words = " or ".join(map(repr, allowed))
            raise inner.bad(
                leaf, f"is {brief(given)}; of {row.model_type}, only {words} is supported"
            )


def _logit_scale(row: Family, read: ConfigReader) -> float:
    divisor = number(read, row.logit_divisor)
    if divisor == 0:
        raise read.bad("logits_scaling", "is 0, by which logits are divided")
    return number(read, row.logit_scale) / divisor


def _embedding_scale(row: Family, read: ConfigReader, hidden: int) -> float:
    if not flag(read, row.embedding_scale_if):
        return 1.0
    if row.embedding_scale == "sqrt":
        return float(hidden**0.5)
    assert not isinstance(row.embedding_scale, str)
    return number(read, row.embedding_scale)


def _context_length(row: Family, read: ConfigReader) -> int:
    positions = width(read, row.context)
    if row.context_limit is None:
        return positions
    return min(positions, width(read, row.context_limit))
