"""``POST /v1/chat/completions``, as OpenAI's clients speak it."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import AsyncGenerator, Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from edgekit.server.answer import Answer, Arguments, Call, Logprob, Text, Thought, Waiting, Whole
from edgekit.server.errors import bad_request, error_body, stream_error
from edgekit.server.fields import stop_texts
from edgekit.server.limits import LIMITS
from edgekit.server.question import Function, Question, ToolChoice, sampling
from edgekit.server.requests import ChatMessage, ChatRequest, ContentPart, NamedChoice, Tool
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

PATH = "/v1/chat/completions"
NO_VISION = "this model has no vision; send text"


async def chat(request: Request) -> Response:
    """Answer a conversation."""
    service = service_of(request)
    body, warnings = await parse(request, ChatRequest)
    model = service.check_model(body.model)
    question = question_of(body)
    client = client_of(request, body.user)
    head = {
        "id": f"chatcmpl-{secrets.token_hex(12)}",
        "created": int(time.time()),
        "model": model,
        "system_fingerprint": service.model.version or None,
    }
    if body.stream:
        answer = await service.answerer.open(question, client, streaming=True)
        usage = bool(body.stream_options and body.stream_options.include_usage)
        return EventStream(_stream(service, answer, head, usage, bool(body.logprobs), warnings))

    async def work() -> Response:
        answer = await service.answerer.open(question, client, streaming=False)
        try:
            whole = await answer.whole()
        finally:
            answer.close()
        return json_response(_completion(service, answer, whole, head, body, warnings))

    return await unless_gone(request, work())


def question_of(body: ChatRequest) -> Question:
    """The question in a chat request.

    Raises:
        ApiError: something is asked for that cannot be had (400).
    """
    one_answer(body.n)
    schema = _schema(body)
    tools = tuple(map(function_of, body.tools or ()))
    choice = _choice(body, tools)
    if body.top_logprobs is not None and not body.logprobs:
        raise bad_request("top_logprobs needs logprobs to be true", "top_logprobs")
    thinking = None if body.reasoning_effort is None else body.reasoning_effort != "none"
    variables = body.chat_template_kwargs
    if variables is not None and variables.enable_thinking is not None:
        thinking = variables.enable_thinking
    return Question(
        messages=tuple(template_message(m, f"messages.{n}") for n, m in enumerate(body.messages)),
        sampling=sampling(
            max_tokens=body.max_completion_tokens or body.max_tokens or LIMITS.answer,
            temperature=body.temperature,
            top_p=body.top_p,
            top_k=body.top_k,
            repetition_penalty=body.repetition_penalty,
            presence_penalty=body.presence_penalty,
            frequency_penalty=body.frequency_penalty,
            seed=body.seed,
            stop=stop_texts(body.stop),
            exact=bool(tools) or schema is not None,
        ),
        tools=tools,
        choice=choice,
        schema=schema,
        top_logprobs=(body.top_logprobs or 0) if body.logprobs else None,
        thinking=thinking,
    )


def one_answer(n: int | None) -> None:
    """Refuse to answer a request more than once.

    Raises:
        ApiError: more than one answer is asked for (400).
    """
    if n is not None and n != 1:
        raise bad_request(f"n is {n}; a request gets one answer, so send it {n} times", "n")


def function_of(tool: Tool) -> Function:
    """A function that a request offers."""
    given = tool.function
    return Function(given.name, given.description or "", given.parameters or {"type": "object"})


def check_choice(name: str, tools: Sequence[Function], param: str = "tool_choice") -> None:
    """Refuse a choice of functions that were not offered; "" chooses any.

    Raises:
        ApiError: there is no such function (400).
    """
    if not tools:
        raise bad_request(f"{param} needs tools to choose from", param)
    if name and name not in {t.name for t in tools}:
        raise bad_request(f"{param} names {name!r}, which is not among the tools", param)


def template_message(message: ChatMessage, where: str) -> dict[str, Any]:
    """A message as chat templates take it.

    Raises:
        ApiError: a part of it is no text (400).
    """
    result: dict[str, Any] = {
        "role": "system" if message.role == "developer" else message.role,
        "content": text_of(message.content, where),
    }
    if message.name:
        result["name"] = message.name
    if message.reasoning_content:
        result["reasoning_content"] = message.reasoning_content
    if message.tool_calls:
        result["tool_calls"] = [
            template_call(call.id, call.function.name, call.function.arguments)
            for call in message.tool_calls
        ]
    if message.role == "tool":
        if message.tool_call_id is None:
            raise bad_request(f"{where}.tool_call_id is missing", f"{where}.tool_call_id")
        result["tool_call_id"] = message.tool_call_id
    return result


def template_call(call_id: str, name: str, arguments: str) -> dict[str, Any]:
    """A call of the past as chat templates take it: with the arguments as an object."""
    try:
        value = json.loads(arguments)
    except (ValueError, RecursionError):
        value = arguments  # shown as it was
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": value}}


def text_of(content: str | list[ContentPart] | None, where: str) -> str:
    """The words of a message.

    Raises:
        ApiError: a part of it is no text (400).
    """
    if not isinstance(content, list):
        return content or ""
    texts = []
    for number, part in enumerate(content):
        if part.type == "image_url":
            refuse_image(part.image_url.url if part.image_url else "", f"{where}.content.{number}")
        text = part.refusal if part.type == "refusal" else part.text
        if part.type not in ("text", "refusal") or text is None:
            raise bad_request(
                f"{where}.content.{number}: {part.type!r} is not supported; send text",
                f"{where}.content.{number}",
            )
        texts.append(text)
    return "\n".join(texts)


def refuse_image(url: str, where: str) -> None:
    """Say why an image cannot be seen; nothing is ever fetched.

    Raises:
        ApiError: always (400).
    """
    if not url.startswith("data:"):
        raise bad_request(f"{where}: images are taken as data: addresses alone", where)
    raise bad_request(f"{where}: {NO_VISION}", where, "no_vision")


def _schema(body: ChatRequest) -> dict[str, Any] | None:
    wanted = body.response_format
    if wanted is None or wanted.type == "text":
        return None
    if wanted.type == "json_object":
        return {"type": "object"}
    if wanted.json_schema is None or wanted.json_schema.schema_ is None:
        where = "response_format.json_schema.schema"
        raise bad_request(f"{where} is missing", where)
    return wanted.json_schema.schema_


def _choice(body: ChatRequest, tools: Sequence[Function]) -> ToolChoice:
    parallel = body.parallel_tool_calls is not False
    if isinstance(body.tool_choice, NamedChoice):
        check_choice(body.tool_choice.function.name, tools)
        return ToolChoice("required", body.tool_choice.function.name, parallel)
    if body.tool_choice == "required":
        check_choice("", tools)
    return ToolChoice(body.tool_choice or "auto", "", parallel)


def _completion(
    service: Service,
    answer: Answer,
    whole: Whole,
    head: dict[str, Any],
    body: ChatRequest,
    warnings: list[str],
) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": whole.text, "refusal": None}
    if whole.thought:
        message["reasoning_content"] = whole.thought
    if whole.calls:
        message["content"] = whole.text or None
        message["tool_calls"] = [
            {"id": i, "type": "function", "function": {"name": name, "arguments": arguments}}
            for i, name, arguments in whole.calls
        ]
    choice = {
        "index": 0,
        "message": message,
        "logprobs": _logprobs(whole.logprobs) if body.logprobs else None,
        "finish_reason": answer.finish,
    }
    return {
        **head,
        "object": "chat.completion",
        "choices": [choice],
        "usage": openai_usage(answer.usage),
        "edgekit": service.extras(answer, warnings),
    }


async def _stream(
    service: Service,
    answer: Answer,
    head: dict[str, Any],
    usage: bool,
    logprobs: bool,
    warnings: list[str],
) -> AsyncGenerator[bytes, None]:
    head = {**head, "object": "chat.completion.chunk"}
    no_usage = {"usage": None} if usage else {}

    def chunk(delta: dict[str, Any], finish: str | None = None, **more: Any) -> bytes:
        shown = more.pop("logprobs", None)
        choice = {"index": 0, "delta": delta, "logprobs": shown, "finish_reason": finish}
        return sse({**head, "choices": [choice], **no_usage, **more})

    try:
        yield chunk({"role": "assistant", "content": ""})
        async for part in answer.parts():
            match part:
                case Waiting(position):
                    yield sse_comment(f"edgekit.queue_position {position}")
                case Text(text, tokens):
                    shown = _logprobs(tokens) if logprobs else None
                    yield chunk({"content": text}, logprobs=shown)
                case Thought(text):
                    yield chunk({"reasoning_content": text})
                case Call(index, call_id, name):
                    function = {"name": name, "arguments": ""}
                    call = {"index": index, "id": call_id, "type": "function"}
                    yield chunk({"tool_calls": [{**call, "function": function}]})
                case Arguments(index, text):
                    yield chunk({"tool_calls": [{"index": index, "function": {"arguments": text}}]})
        yield chunk({}, answer.finish, edgekit=service.extras(answer, warnings))
        if usage:
            yield sse({**head, "choices": [], "usage": openai_usage(answer.usage)})
    except Exception as error:
        told = stream_error(error)
        yield sse(error_body(PATH, told.status, told.code, told.message))
    finally:
        answer.close()
    yield DONE


def _logprobs(tokens: Sequence[Logprob]) -> dict[str, Any]:
    return {
        "content": [
            {
                **_token(t.text, t.logprob),
                "top_logprobs": [_token(a.text, a.logprob) for a in t.top],
            }
            for t in tokens
        ],
        "refusal": None,
    }


def _token(text: str, logprob: float) -> dict[str, Any]:
    """A token; its bytes only where it is text by itself."""
    whole = None if "\ufffd" in text else list(text.encode("utf-8", "replace"))
    return {"token": text, "logprob": logprob, "bytes": whole}
