"""Short convolutions: engines carry their states, and a config that cannot be one is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgekit.checkpoint import Checkpoint
from edgekit.describe import describe
from edgekit.errors import BadInputError
from edgekit.runtimes.engine import Sampling
from edgekit.runtimes.onnx_engine import OnnxEngine
from edgekit.runtimes.openvino_engine import OpenVINOEngine

PROMPT = list(range(10, 47))
ANSWER = 24


def greedy(engine: Any, tokens: int) -> list[int]:
    """The next tokens, each from the logits of the whole text so far: no cache, no state."""
    text = list(PROMPT)
    for _ in range(tokens):
        text.append(int(engine.logits(text)[-1].argmax()))
    return text[len(PROMPT) :]


@pytest.mark.parametrize("runtime", ["openvino", "onnx"])
@pytest.mark.parametrize("family", ["lfm2", "lfm2_moe"])
def test_generation_carries_the_states_from_token_to_token(
    family: str, runtime: str, variant: Callable[..., Path]
) -> None:
    directory = variant(family)
    engine: Any = (
        OpenVINOEngine(directory, exact=True) if runtime == "openvino" else OnnxEngine(directory)
    )
    sampling = Sampling(ANSWER, temperature=0.0, repetition_penalty=1.0, ignore_end=True)
    expected = greedy(engine, ANSWER)
    for _ in range(2):  # the second answer must not see the state of the first
        events = list(engine.generate_tokens(PROMPT, sampling))
        assert [e.token for e in events if e.token >= 0] == expected


def test_biases_of_a_convolution_are_tensors_of_the_model(tiny_model: Callable[..., Path]) -> None:
    with Checkpoint(tiny_model("lfm2", conv_bias=True)) as checkpoint:
        biases = [s.name for s in checkpoint.specs if s.layer == 0 and s.role == "bias"]
    assert biases == [
        f"model.layers.0.conv.{part}.bias" for part in ("in_proj", "conv", "out_proj")
    ]


def test_a_kernel_is_read_with_one_row_per_token(tiny_model: Callable[..., Path]) -> None:
    with Checkpoint(tiny_model("lfm2")) as checkpoint:
        name = "model.layers.0.conv.conv.weight"
        stored = checkpoint._where[name].float32(name)
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
