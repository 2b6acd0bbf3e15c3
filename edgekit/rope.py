"""Rotary position embedding: inverse frequencies of the scaling variants.

``default``: theta^(-2i/d) (RoFormer, arXiv 2104.09864, eq. 15). ``linear``: divided by the factor
(position interpolation, arXiv 2306.15595). ``dynamic``: as default within the trained context, to
which graphs are bound; with ``alpha`` the base grows once (Hunyuan). ``llama3``: low frequencies
divided by the factor, high ones kept, a linear blend between (Llama 3.1 reference). ``yarn``: a
ramp between interpolation and extrapolation (arXiv 2309.00071, eq. 20 to 23). ``longrope``: a
searched divisor per frequency, one set within the original context and one beyond (arXiv
2402.13753). ``proportional``: the slow dimensions do not turn (Gemma 4).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from reprlib import repr as brief  # an absurd value must not fill the screen
from typing import Any

from edgekit.architecture import Rope
from edgekit.config_values import ConfigReader


def rope_settings(read: ConfigReader, layer_type: str = "") -> ConfigReader:
    """The rotary settings of a config, spelled ``rope_scaling`` (old) or ``rope_parameters`` (new).

    ``layer_type`` picks the settings of "full_attention" or "sliding_attention" layers where the
    config has both.

    Raises:
        BadInputError: they are not an object.
    """
    value = read.config.get("rope_parameters") or read.config.get("rope_scaling") or {}
    if not isinstance(value, Mapping):
        raise read.bad("rope_parameters", "is not an object")
    if layer_type and isinstance(value.get(layer_type), Mapping):
        value = value[layer_type]
    outer = {
        name: read.config[name]
        for name in ("rope_theta", "partial_rotary_factor", "original_max_position_embeddings",
                     "max_position_embeddings")
        if read.config.get(name) is not None
    }  # fmt: skip
    return ConfigReader({**outer, **value}, f"{read.source}: rope_parameters")


def rope_kind(settings: ConfigReader) -> Any:
    """The variant that the config names; unchecked."""
    return settings.config.get("rope_type") or settings.config.get("type") or "default"


def make_rope(
    settings: ConfigReader,
    head_dim: int,
    theta: float = 10_000.0,
    partial: float = 1.0,
    interleaved: bool = False,
) -> Rope:
    """Rotary positions of a head of ``head_dim``; ``theta`` and ``partial`` are defaults.

    Raises:
        BadInputError: an unsupported variant or an absurd value.
    """
    theta = settings.number("rope_theta", default=theta, low=1.0, high=1e12)
    partial = settings.number("partial_rotary_factor", default=partial, low=0.0, high=1.000001)
    kind = rope_kind(settings)
    if kind == "proportional":
        return _proportional(settings, theta, head_dim, partial, interleaved)
    size = int(head_dim * partial)
    if not 2 <= size <= head_dim or size % 2:
        raise settings.bad(
            "partial_rotary_factor", f"{partial} of {head_dim} is no even number of dimensions"
        )
    plain = _plain(theta, size)
    if kind == "default":
        return Rope(plain, interleaved=interleaved)
    if kind == "linear":
        factor = settings.number("factor", default=1.0, low=0.0, high=1e6)
        return Rope(tuple(f / factor for f in plain), interleaved=interleaved)
    if kind == "dynamic":
        alpha = settings.number("alpha", default=1.0, low=0.0, high=1e9)
        grown = theta * alpha ** (size / (size - 2)) if alpha != 1.0 and size > 2 else theta
        return Rope(_plain(grown, size), interleaved=interleaved)
    if kind == "llama3":
        return Rope(tuple(_llama3(f, settings) for f in plain), interleaved=interleaved)
    if kind == "yarn":
        return _yarn(settings, plain, theta, size, interleaved)
    if kind in ("longrope", "su"):
        return _long_rope(settings, plain, interleaved)
    raise settings.bad(
        "rope_type",
        f"{brief(kind)} is not supported; default, linear, dynamic, llama3, yarn, longrope and "
        "proportional are",
    )


def _plain(theta: float, size: int) -> tuple[float, ...]:
    return tuple(theta ** (-2 * i / size) for i in range(size // 2))


def _proportional(
    read: ConfigReader, theta: float, size: int, partial: float, interleaved: bool
) -> Rope:
    """The first ``partial`` of the pairs as in the whole head, frequency 0 for the others."""
    factor = read.number("factor", default=1.0, low=0.0, high=1e6)
    turning = int(partial * size // 2)
    frequencies = [f / factor for f in _plain(theta, size)]
    still = [0.0] * (size // 2 - turning)
    return Rope((*frequencies[:turning], *still), interleaved=interleaved)


def _llama3(frequency: float, read: ConfigReader) -> float:
    factor = read.number("factor", default=8.0, low=0.0, high=1e6)
    low = read.number("low_freq_factor", default=1.0, low=0.0, high=1e6)
    high = read.number("high_freq_factor", default=4.0, low=low, high=1e6)
    original = read.count("original_max_position_embeddings", default=_longest(read))
    turns = original * frequency / (2 * math.pi)  # rotations over the original context
    if turns < low:
        return frequency / factor
    if turns > high:
        return frequency
    blend = (turns - low) / (high - low)
    return (1 - blend) * frequency / factor + blend * frequency


def yarn_scale(factor: float, mscale: float = 1.0) -> float:
    """YaRN's attention temperature, 0.1 m ln(s) + 1 (arXiv 2309.00071, eq. 22)."""
    return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0


