"""Ollama's ``/api/chat`` and ``/api/generate``: lines of JSON, one for every piece."""

from __future__ import annotations

import datetime
import json
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from edgekit.runtimes.engine import Sampling
from edgekit.server.answer import Answer, Answerer, Arguments, Call, Logprob, Text, Thought, Whole
from edgekit.server.chat import NO_VISION
from edgekit.server.completions import PLAIN, gap
from edgekit.server.errors import bad_request, stream_error
from edgekit.server.fields import stop_texts
from edgekit.server.limits import LIMITS
from edgekit.server.prompts import Prompt
from edgekit.server.question import Function, Question, sampling
from edgekit.server.requests_ollama import (
    OllamaBody,
    OllamaChat,
    OllamaGenerate,
    OllamaMessage,
    OllamaTool,
    Options,
)
from edgekit.server.service import Service, client_of, service_of
from edgekit.server.wire import EventStream, json_response, parse, to_json, unless_gone

Line = dict[str, Any]
Shape = Callable[[Whole], Line]  # a piece of an answer in the form of one of the two endpoints


async def chat(request: Request) -> Response:
    """Answer a conversation; without messages, say that the model is loaded."""
    service = service_of(request)
    body, warnings = await parse(request, OllamaChat)
    service.check_model(body.model)
    if not body.messages:
        return json_response({**_loaded(body.model), "message": _message(Whole())})
    question = _question(
        body,
        tuple(_template_message(m, f"messages.{n}") for n, m in enumerate(body.messages)),
        tuple(map(_function, body.tools or ())),
    )

    async def begin(streaming: bool) -> Answer:
        return await service.answerer.open(question, client_of(request), streaming)

    return await _answer(request, service, body, begin, _chat_line, warnings)


async def generate(request: Request) -> Response:
    """Answer or continue a text; without a prompt, say that the model is loaded."""
    service = service_of(request)
    body, warnings = await parse(request, OllamaGenerate)
    service.check_model(body.model)
    if not body.prompt:
        return json_response({**_loaded(body.model), "response": ""})
    if body.images:
        raise bad_request(f"images: {NO_VISION}", "images")
    prompt: str = body.prompt

    async def begin(streaming: bool) -> Answer:
        client = client_of(request)
        if body.raw or body.suffix:
            continued = await _continued(service.answerer, prompt, body.suffix)
            top = (body.top_logprobs or 0) if body.logprobs else None
            options = _sampling(body, exact=False)
            return await service.answerer.open_prompt(continued, options, client, streaming, top)
        system = [{"role": "system", "content": body.system}] if body.system else []
        messages = (*system, {"role": "user", "content": prompt})
        return await service.answerer.open(_question(body, messages, ()), client, streaming)

    return await _answer(request, service, body, begin, _generate_line, warnings)


def utc_now() -> str:
    """The time as Ollama writes it."""
    return datetime.datetime.now(datetime.UTC).isoformat().replace("+00:00", "Z")


async def _answer(
    request: Request,
    service: Service,
    body: OllamaBody,
    begin: Callable[[bool], Awaitable[Answer]],
    shape: Shape,
    warnings: list[str],
) -> Response:
    """One answer, in lines unless the client wants it whole."""
    arrived = time.perf_counter()
    if body.stream is not False:
        lines = _lines(service, await begin(True), body.model, shape, warnings, arrived)
        return EventStream(lines, "application/x-ndjson")

    async def work() -> Response:
        answer = await begin(False)
        try:
            whole = await answer.whole()
        finally:
            answer.close()
        ended = _ended(service, answer, warnings, arrived)
        head = {"model": body.model, "created_at": utc_now()}
        return json_response({**head, **shape(whole), **ended})

    return await unless_gone(request, work())


async def _lines(
    service: Service,
    answer: Answer,
    model: str,
    shape: Shape,
    warnings: list[str],
    arrived: float,
) -> AsyncGenerator[bytes, None]:
    def line(whole: Whole, **more: Any) -> bytes:
        head = {"model": model, "created_at": utc_now()}
        return to_json({**head, **shape(whole), "done": False, **more}) + b"\n"

    calls: list[tuple[str, str, str]] = []  # told when they are whole, as Ollama does
    try:
        async for part in answer.parts():
            match part:
                case Text(text, tokens):
                    yield line(Whole(text=text, logprobs=list(tokens)))
                case Thought(text):
                    yield line(Whole(thought=text))
                case Call(_, call_id, name):
                    if calls:
                        yield line(Whole(calls=[calls.pop()]))
                    calls.append((call_id, name, ""))
                case Arguments(_, text):
                    call_id, name, before = calls.pop()
                    calls.append((call_id, name, before + text))
        if calls:
            yield line(Whole(calls=calls))
        yield line(Whole(), **_ended(service, answer, warnings, arrived))
    except Exception as error:
        yield to_json({"error": stream_error(error).message}) + b"\n"
    finally:
        answer.close()


