"""Granite's Mamba layers against transformers, over chunks of the prompt and token by token."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgekit.describe import describe
from edgekit.errors import BadInputError
from edgekit.progress import Silent
from edgekit.rules import check_target
from edgekit.runtimes.compile import compile_variant
from edgekit.runtimes.engine import Sampling
from edgekit.runtimes.graph_sessions import OpenVINOSession
from edgekit.runtimes.openvino_engine import OpenVINOEngine
from edgekit.runtimes.openvino_scan import CHUNK
from edgekit.scheme import Scheme

MAMBA: dict[str, object] = {
    "num_hidden_layers": 3, "layer_types": ["mamba", "attention", "mamba"], "mamba_n_heads": 4,
    "mamba_d_state": 16, "mamba_expand": 2, "mamba_d_head": 32, "mamba_n_groups": 2,
    "position_embedding_type": "nope", "time_step_limit": (0.05, 0.9),
}  # fmt: skip
TOKENS = np.random.default_rng(0).integers(3, 500, (1, 2 * CHUNK + 30))


@pytest.fixture(scope="module")
def compiled(quantized: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("mamba")
    source = quantized("granitemoehybrid", "int4-g32", **MAMBA)
    compile_variant(source, ["openvino-cpu"], out, Silent())
    return out


@pytest.mark.parametrize("prompt", [1, CHUNK, 2 * CHUNK + 5])
def test_logits_are_those_of_transformers(
    prompt: int, compiled: Path, reference: Callable[..., Any]
) -> None:
    import torch

    model = reference("granitemoehybrid", "int4-g32", **MAMBA)
    expected = model(torch.from_numpy(TOKENS), use_cache=False).logits[0].numpy()
    session = OpenVINOSession(compiled, exact=True)
    ends = [prompt, *range(prompt + 1, min(prompt + 20, TOKENS.shape[1]) + 1)]
    starts = [0, *ends[:-1]]
    found = [
        session.run(TOKENS[:, start:end], np.ones((1, end), np.int64))[0]
        for start, end in zip(starts, ends, strict=True)
    ]
    assert np.abs(np.concatenate(found) - expected[: ends[-1]]).max() < 1e-4


def test_generation_continues_as_the_logits_of_the_whole_text_say(compiled: Path) -> None:
    engine = OpenVINOEngine(compiled, exact=True)
    text = TOKENS[0, : CHUNK + 9].tolist()
    sampling = Sampling(16, temperature=0.0, repetition_penalty=1.0, ignore_end=True)
    found = [e.token for e in engine.generate_tokens(text, sampling) if e.token >= 0]
    assert len(found) == 16
    for token in found:
        assert token == engine.logits(text)[-1].argmax()
        text.append(token)


def test_onnx_is_refused_for_recurrent_states(tiny_model: Callable[..., Path]) -> None:
    from edgekit.checkpoint import read_config

    architecture = describe(read_config(tiny_model("granitemoehybrid", **MAMBA)))
    with pytest.raises(BadInputError, match="no recurrent states"):
        check_target(architecture, Scheme.parse("int4-g32"), "onnx-cpu")
    check_target(architecture, Scheme.parse("int4-g32"), "openvino-cpu")