def yarn_factor(read: ConfigReader) -> float:
    """How much longer the context is than the original one."""
    longest = _longest(read)
    original = read.count("original_max_position_embeddings", default=longest)
    return read.number("factor", default=longest / original, low=0.0, high=1e6)


def _longest(read: ConfigReader) -> int:
    return read.count("max_position_embeddings", default=2048)


def _yarn(
    read: ConfigReader, plain: Sequence[float], theta: float, size: int, interleaved: bool
) -> Rope:
    original = read.count("original_max_position_embeddings", default=_longest(read))
    factor = yarn_factor(read)
    fast = read.number("beta_fast", default=32.0, low=0.0, high=1e6)
    slow = read.number("beta_slow", default=1.0, low=0.0, high=1e6)

    def dimension(turns: float) -> float:
        return size * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(theta))

    low, high = dimension(fast), dimension(slow)
    if read.flag("truncate", default=True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, size - 1)
    width = high - low if high != low else 0.001
    frequencies = []
    for i, frequency in enumerate(plain):
        kept = 1 - min(max((i - low) / width, 0.0), 1.0)
        frequencies.append(frequency / factor * (1 - kept) + frequency * kept)
    mscale = read.number("mscale", default=0.0, low=-1e-9, high=1e6)
    every = read.number("mscale_all_dim", default=0.0, low=-1e-9, high=1e6)
    scale = yarn_scale(factor)
    if mscale and every:
        scale = yarn_scale(factor, mscale) / yarn_scale(factor, every)
    scale = read.number("attention_factor", default=scale, low=0.0, high=1e6)
    return Rope(tuple(frequencies), scale, interleaved)


def _long_rope(read: ConfigReader, plain: Sequence[float], interleaved: bool) -> Rope:
    longest = _longest(read)
    original = read.count("original_max_position_embeddings", default=longest)
    short, long = (_factors(read, name, len(plain)) for name in ("short_factor", "long_factor"))
    factor = read.number("factor", default=longest / original, low=0.0, high=1e6)
    scale = 1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(original))
    scale = read.number("attention_factor", default=scale, low=0.0, high=1e6)
    return Rope(
        inv_freq=tuple(f / s for f, s in zip(plain, short, strict=True)),
        attention_factor=read.number("short_mscale", default=scale, low=0.0, high=1e6),
        interleaved=interleaved,
        long_inv_freq=tuple(f / s for f, s in zip(plain, long, strict=True)),
        long_attention_factor=read.number("long_mscale", default=scale, low=0.0, high=1e6),
        original_length=original,
    )


def _factors(read: ConfigReader, name: str, count: int) -> list[float]:
    value: Any = read.config.get(name)
    right = isinstance(value, list) and len(value) == count
    if not right or any(
        isinstance(v, bool) or not isinstance(v, int | float) or not 0 < v < 1e6 for v in value
    ):
        raise read.bad(name, f"is not a list of {count} positive numbers")
    return [float(v) for v in value]
