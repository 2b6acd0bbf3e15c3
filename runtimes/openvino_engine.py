"""The engine on OpenVINO GenAI.

Prompts go in as token ids and answers come out as token ids, so OpenVINO's own tokenizer is not
needed; its pipeline is given an empty one. The weights file is mapped, not read.
"""

from __future__ import annotations

import contextlib
import dataclasses
import queue
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgekit.checkpoint import read_config
from edgekit.describe import describe
from edgekit.errors import BadInputError, MissingRuntimeError
from edgekit.runtimes.answers import bounded_tokens, token_events
from edgekit.runtimes.engine import Message, Sampling, TokenEvent
from edgekit.scheme import read_scheme
from edgekit.text import ChatTokenizer
from edgekit.variant_files import files_of

if TYPE_CHECKING:
    from edgekit.runtimes.openvino_stepwise import OpenVINOStepper

NPU_PROMPT, NPU_ANSWER = 1024, 128  # tokens; the NPU's graphs are compiled for fixed lengths
EXACT = {
    "INFERENCE_PRECISION_HINT": "f32",
    "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0",
    "KV_CACHE_PRECISION": "f32",
}


class OpenVINOEngine:
    """A variant on an OpenVINO device.

    With ``exact`` activations and cache stay in float32, for comparisons with a reference; without
    it the device's defaults hold, which is how the product runs.
    """

    runtime = "openvino"

    def __init__(self, directory: Path, device: str = "CPU", exact: bool = False) -> None:
        files = files_of(directory)
        if not files.openvino_graph.is_file():
            raise BadInputError(
                f"{files.openvino_graph} is missing; run `edgekit compile --target "
                f"openvino-{device.lower()}`"
            )
        try:
            import openvino
            import openvino_genai
        except ImportError as error:
            raise MissingRuntimeError(
                "openvino-genai is not installed: run `pip install edgekit` and try again"
            ) from error
        self._ov, self._genai = openvino, openvino_genai
        self._core = openvino.Core()
        if not any(d.split(".")[0] == device.split(".")[0] for d in self._core.available_devices):
            raise MissingRuntimeError(
                f"device {device} is not on this machine (OpenVINO finds "
                f"{', '.join(self._core.available_devices)}); choose one of these"
            )
        self.device = device
        self.tokenizer = ChatTokenizer(files.shared)
        context = describe(read_config(directory)).context_length
        self.context_length = min(context, NPU_PROMPT) if device == "NPU" else context
        self._properties: dict[str, str | int] = (
            dict(EXACT) if exact else device_properties(directory, device)
        )
        self._xml = files.openvino_graph.read_text(encoding="utf-8")
        self._weights = openvino.Tensor(np.memmap(files.weights, np.uint8, mode="c"))
        self._directory = directory
        self._pipeline: Any = None
        self._compiled: Any = None
        self._stepper: OpenVINOStepper | None = None

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
        if needs_logits(sampling):
            tokens = self._stepwise_tokens(prompt, sampling)
        else:
            self.load()
            tokens = self._tokens(prompt, sampling)
        return token_events(tokens, len(prompt), self.tokenizer, sampling)

    def load(self) -> None:
        """Compile the pipeline now instead of at the first question."""
        if self._pipeline is None:
            # An empty directory stands for "no tokenizer": only token ids are exchanged.
            tokenizer = self._genai.Tokenizer(str(self._directory))
            with self._refusals():
                self._pipeline = self._genai.LLMPipeline(
                    self._xml, self._weights, tokenizer, self.device, **self._properties
                )

    @contextlib.contextmanager
    def _refusals(self) -> Iterator[None]:
        """What to tell a person when the device cannot take the graph."""
        try:
            yield
        except RuntimeError as error:  # what OpenVINO raises for everything
            if self.device == "CPU":
                raise BadInputError(
                    f"{self._directory}: OpenVINO cannot load it ({last_line(error)}); verify "
                    "the pack, or compile again"
                ) from error
            raise MissingRuntimeError(
                f"{self.device}: OpenVINO could not load {self._directory} "
                f"({last_line(error)}); choose openvino-cpu or another device"
            ) from error

    def _tokens(self, prompt: Sequence[int], sampling: Sampling) -> Iterator[int]:
        """Token ids from OpenVINO's thread; closing the iterator stops it."""
        received: queue.SimpleQueue[int | BaseException | None] = queue.SimpleQueue()
        stopped = threading.Event()
        status = self._genai.StreamingStatus

        class Streamer(self._genai.StreamerBase):  # type: ignore[name-defined, misc]
            def write(self, token: int | list[int]) -> Any:
                for one in token if isinstance(token, list) else [token]:
                    received.put(one)
                return status.CANCEL if stopped.is_set() else status.RUNNING

            def end(self) -> None:
                pass

        ids = np.array([list(prompt)], np.int64)
        inputs = self._genai.TokenizedInputs(
            self._ov.Tensor(ids), self._ov.Tensor(np.ones_like(ids))
        )
        config = generation_config(self._genai, sampling, self.tokenizer.end_tokens)

        def work() -> None:
            try:
                self._pipeline.generate(inputs, config, Streamer())
                received.put(None)
            except BaseException as error:  # whatever it is, the caller's thread waits for it
                received.put(error)

        thread = threading.Thread(target=work, name="openvino-generate", daemon=True)
        thread.start()
        try:
            while (item := received.get()) is not None:
                if isinstance(item, RuntimeError):  # what OpenVINO raises
                    raise MissingRuntimeError(
                        f"{self.device}: OpenVINO could not run the model ({last_line(item)}); "
                        "choose another device"
                    ) from item
                if isinstance(item, BaseException):
                    raise item
                yield item
        finally:
            stopped.set()
            thread.join()

    def _stepwise_tokens(self, prompt: Sequence[int], sampling: Sampling) -> Iterator[int]:
        """Token ids from our own loop, for what GenAI's sampler gets wrong."""
        from edgekit.runtimes.openvino_stepwise import OpenVINOStepper
        from edgekit.runtimes.stepwise import stepwise_tokens

        if self.device.startswith("NPU"):
            raise BadInputError(
                "presence_penalty and frequency_penalty do not work on the NPU; leave them at 0 "
                "or choose openvino-cpu"
            )
        if self._stepper is None:
            self._stepper = OpenVINOStepper(self._directory, self.device, self._properties)
        return stepwise_tokens(self._stepper, prompt, sampling, self.tokenizer.end_tokens)

    def logits(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """Logits [T, vocab_size] of one sequence, computed with the properties of generation."""
        if self._compiled is None:
            with self._refusals():
                model = self._core.read_model(self._xml.encode(), self._weights)
                self._compiled = self._core.compile_model(model, self.device, self._properties)
        ids = np.array([list(tokens)], np.int64)
        inputs = {
            "input_ids": ids,
            "attention_mask": np.ones_like(ids),
            "position_ids": np.arange(ids.shape[1])[None],
            "beam_idx": np.zeros(1, np.int32),
        }
        result = self._compiled.create_infer_request().infer(inputs)
        return np.array(result[self._compiled.output(0)][0], np.float32)

    def count_tokens(self, messages: Sequence[Message]) -> int:
        """Tokens of the rendered conversation."""
        return len(self.tokenizer.encode_chat(messages))

    def close(self) -> None:
        """Free the model."""
        self._pipeline = self._compiled = self._stepper = None


def generation_config(genai: Any, sampling: Sampling, end_tokens: frozenset[int]) -> Any:
    """Sampling in GenAI's words; presence and frequency penalties have none (``needs_logits``)."""
    config = genai.GenerationConfig()
    config.apply_chat_template = False
    config.max_new_tokens = sampling.max_tokens
    config.ignore_eos = sampling.ignore_end
    if end_tokens and not sampling.ignore_end:
        config.eos_token_id = min(end_tokens)
        config.stop_token_ids = set(end_tokens)
    config.repetition_penalty = sampling.repetition_penalty
    config.do_sample = sampling.temperature > 0
    if config.do_sample:
        config.temperature = sampling.temperature
        config.top_p = sampling.top_p
        if sampling.top_k:
            config.top_k = sampling.top_k
        seed = sampling.seed
        config.rng_seed = int(np.random.default_rng(seed).integers(1 << 31))
    return config


def needs_logits(sampling: Sampling) -> bool:
    """Whether our own sampler has to choose.

    GenAI subtracts presence and frequency penalties from positive logits but adds them to negative
    ones, which makes tokens that came already likelier.
    """
    return bool(sampling.presence_penalty or sampling.frequency_penalty)


def device_properties(directory: Path, device: str) -> dict[str, str | int]:
    """Defaults of the device; on the CPU activations are quantized in the weights' groups."""
    group = read_scheme(directory).group_size
    if device.startswith("NPU"):
        return {
            "MAX_PROMPT_LEN": NPU_PROMPT,
            "MIN_RESPONSE_LEN": NPU_ANSWER,
        }
    if device.startswith("CPU") and group:
        return {"DYNAMIC_QUANTIZATION_GROUP_SIZE": str(group)}
    return {}


def last_line(error: BaseException) -> str:
    """The last line of a message, where OpenVINO says what went wrong."""
    return (str(error).strip().splitlines() or ["no message"])[-1]
