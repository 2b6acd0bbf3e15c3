"""Logits of a graph that a tool has written, prompt first and then token by token, and how far
they are from the reference."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Logits = NDArray[np.float32]
Tokens = NDArray[np.int64]

TIE = 1e-2  # logits; where the reference's two best are closer, top-1 says nothing
LEAST_TOP1, MOST_KL = 0.99, 1e-3  # share of positions; nats per token
EXACT = {
    "INFERENCE_PRECISION_HINT": "f32",
    "KV_CACHE_PRECISION": "f32",
    "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0",
}


def steps(tokens: Tokens, prompt: int) -> list[tuple[int, Tokens]]:
    """Position and tokens [1, T] of each run: the prompt, then single tokens."""
    rest = [(at, tokens[None, at : at + 1]) for at in range(prompt, len(tokens))]
    return [(0, tokens[None, :prompt]), *rest]


def openvino_logits(graph: Path, weights: Path, tokens: Tokens, prompt: int) -> Logits:
    """Logits [T, vocab_size] of a stateful OpenVINO model, computed in float32 on the CPU."""
    import openvino as ov

    core = ov.Core()
    compiled = core.compile_model(core.read_model(str(graph), str(weights)), "CPU", EXACT)
    request = compiled.create_infer_request()
    parts = []
    for at, part in steps(tokens, prompt):
        end = at + part.shape[1]
        feeds: dict[str, Any] = {}
        for port in compiled.inputs:
            name, rank = port.get_any_name(), port.get_partial_shape().rank.get_length()
            if name == "input_ids":
                feeds[name] = part
            elif name == "attention_mask":
                feeds[name] = np.ones((1, end), np.int64)
            elif name == "position_ids" and rank == 2:
                feeds[name] = np.arange(at, end)[None]
            elif name == "position_ids":  # one per axis of an image; text has the same on each
                axes = port.get_partial_shape()[0]
                count = axes.get_length() if axes.is_static else 3
                feeds[name] = np.broadcast_to(np.arange(at, end), (count, 1, end - at)).copy()
            elif name == "beam_idx":
                feeds[name] = np.zeros(1, np.int32)
            elif name == "token_type_ids":
                feeds[name] = np.zeros_like(part)
            else:
                raise ValueError(f"the graph has an input {name!r} that is not a text model's")
        parts.append(np.array(request.infer(feeds)["logits"], np.float32)[0])
    return joined(parts, len(tokens))


def onnx_logits(directory: Path, tokens: Tokens, prompt: int) -> Logits:
    """Logits [T, vocab_size] of an ONNX model in ONNX Runtime GenAI, which keeps the cache.

    Plain ONNX Runtime would do for most, but the builder's sliding layers want caches of the
    window's size, which GenAI allocates.
    """
    import onnxruntime_genai as genai

    model = genai.Model(str(directory))
    parameters = genai.GeneratorParams(model)
    parameters.set_search_options(max_length=2 * len(tokens), do_sample=False)
    generator = genai.Generator(model, parameters)
    parts = []
    for _, part in steps(tokens, prompt):
        generator.append_tokens(part.astype(np.int32))
        parts.append(np.array(generator.get_output("logits"), np.float32)[0])
    return joined(parts, len(tokens))


def joined(parts: list[Logits], count: int) -> Logits:
    """The steps' logits in one array; a graph that keeps the prompt's last position only gives
    fewer than ``count``."""
    logits = np.concatenate(parts)
    if len(logits) > count:
        raise ValueError(f"the graph gives {len(logits)} positions for {count} tokens")
    return logits


def compare(expected: Logits, found: Logits, prompt: int) -> dict[str, Any]:
    """Agreement of logits [T, vocab_size]; the KL is from reference to graph, nats per token."""
    if found.shape[1] != expected.shape[1]:
        raise ValueError(f"{found.shape[1]} logits for a vocabulary of {expected.shape[1]}")
    missing = len(expected) - len(found)  # at the prompt's beginning
    expected = expected[missing:]
    if not np.isfinite(found).all():
        raise ValueError("the logits are not finite")
    p, q = log_softmax(expected), log_softmax(found)
    kl = (np.exp(p) * (p - q)).sum(-1)
    second, best = np.sort(expected, axis=-1)[:, -2:].T
    clear = best - second > TIE
    same = expected.argmax(-1) == found.argmax(-1)
    turn = prompt - missing
    top1 = float(same[clear].mean())
    means = {"kl_prefill": float(kl[:turn].mean()), "kl_decode": float(kl[turn:].mean())}
    return {
        "correct": top1 >= LEAST_TOP1 and max(means.values()) <= MOST_KL,
        "positions": len(found),
        "top1": top1,
        "max_kl": float(kl.max()),
        **means,
    }


def log_softmax(logits: Logits) -> NDArray[np.float64]:
    """Over the last axis, in double precision: the KL of equal graphs is of rounding's size."""
    wide = logits.astype(np.float64)
    wide -= wide.max(-1, keepdims=True)
    return wide - np.log(np.exp(wide).sum(-1, keepdims=True))
