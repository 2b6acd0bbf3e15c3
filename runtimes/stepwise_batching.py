"""Several answers at once without the runtime's help: each has its own cache and they take turns.

This is how ONNX Runtime serves, and OpenVINO with the families whose graphs its paged attention
cannot hold: those that keep states instead of a cache (linear attention, convolutions) and those
whose attention is no fused operation. The tokens per second of all answers together are those of
one; an answer that has begun is not held up by a long one before it.
"""

from __future__ import annotations

from pathlib import Path

from edgekit.checkpoint import read_config
from edgekit.describe import describe
from edgekit.runtimes.batching import Job
from edgekit.runtimes.cache_plan import plan_cache
from edgekit.runtimes.guidance import GrammarCompiler
from edgekit.runtimes.openvino_engine import EXACT, OpenVINOEngine, device_properties
from edgekit.runtimes.stepwise import Stepper, StepwiseLoop, StepwiseRun
from edgekit.runtimes.token_bytes import token_bytes
from edgekit.text import ChatTokenizer
from edgekit.variant_files import files_of

MOST_ANSWERS = 4


class StepwiseBatchEngine:
    """A :class:`~edgekit.runtimes.batching.BatchEngine` over a model fed token by token."""

    def __init__(
        self,
        stepper: Stepper,
        directory: Path,
        runtime: str,
        device: str,
        max_running: int = MOST_ANSWERS,
        cache_bytes: int | None = None,
        bytes_per_value: int = 4,
    ) -> None:
        architecture = describe(read_config(directory))
        most = min(max_running, MOST_ANSWERS)
        plan = plan_cache(
            architecture, architecture.context_length, most, cache_bytes, bytes_per_value
        )
        self.runtime, self.device = runtime, device
        self.tokenizer = ChatTokenizer(files_of(directory).shared)
        self.context_length = plan.context_length
        self.capacity = plan.answers(most)
        self._loop = StepwiseLoop(
            stepper,
            self.tokenizer.end_tokens,
            lambda: grammar_compiler(directory, self.tokenizer, architecture.vocab_size),
            plan.context_length,
            self.capacity,
            plan.tokens,
        )

    def start(self, job: Job) -> StepwiseRun:
        """Begin an answer."""
        return self._loop.start(job)

    def step(self) -> None:
        """Advance every answer by a token or a piece of its prompt."""
        self._loop.step()

    def close(self) -> None:
        """Free the model."""
        self._loop.close()


def grammar_compiler(directory: Path, tokenizer: ChatTokenizer, vocab_size: int) -> GrammarCompiler:
    """A compiler of grammars over a variant's vocabulary.

    Raises:
        BadInputError: the tokenizer is of a kind for which there are no grammars.
        MissingRuntimeError: llguidance is not installed.
    """
    pieces = token_bytes(files_of(directory).shared, tokenizer, vocab_size)
    return GrammarCompiler(pieces, tokenizer)


def onnx_batch_engine(
    directory: Path,
    device: str = "CPU",
    max_running: int = MOST_ANSWERS,
    cache_bytes: int | None = None,
) -> StepwiseBatchEngine:
    """A variant on ONNX Runtime; loads it.

    Raises:
        BadInputError, MissingRuntimeError, OutOfResourcesError: it cannot be loaded here.
    """
    from edgekit.runtimes.onnx_engine import OnnxEngine

    stepper = OnnxEngine(directory, device).stepper()
    return StepwiseBatchEngine(stepper, directory, "onnx", device, max_running, cache_bytes)


def openvino_stepwise_engine(
    directory: Path,
    device: str = "CPU",
    max_running: int = MOST_ANSWERS,
    cache_bytes: int | None = None,
    exact: bool = False,
) -> StepwiseBatchEngine:
    """A variant on OpenVINO without paged attention; loads it.

    Raises:
        BadInputError, MissingRuntimeError, OutOfResourcesError: it cannot be loaded here.
    """
    from edgekit.runtimes.openvino_stepwise import OpenVINOStepper

    OpenVINOEngine(directory, device)  # refuses what is not there
    properties = dict(EXACT) if exact else device_properties(directory, device)
    stepper = OpenVINOStepper(directory, device, properties)
    return StepwiseBatchEngine(stepper, directory, "openvino", device, max_running, cache_bytes)
