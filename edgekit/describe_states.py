"""What stands in an attention's place and keeps a state instead of a cache."""

from __future__ import annotations

from edgekit.architecture import GatedDelta, Mixer, Norm, SelectiveScan, ShortConv
from edgekit.config_values import ConfigReader
from edgekit.families import Family, GatedDeltaRow, SelectiveScanRow, ShortConvRow
from edgekit.family_values import flag, norm_epsilon, width

MAX_CONV_LENGTH = 64
MAX_STATE_DIM = 4096


def with_states(
    row: Family, read: ConfigReader, hidden: int, attentions: list[Mixer]
) -> list[Mixer]:
    """``attentions`` with those replaced that are none.

    Raises:
        BadInputError: no attention is left, or a value is absent, absurd, or contradicts another.
    """
    a = row.attention
    spec = a.short_conv or a.gated_delta or a.selective_scan
    if spec is None:
        return attentions
    replaced = spec.layers(read, len(attentions))
    if all(replaced):
        raise read.bad("layer_types", "names no layer with attention")

    def state(layer: int) -> Mixer:
        if isinstance(spec, ShortConvRow):
            return _short_conv(row, spec, read, layer, hidden)
        if isinstance(spec, SelectiveScanRow):
            return _selective_scan(row, spec, read, layer, hidden)
        return _gated_delta(row, spec, read, layer)

    return [state(i) if replaced[i] else attention for i, attention in enumerate(attentions)]


def _short_conv(
    row: Family, spec: ShortConvRow, read: ConfigReader, layer: int, hidden: int
) -> ShortConv:
    prefix = row.names.inside(layer, spec.block)
    length = width(read, spec.length, maximum=MAX_CONV_LENGTH)
    if length < 2:
        raise read.bad(spec.length.names[0], "is 1; a convolution of one token has no state")
    return ShortConv(
        prefix + spec.input, prefix + spec.kernel, prefix + spec.output,
        hidden, length, flag(read, spec.bias),
    )  # fmt: skip


def _gated_delta(row: Family, spec: GatedDeltaRow, read: ConfigReader, layer: int) -> GatedDelta:
    prefix = row.names.inside(layer, spec.block)
    keys, values = read.count("linear_num_key_heads"), read.count("linear_num_value_heads")
    if values % keys:
        raise read.bad("linear_num_key_heads", f"{keys} does not divide {values} value heads")
    names = {"q": "q_proj", "k": "k_proj", "v": "v_proj", "z": "z_proj", "a": "a_proj",
             "b": "b_proj"}  # fmt: skip
    if not spec.fused:
        names |= {"z": "in_proj_z", "a": "in_proj_a", "b": "in_proj_b"}
    value_dim = read.count("linear_value_head_dim", maximum=MAX_STATE_DIM)
    return GatedDelta(
        **{part: prefix + name for part, name in names.items()},
        kernel=prefix + "conv1d", decay=prefix + "A_log", decay_bias=prefix + "dt_bias",
        norm=Norm(prefix + "norm", value_dim, norm_epsilon(read, row.norm_eps)),
        output=prefix + "out_proj",
        num_key_heads=keys, num_value_heads=values,
        key_dim=read.count("linear_key_head_dim", maximum=MAX_STATE_DIM), value_dim=value_dim,
        length=read.count("linear_conv_kernel_dim", default=4, maximum=MAX_CONV_LENGTH),
    )  # fmt: skip


def _selective_scan(
    row: Family, spec: SelectiveScanRow, read: ConfigReader, layer: int, hidden: int
) -> SelectiveScan:
    prefix = row.names.inside(layer, spec.block)
    heads = read.count("mamba_n_heads", default=128)
    groups = read.count("mamba_n_groups", default=1)
    size = read.count("mamba_expand", default=2) * hidden
    if size % heads or heads % groups:
        raise read.bad("mamba_n_heads", f"{heads} does not fit {groups} groups in {size}")
    head_dim = read.config.get("mamba_d_head")
    if head_dim not in (None, "auto", size // heads):
        raise read.bad("mamba_d_head", f"is not {size // heads}, the width over the heads")
    return SelectiveScan(
        z=prefix + "z_proj", x=prefix + "x_proj", dt=prefix + "dt_proj",
        kernel=prefix + "conv1d", decay=prefix + "A_log", decay_bias=prefix + "dt_bias",
        skip=prefix + "D", norm=Norm(prefix + "norm", size, norm_epsilon(read, row.norm_eps)),
        output=prefix + "out_proj",
        num_heads=heads, head_dim=size // heads, groups=groups,
        state_size=read.count("mamba_d_state", default=256, maximum=MAX_STATE_DIM),
        length=read.count("mamba_d_conv", default=4, maximum=MAX_CONV_LENGTH),
        step_limits=_step_limits(read),
        conv_bias=read.flag("mamba_conv_bias", default=True),
        bias=read.flag("mamba_proj_bias", default=False),
    )  # fmt: skip


def _step_limits(read: ConfigReader) -> tuple[float, float]:
    limits = read.config.get("time_step_limit")
    if limits is None:
        return 0.0, float("inf")
    if not isinstance(limits, list | tuple) or len(limits) != 2:
        raise read.bad("time_step_limit", "is not a list of two numbers")
    endless = {"__float__": "Infinity"}  # as transformers writes what JSON has no word for
    low, high = (float("inf") if limit == endless else limit for limit in limits)
    if type(low) not in (int, float) or type(high) not in (int, float) or not 0 <= low <= high:
        raise read.bad("time_step_limit", "is not two numbers from 0 up, the lower one first")
    return float(low), float(high)
