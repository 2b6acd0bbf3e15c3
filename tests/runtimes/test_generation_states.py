"""Engines carry what layers remember from token to token: caches of all kinds and states."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgekit.family_table import FAMILIES
from edgekit.progress import Silent
from edgekit.runtimes.compile import compile_variant
from edgekit.runtimes.engine import Sampling
from edgekit.runtimes.graph_sessions import OpenVINOSession
from edgekit.runtimes.onnx_engine import OnnxEngine
from edgekit.runtimes.openvino_engine import OpenVINOEngine

PROMPT = list(range(10, 47))
ANSWER = 24
HYBRIDS = [
    "lfm2", "lfm2_moe", "gemma4_text", "jetmoe", "longcat_flash", "qwen3_next", "qwen3_5_text",
]  # fmt: skip


def greedy(engine: Any, tokens: int) -> list[int]:
    """The next tokens, each from the logits of the whole text so far: no cache, no state."""
    text = list(PROMPT)
    for _ in range(tokens):
        text.append(int(engine.logits(text)[-1].argmax()))
    return text[len(PROMPT) :]


@pytest.mark.parametrize(
    ("family", "runtime"),
    [(family, runtime) for family in HYBRIDS for runtime in FAMILIES[family].runtimes],
)
def test_generation_continues_as_the_logits_of_the_whole_text_say(
    family: str, runtime: str, quantized: Callable[..., Path], tmp_path: Path
) -> None:
    compile_variant(quantized(family, "int4-g32"), [f"{runtime}-cpu"], tmp_path, Silent())
    engine: Any = (
        OpenVINOEngine(tmp_path, exact=True) if runtime == "openvino" else OnnxEngine(tmp_path)
    )
    sampling = Sampling(ANSWER, temperature=0.0, repetition_penalty=1.0, ignore_end=True)
    expected = greedy(engine, ANSWER)
    for _ in range(2):  # the second answer must not see the state of the first
        events = list(engine.generate_tokens(PROMPT, sampling))
        assert [e.token for e in events if e.token >= 0] == expected


@pytest.mark.parametrize("family", ["lfm2", "qwen3_5_text"])
def test_states_follow_the_beams_as_the_cache_does(
    family: str, quantized: Callable[..., Path], tmp_path: Path
) -> None:
    compile_variant(quantized(family, "int4-g32"), ["openvino-cpu"], tmp_path, Silent())
    request = OpenVINOSession(tmp_path, exact=True).compiled.create_infer_request()
    prompts = np.array([PROMPT[:20], PROMPT[17:37]])

    def step(tokens: Any, past: int, beams: list[int]) -> Any:
        given = tokens.shape[1]
        inputs = {
            "input_ids": tokens,
            "attention_mask": np.ones((2, past + given), np.int64),
            "position_ids": np.tile(np.arange(past, past + given), (2, 1)),
            "beam_idx": np.array(beams, np.int32),
        }
        return np.array(request.infer(inputs)[0])[:, -1]

    token = np.array([[5], [5]])
    step(prompts, 0, [0, 1])
    straight = step(token, 20, [0, 1])
    request.reset_state()
    step(prompts, 0, [0, 1])
    crossed = step(token, 20, [1, 0])
    assert np.abs(crossed - straight[::-1]).max() < 1e-4
    assert np.abs(straight[0] - straight[1]).max() > 0.1
