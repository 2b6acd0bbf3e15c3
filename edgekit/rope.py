"""Rotary position embedding: inverse frequencies of the scaling variants.

``default``: theta^(-2i/d) (RoFormer, arXiv 2104.09864, eq. 15). ``linear``: divided by the factor
(position interpolation, arXiv 2306.15595). ``llama3``: low frequencies divided by the factor, high
ones kept, a linear blend between (Llama 3.1 reference).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from edgekit.config_values import ConfigReader


def inverse_frequencies(read: ConfigReader, head_dim: int) -> tuple[float, ...]:
    """Inverse frequencies [head_dim / 2] of a config, old (``rope_scaling``) or new
    (``rope_parameters``) spelling.

    Raises:
        BadInputError: an unsupported variant or an absurd value.
    """
    scaling = _scaling(read)
    theta = ConfigReader({**read.config, **scaling}, read.source).number(
        "rope_theta", default=10_000.0, low=1.0, high=1e12
    )
    partial = ConfigReader({**read.config, **scaling}, read.source).number(
        "partial_rotary_factor", default=1.0, low=0.0, high=1.000001
    )
    if partial != 1.0:
        raise read.bad("partial_rotary_factor", f"{partial} is not supported; only 1.0 is")
    plain = [theta ** (-2 * i / head_dim) for i in range(head_dim // 2)]
    kind = scaling.get("rope_type") or scaling.get("type") or "default"
    inner = ConfigReader(scaling, f"{read.source}: rope_scaling")
    if kind == "default":
        return tuple(plain)
    if kind == "linear":
        factor = inner.number("factor", default=1.0, low=0.0, high=1e6)
        return tuple(f / factor for f in plain)
    if kind == "llama3":
        return tuple(_llama3(f, inner) for f in plain)
    raise read.bad(
        "rope_scaling", f"of type {kind!r} is not supported; default, linear and llama3 are"
    )


def _scaling(read: ConfigReader) -> Mapping[str, Any]:
    value = read.config.get("rope_parameters") or read.config.get("rope_scaling") or {}
    if not isinstance(value, Mapping):
        raise read.bad("rope_parameters", "is not an object")
    return value


def _llama3(frequency: float, read: ConfigReader) -> float:
    factor = read.number("factor", default=8.0, low=0.0, high=1e6)
    low = read.number("low_freq_factor", default=1.0, low=0.0, high=1e6)
    high = read.number("high_freq_factor", default=4.0, low=low, high=1e6)
    original = read.count("original_max_position_embeddings", default=8192)
    turns = original * frequency / (2 * math.pi)  # rotations over the original context
    if turns < low:
        return frequency / factor
    if turns > high:
        return frequency
    blend = (turns - low) / (high - low)
    return (1 - blend) * frequency / factor + blend * frequency