def _chat_line(whole: Whole) -> Line:
    return {"message": _message(whole), **_logprobs(whole.logprobs)}


def _generate_line(whole: Whole) -> Line:
    thinking = {"thinking": whole.thought} if whole.thought else {}
    return {"response": whole.text, **thinking, **_logprobs(whole.logprobs)}


def _message(whole: Whole) -> Line:
    message: Line = {"role": "assistant", "content": whole.text}
    if whole.thought:
        message["thinking"] = whole.thought
    if whole.calls:
        message["tool_calls"] = [
            {"id": call_id, "function": {"index": n, "name": name, "arguments": _object(arguments)}}
            for n, (call_id, name, arguments) in enumerate(whole.calls)
        ]
    return message


def _object(arguments: str) -> dict[str, Any]:
    """The arguments of a call, which may have been cut off."""
    try:
        value = json.loads(arguments)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _logprobs(tokens: Sequence[Logprob]) -> Line:
    if not tokens:
        return {}
    shown = [
        {
            "token": t.text,
            "logprob": t.logprob,
            "top_logprobs": [{"token": a.text, "logprob": a.logprob} for a in t.top],
        }
        for t in tokens
    ]
    return {"logprobs": shown}


def _ended(service: Service, answer: Answer, warnings: list[str], arrived: float) -> Line:
    """The last line's account, times in nanoseconds."""
    usage = answer.usage
    total = time.perf_counter() - arrived
    return {
        "done": True,
        "done_reason": "length" if answer.finish == "length" else "stop",
        "total_duration": int(total * 1e9),
        "load_duration": 0,
        "prompt_eval_count": usage.prompt_tokens,
        "prompt_eval_duration": int(usage.time_to_first_token * 1e9),
        "eval_count": usage.completion_tokens,
        "eval_duration": int(max(0.0, total - usage.time_to_first_token) * 1e9),
        "edgekit": service.extras(answer, warnings),
    }


def _loaded(model: str) -> Line:
    return {"model": model, "created_at": utc_now(), "done": True, "done_reason": "load"}


def _template_message(message: OllamaMessage, where: str) -> dict[str, Any]:
    if message.images:
        raise bad_request(f"{where}.images: {NO_VISION}", where)
    result: dict[str, Any] = {"role": message.role, "content": message.content or ""}
    if message.thinking:
        result["reasoning_content"] = message.thinking
    if message.tool_calls:
        result["tool_calls"] = [
            {
                "id": f"call_{number}",
                "type": "function",
                "function": {"name": c.function.name, "arguments": c.function.arguments or {}},
            }
            for number, c in enumerate(message.tool_calls)
        ]
    if message.role == "tool":
        result["tool_call_id"] = "call_0"
        if message.tool_name:
            result["name"] = message.tool_name
    return result


def _function(tool: OllamaTool) -> Function:
    given = tool.function
    return Function(given.name, given.description or "", given.parameters or {"type": "object"})


def _question(
    body: OllamaBody, messages: Sequence[dict[str, Any]], tools: tuple[Function, ...]
) -> Question:
    schema = {"type": "object"} if body.format == "json" else body.format or None
    return Question(
        messages=tuple(messages),
        sampling=_sampling(body, exact=bool(tools) or schema is not None),
        tools=tools,
        schema=schema if isinstance(schema, dict) else None,
        top_logprobs=(body.top_logprobs or 0) if body.logprobs else None,
        thinking=None if body.think is None else bool(body.think),
    )


def _sampling(body: OllamaBody, exact: bool) -> Sampling:
    options = body.options or Options()
    predicted = options.num_predict
    return sampling(
        max_tokens=predicted if predicted is not None and predicted > 0 else LIMITS.answer,
        temperature=options.temperature,
        top_p=options.top_p,
        top_k=options.top_k,
        repetition_penalty=options.repeat_penalty,
        presence_penalty=options.presence_penalty,
        frequency_penalty=options.frequency_penalty,
        seed=options.seed,
        stop=stop_texts(options.stop),
        exact=exact,
    )


async def _continued(answerer: Answerer, text: str, suffix: str | None) -> Prompt:
    """A text to continue as it is, or a gap to fill."""
    if suffix:
        tokens = await answerer.tokenize(lambda prompter: gap(prompter, text, suffix))
    else:
        tokens = await answerer.tokenize(lambda prompter: prompter.text(text))
    return Prompt(tuple(tokens), None, PLAIN)
