"""``POST /v1/completions``: text to continue, or a gap to fill."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from edgekit.runtimes.engine import Sampling
from edgekit.server.answer import Answer, Logprob, Text, Usage, Waiting
from edgekit.server.chat import one_answer
from edgekit.server.errors import bad_request, error_body, stream_error
from edgekit.server.fields import stop_texts
from edgekit.server.prompts import Prompt, Prompter, Reading
from edgekit.server.question import sampling
from edgekit.server.requests import CompletionRequest
from edgekit.server.service import Service, client_of, openai_usage, service_of
from edgekit.server.wire import (
    DONE,
    EventStream,
    json_response,
    parse,
    sse,
    sse_comment,
    unless_gone,
)

PATH = "/v1/completions"
PLAIN = Reading(thoughts=False)
# the special tokens of models that fill gaps: before the prefix, the suffix and the middle
FILL_TOKENS = (
    ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"),
    ("<fim_prefix>", "<fim_suffix>", "<fim_middle>"),
    ("<fim-prefix>", "<fim-suffix>", "<fim-middle>"),
    ("<|fim_begin|>", "<|fim_hole|>", "<|fim_end|>"),
    ("<PRE>", "<SUF>", "<MID>"),
)


@dataclass(frozen=True)
class _Asked:
    """What every answer of one request has in common."""

    head: dict[str, Any]
    prompts: list[Prompt]
    echoes: list[str]
    sampling: Sampling
    logprobs: int | None
    warnings: list[str]


async def completions(request: Request) -> Response:
    """Continue one text or several."""
    service = service_of(request)
    body, warnings = await parse(request, CompletionRequest)
    model = service.check_model(body.model)
    _check(body)
    prompts, echoes = await service.answerer.tokenize(lambda prompter: _prompts(body, prompter))
    head = {
        "id": f"cmpl-{secrets.token_hex(12)}",
        "object": "text_completion",
        "created": int(time.time()),
        "model": model,
    }
    asked = _Asked(head, prompts, echoes, _sampling(body), body.logprobs, warnings)
    client = client_of(request, body.user)
    if body.stream:
        answers = await _open(service, asked, client, streaming=True)
        usage = bool(body.stream_options and body.stream_options.include_usage)
        return EventStream(_stream(service, answers, asked, usage))

    async def work() -> Response:
        answers = await _open(service, asked, client, streaming=False)
        try:
            return await _completion(service, answers, asked)
        finally:
            _close(answers)

    return await unless_gone(request, work())


def _check(body: CompletionRequest) -> None:
    one_answer(body.n)
    if body.best_of is not None and body.best_of != 1:
        raise bad_request("best_of must be 1: one answer is made", "best_of")
    if body.echo and body.logprobs is not None:
        raise bad_request(
            "echo with logprobs is not supported: those of a prompt are not computed", "logprobs"
        )
    if body.suffix is not None and not isinstance(body.prompt, str):
        raise bad_request("suffix needs a prompt that is one text", "suffix")


def _sampling(body: CompletionRequest) -> Sampling:
    return sampling(
        max_tokens=body.max_tokens or 16,  # OpenAI's default for this endpoint
        temperature=body.temperature,
        top_p=body.top_p,
        top_k=body.top_k,
        repetition_penalty=body.repetition_penalty,
        presence_penalty=body.presence_penalty,
        frequency_penalty=body.frequency_penalty,
        seed=body.seed,
        stop=stop_texts(body.stop),
    )


def _prompts(body: CompletionRequest, prompter: Prompter) -> tuple[list[Prompt], list[str]]:
    """The prompts as tokens, and the texts that go before their answers."""
    given = _several(body.prompt)
    size = prompter.tokenizer.vocab_size
    if any(t >= size for tokens in given if not isinstance(tokens, str) for t in tokens):
        raise bad_request(f"a token is not below {size}, the size of the vocabulary", "prompt")
    if body.suffix:
        prompts = [Prompt(tuple(gap(prompter, str(body.prompt), body.suffix)), None, PLAIN)]
    else:
        tokens_of = [prompter.text(p) if isinstance(p, str) else p for p in given]
        prompts = [Prompt(tuple(tokens), None, PLAIN) for tokens in tokens_of]
    if not body.echo:
        return prompts, [""] * len(prompts)
    return prompts, [p if isinstance(p, str) else prompter.tokenizer.decode(p) for p in given]


def _several(prompt: str | list[str] | list[int] | list[list[int]]) -> Sequence[str | list[int]]:
    if isinstance(prompt, str):
        return [prompt]
    if all(isinstance(p, int) for p in prompt):
        return [[p for p in prompt if isinstance(p, int)]]
    return [p for p in prompt if isinstance(p, str | list)]


def gap(prompter: Prompter, before: str, after: str) -> list[int]:
    """A prompt whose answer belongs between two texts.

    Raises:
        ApiError: the model has not learned to fill gaps (400).
    """
    for names in FILL_TOKENS:
        prefix, suffix, middle = (prompter.token(name) for name in names)
        if prefix is not None and suffix is not None and middle is not None:
            encode = prompter.tokenizer.encode
            return [prefix, *encode(before), suffix, *encode(after), middle]
    raise bad_request("this model cannot fill gaps; leave suffix out", "suffix")


async def _open(service: Service, asked: _Asked, client: str, streaming: bool) -> list[Answer]:
    """Begin every answer, or none."""
    answers: list[Answer] = []
    try:
        for prompt in asked.prompts:
            answers.append(
                await service.answerer.open_prompt(
                    prompt, asked.sampling, client, streaming, asked.logprobs
                )
            )
    except BaseException:
        _close(answers)
        raise
    return answers


def _close(answers: Sequence[Answer]) -> None:
    for answer in answers:
        answer.close()


async def _completion(service: Service, answers: Sequence[Answer], asked: _Asked) -> Response:
    wholes = await asyncio.gather(*(answer.whole() for answer in answers))
    choices = [
        {
            "index": n,
            "text": asked.echoes[n] + whole.text,
            "logprobs": _logprobs(whole.logprobs, 0) if asked.logprobs is not None else None,
            "finish_reason": answers[n].finish,
        }
        for n, whole in enumerate(wholes)
    ]
    return json_response(
        {
            **asked.head,
            "choices": choices,
            "usage": openai_usage(_sum(answers)),
            "edgekit": service.extras(answers[-1], asked.warnings),
        }
    )


async def _stream(
    service: Service, answers: Sequence[Answer], asked: _Asked, usage: bool
) -> AsyncGenerator[bytes, None]:
    """All answers run together; they are told one after the other."""
    no_usage = {"usage": None} if usage else {}

    def chunk(index: int, text: str, finish: str | None = None, **more: Any) -> bytes:
        shown = more.pop("logprobs", None)
        choice = {"index": index, "text": text, "logprobs": shown, "finish_reason": finish}
        return sse({**asked.head, "choices": [choice], **no_usage, **more})

    try:
        for index, answer in enumerate(answers):
            offset = len(asked.echoes[index])
            if offset:
                yield chunk(index, asked.echoes[index])
            async for part in answer.parts():
                if isinstance(part, Waiting):
                    yield sse_comment(f"edgekit.queue_position {part.position}")
                elif isinstance(part, Text):
                    shown = _logprobs(part.logprobs, offset) if asked.logprobs is not None else None
                    yield chunk(index, part.text, logprobs=shown)
                    offset += len(part.text)
            yield chunk(index, "", answer.finish, edgekit=service.extras(answer, asked.warnings))
        if usage:
            yield sse({**asked.head, "choices": [], "usage": openai_usage(_sum(answers))})
    except Exception as error:
        told = stream_error(error)
        yield sse(error_body(PATH, told.status, told.code, told.message))
    finally:
        _close(answers)
    yield DONE


def _logprobs(tokens: Sequence[Logprob], offset: int) -> dict[str, Any]:
    offsets = []
    for token in tokens:
        offsets.append(offset)
        offset += len(token.text)
    return {
        "tokens": [t.text for t in tokens],
        "token_logprobs": [t.logprob for t in tokens],
        "top_logprobs": [{a.text: a.logprob for a in t.top} for t in tokens],
        "text_offset": offsets,
    }


def _sum(answers: Sequence[Answer]) -> Usage:
    return Usage(
        prompt_tokens=sum(a.usage.prompt_tokens for a in answers),
        cached_tokens=sum(a.usage.cached_tokens for a in answers),
        completion_tokens=sum(a.usage.completion_tokens for a in answers),
    )
