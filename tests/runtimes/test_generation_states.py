"""Engines carry what layers remember from token to token: caches of all kinds and states."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgekit.family_table import FAMILIES
from edgekit.progress import Silent
from edgekit.runtimes.compile import compile_variant
from edgekit.runtimes.engine import Sampling
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
