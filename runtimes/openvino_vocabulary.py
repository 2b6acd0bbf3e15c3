"""Tell OpenVINO GenAI the vocabulary, and try grammars before they reach the batch.

GenAI's grammar masks (XGrammar) take the bytes of every token from the detokenizer model, of which
they read one operation's constants. Packs carry no such model, so a minimal one is made here from
:mod:`edgekit.runtimes.token_bytes`; text itself is still made by ``tokenizers``.

A grammar that XGrammar refuses raises in the middle of a batch's step and takes all its answers
with it. So it is first compiled for a model of no layers that shares the vocabulary; the compiler
keeps what it compiled, and the batch finds it ready.
"""

from __future__ import annotations

import functools
import importlib.util
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
from openvino import opset13 as op
from openvino.utils.node_factory import NodeFactory

from edgekit.errors import BadInputError, MissingRuntimeError

DETOKENIZER = "openvino_detokenizer.xml"  # the name that GenAI looks for


def write_detokenizer(directory: Path, tokens: Sequence[bytes], end_token: int) -> None:
    """Write a detokenizer of ``tokens`` and the ``config.json`` that names the end token.

    Raises:
        MissingRuntimeError: openvino-tokenizers is not installed.
    """
    ids = op.parameter([-1, -1], ov.Type.i64)
    lengths = np.array([len(token) for token in tokens], np.int32)
    ends = np.cumsum(lengths, dtype=np.int32)
    characters = np.frombuffer(b"".join(tokens) or b"\0", np.uint8)
    nothing = op.slice(*(op.constant(np.array([i], np.int32)) for i in (0, 0, 0, 1)))
    vocabulary = [op.convert(ids, "i32"), op.constant(ends - lengths), op.constant(ends),
                  op.constant(characters), nothing]  # fmt: skip
    factory = _factory()
    decoded = factory.create("VocabDecoder", [node.output(0) for node in vocabulary])
    decoded.set_friendly_name("VocabDecoder")  # GenAI finds the vocabulary by this name
    pieces = decoded.outputs()
    joined = factory.create("FuzeRagged", pieces[:4], {}).outputs()
    text = factory.create("StringTensorPack", [*joined, pieces[4]])
    text.output(0).get_tensor().set_names({"string_output"})
    model = ov.Model([text], [ids], "detokenizer")
    model.set_rt_info("1", "openvino_tokenizers_version")  # without it, one of before 2024.5
    ov.save_model(model, directory / DETOKENIZER, compress_to_fp16=False)
    (directory / "config.json").write_text(json.dumps({"eos_token_id": end_token}))


@functools.cache  # the library must stay loaded as long as any of its operations lives
def _factory() -> NodeFactory:
    spec = importlib.util.find_spec("openvino_tokenizers")
    if spec is None or spec.origin is None:
        raise MissingRuntimeError(
            "openvino-tokenizers is not installed: run `pip install edgekit` and try again"
        )
    files = (Path(spec.origin).parent / "lib").glob("*openvino_tokenizers.*")
    factory = NodeFactory()
    factory.add_extension(next(str(f) for f in files if f.suffix in (".so", ".dll", ".dylib")))
    return factory


class GrammarTrial:
    """A model whose every token is equally likely, on which grammars are tried."""

    def __init__(self, genai: Any, tokenizer: Any, vocab_size: int, end_tokens: set[int]) -> None:
        self._genai, self._end_tokens = genai, end_tokens
        xml, weights = _serialized(_flat_model(vocab_size))
        self._pipeline = genai.LLMPipeline(xml, weights, tokenizer, "CPU", ATTENTION_BACKEND="SDPA")

    def answer(self, grammar: Any, tokens: int = 1, seed: int | None = None) -> list[int]:
        """Tokens that ``grammar``, a ``StructuredOutputConfig``, lets follow one another.

        Raises:
            BadInputError: the grammar cannot be compiled.
        """
        config = self._genai.GenerationConfig()
        config.apply_chat_template, config.max_new_tokens = False, tokens
        config.eos_token_id, config.stop_token_ids = min(self._end_tokens), self._end_tokens
        config.structured_output_config = grammar
        if seed is not None:
            config.do_sample, config.rng_seed = True, seed
        ids = ov.Tensor(np.zeros((1, 1), np.int64))
        inputs = self._genai.TokenizedInputs(ids, ov.Tensor(np.ones((1, 1), np.int64)))
        try:
            result: list[int] = self._pipeline.generate(inputs, config).tokens[0]
        except RuntimeError as error:
            reason = " ".join(str(error).split())[-200:]
            raise BadInputError(
                f"the grammar of the answer cannot be followed ({reason}); make the schema simpler"
            ) from error
        return result


def _flat_model(vocab_size: int) -> ov.Model:
    """``logits`` [B, T, vocab_size] of zeros for the inputs of a stateful decoder."""
    ids = _parameter("input_ids", [-1, -1], ov.Type.i64)
    mask = _parameter("attention_mask", [-1, -1], ov.Type.i64)
    beam = _parameter("beam_idx", [-1], ov.Type.i32)
    size = op.constant(np.array([vocab_size], np.int64))
    shape = op.concat([op.shape_of(ids, "i64"), size], 0)
    logits = op.broadcast(op.constant(np.zeros(1, np.float32)), shape)
    logits.output(0).get_tensor().set_names({"logits"})
    return ov.Model([logits], [ids, mask, beam], "flat")


def _parameter(name: str, shape: list[int], kind: ov.Type) -> Any:
    node = op.parameter(shape, kind, name=name)
    node.output(0).get_tensor().set_names({name})
    return node


def _serialized(model: ov.Model) -> tuple[str, ov.Tensor]:
    """A model as GenAI takes it: its XML and its weights."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "model.xml"
        ov.save_model(model, path, compress_to_fp16=False)
        weights = np.fromfile(path.with_suffix(".bin"), np.uint8)
        return path.read_text(encoding="utf-8"), ov.Tensor(weights)
