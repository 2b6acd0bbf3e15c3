"""Many answers in one batch: OpenVINO GenAI's continuous batching with its paged attention.

What happens: the variant is linked under the names that the pipeline asks for
(:mod:`edgekit.runtimes.openvino_links`), the pipeline gets a vocabulary for its grammar masks
(:mod:`edgekit.runtimes.openvino_vocabulary`) and a cache of a fixed number of blocks
(:mod:`edgekit.runtimes.cache_plan`; pages are touched as they are used). Prompts that begin alike
share blocks.

The cache can fill up although every single answer fits. GenAI then preempts, and where that leads
nowhere it gives up every answer. It never gets there: before each step the answers are counted,
and while they would not all fit, the youngest is taken out. It goes on, prompt and answer so far as
its new prompt, when there is room again. An answer under a grammar cannot be taken out, for the
grammar would begin anew; it begins when there is room for all of it.

Grammars: XGrammar inside the pipeline was chosen over llguidance with a loop of our own, because
its answers stay in the batch and no second model is needed; what it did wrong when tried is left to
the rules of :mod:`edgekit.runtimes.json_rules`. Jobs that need all logits, which GenAI does not
give, run beside the batch on a second, stateful compilation of the same graph: log-probabilities of
other tokens, presence and frequency penalties (GenAI has the sign wrong for negative logits), and
schemas that our rules cannot spell (bounds, patterns, ...). It is compiled at the first such job
and costs about the memory of the weights file again.
"""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from edgekit.checkpoint import read_config
from edgekit.describe import describe
from edgekit.errors import BadInputError, MissingRuntimeError, OutOfResourcesError
from edgekit.memory import available_memory
from edgekit.plan import weights_bytes
from edgekit.runtimes.answers import bounded_tokens
from edgekit.runtimes.batching import Job, Produced, Run
from edgekit.runtimes.cache_plan import BYTES_PER_VALUE, CachePlan, plan_cache
from edgekit.runtimes.openvino_engine import (
    EXACT,
    OpenVINOEngine,
    device_properties,
    generation_config,
    last_line,
    needs_logits,
)
from edgekit.runtimes.openvino_grammars import structured_output
from edgekit.runtimes.openvino_links import link_model
from edgekit.runtimes.openvino_stepwise import OpenVINOStepper
from edgekit.runtimes.openvino_vocabulary import GrammarTrial, write_detokenizer
from edgekit.runtimes.stepwise import StepwiseLoop
from edgekit.runtimes.stepwise_batching import grammar_compiler
from edgekit.runtimes.token_bytes import token_bytes
from edgekit.scheme import read_scheme
from edgekit.text import ChatTokenizer
from edgekit.variant_files import files_of

MOST_ANSWERS = 16
STEP_TOKENS = 512  # of prompts and answers together in one step
BLOCK = {"CPU": 32, "GPU": 16}  # tokens of a cache block
HEADROOM = 4  # blocks that must be free beyond its prompt before an answer begins
GRAMMAR_BYTES = 256 << 20  # of grammars that XGrammar keeps
GRAMMAR_TOKEN_BYTES = 64  # of one grammar for each token of the vocabulary, measured
BESIDE = 2  # answers at a time on the second model


class BatchRun:
    """An answer in the batch, or waiting to get into it."""

    cached_tokens = 0  # GenAI shares blocks of equal prompts but does not say how many

    def __init__(self, job: Job, limit: int, grammar: Any) -> None:
        self.job, self.limit, self.grammar = job, limit, grammar
        self.answer: list[int] = []
        self.handle: Any = None  # GenAI's, while it is in the batch
        self.done = False
        self._unread: list[Produced] = []

    @property
    def tokens(self) -> int:
        """Tokens of the prompt and the answer so far."""
        return len(self.job.prompt) + len(self.answer)

    def read(self) -> list[Produced]:
        """What came since the last call."""
        unread, self._unread = self._unread, []
        return unread

    def cancel(self) -> None:
        """Stop it; GenAI frees its blocks at the next step."""
        self.done = True
        self.leave()

    def leave(self) -> None:
        """Get out of the batch."""
        if self.handle is not None:
            self.handle.cancel()
            self.handle = None

    def collect(self, ends: frozenset[int]) -> None:
        """Take what the pipeline has computed."""
        while not self.done and self.handle.can_read():
            for output in self.handle.read().values():
                for token, logprob in zip(
                    output.generated_ids, output.generated_log_probs, strict=True
                ):
                    asked = self.job.top_logprobs is not None
                    self._unread.append(Produced(token, logprob if asked else None))
                    self.answer.append(token)
        ended = bool(self.answer) and self.answer[-1] in ends and not self.job.sampling.ignore_end
        if ended or len(self.answer) >= self.limit:
            self.done, self.handle = True, None


