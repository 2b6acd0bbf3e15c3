"""Layers that keep a state: their tensors, what they keep, and configs that are refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from edgekit.checkpoint import Checkpoint
from edgekit.describe import describe
from edgekit.errors import BadInputError


def test_biases_of_a_convolution_are_tensors_of_the_model(tiny_model: Callable[..., Path]) -> None:
    with Checkpoint(tiny_model("lfm2", conv_bias=True)) as checkpoint:
        biases = [s.name for s in checkpoint.specs if s.layer == 0 and s.role == "bias"]
    assert biases == [
        f"model.layers.0.conv.{part}.bias" for part in ("in_proj", "conv", "out_proj")
    ]


def test_a_kernel_is_read_with_one_row_per_token(tiny_model: Callable[..., Path]) -> None:
    with Checkpoint(tiny_model("lfm2")) as checkpoint:
        name = "model.layers.0.conv.conv.weight"
        stored = checkpoint.source.float32(name)
        assert (checkpoint.float32(name) == stored[:, 0, :].T).all()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"layer_types": ["conv", "conv"]}, "names no layer with attention"),
        ({"layer_types": ["conv", "mamba"]}, "has 'mamba' layers"),
        ({"conv_L_cache": 1}, "conv_L_cache is 1"),
        ({"layer_types": None, "full_attn_idxs": "all"}, "full_attn_idxs is not a list"),
    ],
)
def test_a_config_that_makes_no_sense_is_refused(changes: dict[str, object], words: str) -> None:
    config = {
        "model_type": "lfm2", "hidden_size": 64, "intermediate_size": 96, "vocab_size": 32,
        "num_hidden_layers": 2, "num_attention_heads": 2, "layer_types": ["conv", "full_attention"],
    }  # fmt: skip
    with pytest.raises(BadInputError, match=words):
        describe({**config, **changes})


def test_states_count_beside_a_cache_that_grows() -> None:
    shape = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
             "vocab_size": 32, "intermediate_size": 96}  # fmt: skip
    convolved = describe({"model_type": "lfm2", "layer_types": ["conv", "full_attention"], **shape})
    assert convolved.kv_bytes_per_token() == 2 * 2 * 64  # keys and values of the one attention
    assert convolved.state_bytes() == 4 * 2 * 64  # the products of two tokens
    delta = describe({
        "model_type": "qwen3_5_text", "layer_types": ["linear_attention", "full_attention"],
        "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8,
        "linear_value_head_dim": 16, **shape,
    })  # fmt: skip
    assert delta.state_bytes() == 4 * (4 * 8 * 16 + 3 * (2 * 2 * 8 + 4 * 16))
