"""What stands in an attention's place and keeps a state instead of a cache."""

from __future__ import annotations

from edgekit.architecture import GatedDelta, Mixer, Norm, ShortConv
from edgekit.config_values import ConfigReader
from edgekit.families import Family, GatedDeltaRow, ShortConvRow
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
    spec = row.attention.short_conv or row.attention.gated_delta
    if spec is None:
        return attentions
    replaced = spec.layers(read, len(attentions))
    if all(replaced):
        raise read.bad("layer_types", "names no layer with attention")

    def state(layer: int) -> Mixer:
        if isinstance(spec, ShortConvRow):
            return _short_conv(row, spec, read, layer, hidden)
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
