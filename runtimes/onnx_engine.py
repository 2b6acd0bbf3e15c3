"""The engine on ONNX Runtime GenAI: the CPU everywhere, DirectML on Windows.

Prompts go in as token ids, so GenAI's own tokenizer is never made.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekit.architecture import Architecture
from edgekit.checkpoint import read_config
from edgekit.describe import describe
from edgekit.errors import BadInputError, EdgekitError, MissingRuntimeError, missing_extra
from edgekit.runtimes.answers import bounded_tokens, token_events
from edgekit.runtimes.engine import Message, Sampling, TokenEvent
from edgekit.runtimes.graph_sessions import PROVIDERS, empty_shape
from edgekit.runtimes.onnx_stepwise import OnnxStepper
from edgekit.runtimes.stepwise import stepwise_tokens
from edgekit.text import ChatTokenizer
from edgekit.variant_files import files_of

SPARSE_VERSION = (1, 32)  # its QMoE knows accuracy_level; DirectML builds are at 1.24


class OnnxEngine:
    """A variant on an ONNX Runtime provider."""

    runtime = "onnx"

    def __init__(self, directory: Path, device: str = "CPU") -> None:
        files = files_of(directory)
        graph = files.onnx_graph
        if not graph.is_file():
            raise BadInputError(
                f"{graph} is missing; run `edgekit compile --target onnx-{device.lower()}`"
            )
        try:
            import onnxruntime
            import onnxruntime_genai
        except ImportError as error:
            raise missing_extra("onnxruntime-genai", "onnx") from error
        available = onnxruntime.get_available_providers()
        if PROVIDERS.get(device) not in available:
            raise MissingRuntimeError(
                f"device {device} is not available to ONNX Runtime here (it has "
                f"{', '.join(available)}); choose onnx-cpu, or install the DirectML build on "
                "Windows"
            )
        self._architecture: Architecture = describe(read_config(directory))
        if self._architecture.moe and _version(onnxruntime.__version__) < SPARSE_VERSION:
            raise MissingRuntimeError(
                f"onnx-{device.lower()}: ONNX Runtime {onnxruntime.__version__} cannot run experts "
                "as this graph has them, 1.32 can; choose an OpenVINO device"
            )
        self._ort, self._genai = onnxruntime, onnxruntime_genai
        silence(onnxruntime, onnxruntime_genai)
        self.device = device
        self._graph = graph
        self.context_length = self._architecture.context_length
        self.tokenizer = ChatTokenizer(files.shared)
        self._model: Any = None
        self._session: Any = None

    def generate(
        self, messages: Sequence[Message], sampling: Sampling = Sampling()
    ) -> Iterator[TokenEvent]:
        """Answer a conversation."""
        return self.generate_tokens(self.tokenizer.encode_chat(messages), sampling)

    def generate_tokens(
        self, prompt: Sequence[int], sampling: Sampling = Sampling()
    ) -> Iterator[TokenEvent]:
        """Continue token ids."""
        limit = bounded_tokens(len(prompt), sampling, self.context_length)
        sampling = dataclasses.replace(sampling, max_tokens=limit)
        if sampling.presence_penalty or sampling.frequency_penalty:  # GenAI has neither
            ends = self.tokenizer.end_tokens
            tokens = stepwise_tokens(self.stepper(), prompt, sampling, ends)
        else:
            self.load()
            tokens = self._tokens(prompt, sampling)
        return token_events(tokens, len(prompt), self.tokenizer, sampling)

    def load(self) -> None:
        """Load the model now instead of at the first question."""
        if self._model is None:
            config = self._genai.Config(str(self._graph.parent))
            config.overlay(json.dumps({"model": {"decoder": {"filename": self._graph.name}}}))
            if self.device != "CPU":
                config.clear_providers()
                config.append_provider(self.device.lower())
            try:
                self._model = self._genai.Model(config)
            except RuntimeError as error:  # what GenAI raises for everything
                raise self._refused(error) from error

    def stepper(self) -> OnnxStepper:
        """The loaded model for loops that see the logits."""
        self.load()
        return OnnxStepper(self._genai, self._model, self.device)

    def _refused(self, error: Exception) -> EdgekitError:
        """What to tell a person when the runtime cannot take the graph or the device."""
        reason = " ".join(str(error).split())[:300]
        if self.device != "CPU":
            return MissingRuntimeError(
                f"{self.device}: ONNX Runtime could not load {self._graph} ({reason}); choose "
                "onnx-cpu or an OpenVINO device"
            )
        return BadInputError(
            f"{self._graph}: ONNX Runtime {self._ort.__version__} cannot load it ({reason}); "
            "verify the pack, or compile again with this version installed"
        )

    def _tokens(self, prompt: Sequence[int], sampling: Sampling) -> Iterator[int]:
        generator = self._genai.Generator(self._model, self._parameters(len(prompt), sampling))
        generator.append_tokens(np.array(list(prompt), np.int32))
        while not generator.is_done():
            generator.generate_next_token()
            yield int(generator.get_next_tokens()[0])

    def _parameters(self, prompt_tokens: int, sampling: Sampling) -> Any:
        options: dict[str, Any] = {
            # the cache is allocated for this length, so ask for no more than can be used
            "max_length": prompt_tokens + sampling.max_tokens,
            "min_length": (prompt_tokens + sampling.max_tokens) * sampling.ignore_end,
            "repetition_penalty": sampling.repetition_penalty,
            "do_sample": sampling.temperature > 0,
        }
        if sampling.temperature > 0:
            seed = sampling.seed
            options |= {
                "temperature": sampling.temperature,
                "top_p": sampling.top_p,
                "top_k": sampling.top_k or self._architecture.vocab_size,
                "random_seed": int(np.random.default_rng(seed).integers(1 << 31)),
            }
        parameters = self._genai.GeneratorParams(self._model)
        parameters.set_search_options(**options)
        return parameters

    def logits(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """Logits [T, vocab_size] of one sequence."""
        if self._session is None:
            self._session = self._make_session()
        ids = np.array([list(tokens)], np.int64)
        inputs: dict[str, NDArray[Any]] = {
            "input_ids": ids, "attention_mask": np.ones_like(ids)
        }  # fmt: skip
        for cache in self._session.get_inputs():
            if cache.name not in inputs:
                inputs[cache.name] = np.zeros(empty_shape(1, cache.shape), np.float32)
        result: NDArray[np.float32] = self._session.run(["logits"], inputs)[0][0]
        return result

    def _make_session(self) -> Any:
        from onnxruntime.capi import onnxruntime_pybind11_state as state

        provider = PROVIDERS[self.device]
        try:
            session = self._ort.InferenceSession(str(self._graph), providers=[provider])
        except (state.Fail, state.InvalidGraph, state.InvalidProtobuf) as error:
            raise self._refused(error) from error
        if provider not in session.get_providers():  # it falls back to the CPU without a word
            raise self._refused(RuntimeError("the provider did not start"))
        return session

    def count_tokens(self, messages: Sequence[Message]) -> int:
        """Tokens of the rendered conversation."""
        return len(self.tokenizer.encode_chat(messages))

    def close(self) -> None:
        """Free the model."""
        self._model = self._session = None


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(".")[:2])


def silence(*runtimes: Any) -> None:
    """Switch off the usage events that Microsoft's builds send on Windows."""
    for runtime in runtimes:
        switch = getattr(runtime, "disable_telemetry_events", None)  # absent from older builds
        if switch is not None:
            switch()