class OpenVINOBatchEngine:
    """A :class:`~edgekit.runtimes.batching.BatchEngine` on an OpenVINO device.

    With ``exact`` activations and cache stay in float32, for comparisons with a reference.
    """

    runtime = "openvino"

    def __init__(
        self,
        directory: Path,
        device: str = "CPU",
        max_running: int = MOST_ANSWERS,
        cache_bytes: int | None = None,
        exact: bool = False,
    ) -> None:
        OpenVINOEngine(directory, device)  # refuses what is not there
        import openvino
        import openvino_genai

        self._ov, self._genai = openvino, openvino_genai
        self._directory, self.device = directory, device
        self._properties = dict(EXACT) if exact else device_properties(directory, device)
        self.tokenizer = ChatTokenizer(files_of(directory).shared)
        self._architecture = describe(read_config(directory))
        self.capacity = max_running
        plan = plan_cache(
            self._architecture, self._architecture.context_length, max_running, cache_bytes,
            4 if exact else BYTES_PER_VALUE, _free_bytes(openvino, device),
        )  # fmt: skip
        self.context_length = plan.context_length
        self._block = BLOCK.get(device.split(".")[0], 16)
        self._blocks = self._needed(plan.tokens)
        self._runs: list[BatchRun] = []
        self._requests = 0
        self._beside: StepwiseLoop | None = None
        self._plan: CachePlan = plan
        self._load()

    def _load(self) -> None:
        scheduler = self._genai.SchedulerConfig()
        # two blocks an answer above what is given out: the block that it grows into during a step,
        # and blocks that an answer which was taken out holds until the step's end
        scheduler.num_kv_blocks = self._blocks + 2 * self.capacity
        scheduler.max_num_seqs = self.capacity
        scheduler.max_num_batched_tokens = STEP_TOKENS
        scheduler.enable_prefix_caching = True
        ends = self.tokenizer.end_tokens
        # all is mapped or read when the pipeline stands, so nothing is left behind if we are killed
        with tempfile.TemporaryDirectory(prefix="edgekit-", ignore_cleanup_errors=True) as name:
            private = Path(name)
            link_model(self._directory, private)
            self._no_grammars: BadInputError | None = None
            try:
                tokens = token_bytes(
                    files_of(self._directory).shared, self.tokenizer, self._vocab_size
                )
            except BadInputError as error:
                tokens, self._no_grammars = [], error
            else:
                write_detokenizer(private, tokens, min(ends, default=0))
            tokenizer = self._genai.Tokenizer(str(private))
            self._pipeline: Any = self._genai.ContinuousBatchingPipeline(
                str(private), tokenizer, scheduler, self.device, **self._properties
            )
        self._trial: GrammarTrial | None = None
        self._tokenizer: Any = tokenizer
        self._compiled: set[str] = set()  # grammars that XGrammar keeps

    @property
    def _vocab_size(self) -> int:
        return self._architecture.vocab_size

    def start(self, job: Job) -> Run:
        """Begin an answer.

        Raises:
            BadInputError: the prompt is empty or too long, or the grammar cannot be followed.
            OutOfResourcesError: it needs the second model, for which there is not enough memory.
        """
        limit = bounded_tokens(len(job.prompt), job.sampling, self.context_length)
        if job.grammar is not None:  # the end token is how a complete answer ends
            job = dataclasses.replace(
                job, sampling=dataclasses.replace(job.sampling, ignore_end=False)
            )
        grammar = self._grammar(job)
        if (job.grammar and grammar is None) or job.top_logprobs or needs_logits(job.sampling):
            return self._second_model().start(job)
        run = BatchRun(job, limit, grammar)
        self._runs.append(run)
        return run

    def _grammar(self, job: Job) -> Any:
        """The job's grammar as the pipeline takes it; None where it has none or cannot."""
        if job.grammar is None:
            return None
        if self._no_grammars:
            raise self._no_grammars
        grammar = structured_output(self._genai, job.grammar)
        if grammar is None or not self._may_compile(repr(job.grammar)):
            return None
        if self._trial is None:
            ends = set(self.tokenizer.end_tokens)
            self._trial = GrammarTrial(self._genai, self._tokenizer, self._vocab_size, ends)
        self._trial.answer(grammar)
        return grammar

    def _may_compile(self, grammar: str) -> bool:
        """Whether XGrammar has room for a grammar: it keeps what it compiled and has no limit.

        When it has kept too many, it is begun anew as soon as no answer runs.
        """
        if grammar in self._compiled:
            return True
        if len(self._compiled) >= max(1, GRAMMAR_BYTES // (GRAMMAR_TOKEN_BYTES * self._vocab_size)):
            if any(not run.done for run in self._runs):
                return False
            self._pipeline = self._tokenizer = self._trial = None
            self._load()
        self._compiled.add(grammar)
        return True

    def _second_model(self) -> StepwiseLoop:
        if self._beside is None:
            weights = weights_bytes(self._architecture, read_scheme(self._directory))
            if weights > available_memory():
                raise OutOfResourcesError(
                    f"{self._directory}: log-probabilities of several tokens, presence and "
                    "frequency penalties and some JSON schemas need the model a second time "
                    f"({weights / 1e9:.1f} GB), which is not free; ask without them"
                )
            self._beside = StepwiseLoop(
                OpenVINOStepper(self._directory, self.device, self._properties),
                self.tokenizer.end_tokens,
                lambda: grammar_compiler(self._directory, self.tokenizer, self._vocab_size),
                self.context_length,
                BESIDE,
                self._plan.tokens,
            )
        return self._beside

    def step(self) -> None:
        """Advance the batch by one pass of the model.

        Raises:
            MissingRuntimeError: the device failed; every answer is lost.
        """
        self._runs = [run for run in self._runs if not run.done]
        self._make_room()
        self._admit()
        if self._pipeline.has_non_finished_requests():
            try:
                self._pipeline.step()
            except RuntimeError as error:  # what OpenVINO raises for everything
                raise MissingRuntimeError(
                    f"{self.device}: OpenVINO could not run the model ({last_line(error)}); "
                    "choose another device"
                ) from error
        for run in self._inside():
            self._collect(run)
        if self._beside is not None:
            self._beside.step()

    def _collect(self, run: BatchRun) -> None:
        run.collect(self.tokenizer.end_tokens)
        if not run.done and run.handle.get_status() == self._genai.GenerationStatus.IGNORED:
            raise MissingRuntimeError(
                f"{self.device}: the key-value cache ran out under an answer; allow it more memory"
            )

    def _inside(self) -> list[BatchRun]:
        return [run for run in self._runs if run.handle is not None]

    def _make_room(self) -> None:
        """Take the youngest answers out while the next step could need more than there is."""
        inside = self._inside()
        while len(inside) > 1 and sum(map(self._reserved, inside)) > self._blocks:
            youngest = next((run for run in reversed(inside) if run.grammar is None), None)
            if youngest is None:
                break
            youngest.leave()
            inside.remove(youngest)

    def _admit(self) -> None:
        """Let waiting answers in, the oldest first, while there is room."""
        inside = self._inside()
        used = sum(map(self._reserved, inside))
        for run in self._runs:
            if run.handle is None and not run.done:
                longest = self._needed(len(run.job.prompt) + run.limit)
                needed = max(self._reserved(run), min(self._needed(run.tokens) + HEADROOM, longest))
                if used and used + needed > self._blocks:
                    return
                used += needed
                self._enter(run)

    def _reserved(self, run: BatchRun) -> int:
        """Blocks that an answer may need in the next step; under a grammar all it may ever need."""
        if run.grammar is not None:
            return self._needed(len(run.job.prompt) + run.limit)
        return self._needed(run.tokens + 1)

    def _needed(self, tokens: int) -> int:
        return -(-tokens // self._block)

    def _enter(self, run: BatchRun) -> None:
        """Put an answer into the batch, from its beginning or from where it was taken out."""
        given = len(run.answer)
        sampling = dataclasses.replace(run.job.sampling, max_tokens=run.limit - given)
        if given and sampling.seed is not None:  # not the same random numbers again
            sampling = dataclasses.replace(sampling, seed=sampling.seed + given)
        config = generation_config(self._genai, sampling, self.tokenizer.end_tokens)
        config.logprobs = 0 if run.job.top_logprobs is None else 1
        if run.grammar is not None:
            config.structured_output_config = run.grammar
        ids = np.array([[*run.job.prompt, *run.answer]], np.int64)
        self._requests += 1
        run.handle = self._pipeline.add_request(self._requests, self._ov.Tensor(ids), config)

    def cache_usage(self) -> float:
        """Share of the cache's blocks that answers held in the last step, from 0 to 1."""
        return float(self._pipeline.get_metrics().cache_usage) / 100

    def close(self) -> None:
        """Free the model."""
        for run in self._runs:
            run.cancel()
        if self._beside is not None:
            self._beside.close()
        self._pipeline = self._trial = self._beside = None


def _free_bytes(openvino: Any, device: str) -> int | None:
    """Memory of a graphics device; None where it is the system's."""
    if not device.startswith("GPU"):
        return None
    total = int(openvino.Core().get_property(device, "GPU_DEVICE_TOTAL_MEM_SIZE"))
    return min(total, available_memory())
