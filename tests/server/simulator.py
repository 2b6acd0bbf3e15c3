"""A batch engine without a model, which can misbehave: what the server's tests run on.

Every job gets the answer that ``script(job)`` returns, a token per step, so a test says what the
"model" writes and sees at once when two answers are mixed up. By default the answer repeats the
prompt's text. Misbehaviour is set in attributes, before or during a test:

* ``fail_at_step = N``: the N-th step (from 0) raises, as a lost device does;
* ``steps_per_token = N``: slow by steps, without a clock;
* ``stalled = True``: steps return and bring nothing;
* ``gate.clear()``: a step blocks, as a native call that hangs, until ``gate.set()``;
* ``refuse = "sentence"``: ``start`` refuses every job;
* :func:`refusing_loader`: loading itself fails.

``jobs`` are the jobs that were started, ``running`` the runs that hold memory.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from edgekit.errors import BadInputError, MissingRuntimeError
from edgekit.runtimes.answers import bounded_tokens
from edgekit.runtimes.batching import Job, Produced
from edgekit.text import ChatTokenizer

Script = Callable[[Job], str | Sequence[int]]
CHATML = (
    "{% if tools %}<|im_start|>system\n{{ tools | tojson }}<|im_end|>\n{% endif %}"
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{{ message['content'] or '' }}"
    "{% for call in message.tool_calls or [] %}<tool_call>{{ call.function | tojson }}</tool_call>"
    "{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def write_tokenizer(directory: Path, template: str = CHATML) -> Path:
    """A tokenizer of one token a byte, with ChatML's special tokens 0, 1 and 2 (the end)."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate([*special, *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in special])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(directory / "tokenizer.json"))
    (directory / "chat_template.jinja").write_text(template)
    settings = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>"}
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))
    return directory


class ScriptedRun:
    """One scripted answer under way."""

    def __init__(self, tokens: Sequence[int], cached_tokens: int, top: int | None) -> None:
        self._left, self._top = list(tokens), top
        self._unread: list[Produced] = []
        self.cached_tokens = cached_tokens
        self.cancelled = False

    @property
    def done(self) -> bool:
        """No more tokens will come."""
        return self.cancelled or not self._left

    def read(self) -> list[Produced]:
        """What came since the last call."""
        unread, self._unread = self._unread, []
        return unread

    def cancel(self) -> None:
        """Stop it."""
        self.cancelled = True

    def advance(self) -> None:
        """Produce the next token; its log-probability is -0.5, of others -1.5, -2.5, ..."""
        token = self._left.pop(0)
        top = tuple((token + i, -0.5 - i) for i in range(self._top or 0))
        self._unread.append(Produced(token, None if self._top is None else -0.5, top))


class ScriptedBatchEngine:
    """A :class:`~edgekit.runtimes.batching.BatchEngine` that plays scripts."""

    runtime, device = "openvino", "CPU"

    def __init__(
        self,
        directory: Path,
        script: Script | None = None,
        capacity: int = 4,
        context_length: int = 512,
    ) -> None:
        self.tokenizer = ChatTokenizer(directory)
        self.script: Script = script or (lambda job: self.tokenizer.decode(job.prompt))
        self.capacity, self.context_length = capacity, context_length
        self.fail_at_step: int | None = None
        self.steps_per_token = 1
        self.stalled, self.refuse, self.closed = False, "", False
        self.gate = threading.Event()
        self.gate.set()
        self.steps = 0
        self.jobs: list[Job] = []
        self._runs: list[ScriptedRun] = []

    @property
    def running(self) -> list[ScriptedRun]:
        """Runs that are not done."""
        self._runs = [run for run in self._runs if not run.done]
        return self._runs

    def start(self, job: Job) -> ScriptedRun:
        """Begin an answer: the script, then the end token, cut at the token limit."""
        assert not self.closed and len(self.running) < self.capacity, "started without room"
        if self.refuse:
            raise BadInputError(self.refuse)
        limit = bounded_tokens(len(job.prompt), job.sampling, self.context_length)
        script = self.script(job)
        tokens = self.tokenizer.encode(script) if isinstance(script, str) else list(script)
        if not job.sampling.ignore_end:
            tokens = [*tokens, min(self.tokenizer.end_tokens)]
        cached = max((_common(job.prompt, j.prompt) for j in self.jobs), default=0)
        run = ScriptedRun(tokens[:limit], min(cached, len(job.prompt) - 1), job.top_logprobs)
        self.jobs.append(job)
        self._runs.append(run)
        return run

    def step(self) -> None:
        """Give every run its next token, or misbehave as told."""
        assert not self.closed, "stepped after close"
        self.gate.wait()
        number, self.steps = self.steps, self.steps + 1
        if number == self.fail_at_step:
            raise MissingRuntimeError(f"{self.device}: the device was lost; choose another device")
        if not self.stalled and self.steps % self.steps_per_token == 0:
            for run in self.running:
                run.advance()

    def close(self) -> None:
        """Free the model."""
        self.closed = True


def refusing_loader(*_: object, **__: object) -> NoReturn:
    """Stands in for ``load_batch_engine`` where no engine can be had."""
    raise MissingRuntimeError("device NPU is not on this machine; choose openvino-cpu")


def _common(a: Sequence[int], b: Sequence[int]) -> int:
    """Length of the prefix that two prompts share."""
    return next((i for i, (x, y) in enumerate(zip(a, b)) if x != y), min(len(a), len(b)))
