"""``POST /v1/responses``: OpenAI's newer API, without its storage.

The answer is always made as stream events; a client that does not stream is given the response of
the last one.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from edgekit.server.answer import Answer
from edgekit.server.chat import check_choice, refuse_image, template_call
from edgekit.server.errors import bad_request, stream_error
from edgekit.server.limits import LIMITS
from edgekit.server.question import Function, Question, ToolChoice, sampling
from edgekit.server.requests_responses import (
    FlatChoice,
    FlatTool,
    InputItem,
    InputPart,
    ResponsesRequest,
)
from edgekit.server.response_events import ResponseEvents
from edgekit.server.service import Service, client_of, service_of
from edgekit.server.wire import EventStream, json_response, parse, sse, sse_comment, unless_gone

TEXT_PARTS = ("input_text", "output_text", "text")


async def responses(request: Request) -> Response:
    """Answer a conversation."""
    service = service_of(request)
    body, warnings = await parse(request, ResponsesRequest)
    model = service.check_model(body.model)
    question = question_of(body)
    client = client_of(request, body.user)
    events = ResponseEvents(_echo(body, question, model))
    if body.stream:
        answer = await service.answerer.open(question, client, streaming=True)
        return EventStream(_stream(service, answer, events, warnings))

    async def work() -> Response:
        answer = await service.answerer.open(question, client, streaming=False)
        try:
            async for part in answer.parts():
                events.part(part)
        finally:
            answer.close()
        response = events.end(answer, service.extras(answer, warnings))[-1]["response"]
        return json_response(response)

    return await unless_gone(request, work())


def question_of(body: ResponsesRequest) -> Question:
    """The question in a request.

    Raises:
        ApiError: something is asked for that cannot be had (400).
    """
    if body.previous_response_id is not None:
        raise bad_request(
            "previous_response_id: responses are not stored here; send the whole conversation "
            "as input", "previous_response_id",
        )  # fmt: skip
    if body.background:
        raise bad_request("background is not supported; use stream", "background")
    tools = tuple(_function(t, f"tools.{n}") for n, t in enumerate(body.tools or ()))
    schema = _schema(body)
    effort = body.reasoning.effort if body.reasoning else None
    return Question(
        messages=tuple(_messages(body)),
        sampling=sampling(
            max_tokens=body.max_output_tokens or LIMITS.answer,
            temperature=body.temperature,
            top_p=body.top_p,
            exact=bool(tools) or schema is not None,
        ),
        tools=tools,
        choice=_choice(body, tools),
        schema=schema,
        top_logprobs=body.top_logprobs,
        thinking=None if effort is None else effort != "none",
    )


def _messages(body: ResponsesRequest) -> list[dict[str, Any]]:
    """The items as chat messages; a call belongs to the assistant's message before it."""
    messages: list[dict[str, Any]] = []
    if body.instructions:
        messages.append({"role": "system", "content": body.instructions})
    if isinstance(body.input, str):
        return [*messages, {"role": "user", "content": body.input}]
    for number, item in enumerate(body.input):
        where = f"input.{number}"
        if item.type == "message":
            messages.append(_message(item, where))
        elif item.type == "function_call":
            call = template_call(*_call(item, where))
            if messages and messages[-1]["role"] == "assistant":
                messages[-1].setdefault("tool_calls", []).append(call)
            else:
                messages.append({"role": "assistant", "content": "", "tool_calls": [call]})
        elif item.type == "function_call_output":
            text = _text(item.output, where)
            messages.append({"role": "tool", "tool_call_id": item.call_id or "", "content": text})
        elif item.type != "reasoning":  # thoughts of past answers are not told again
            raise bad_request(f"{where}: {item.type!r} is not supported", where)
    if not messages:
        raise bad_request("input holds no message", "input")
    return messages


def _message(item: InputItem, where: str) -> dict[str, Any]:
    if item.role is None or item.content is None:
        raise bad_request(f"{where} needs role and content", where)
    role = "system" if item.role == "developer" else item.role
    return {"role": role, "content": _text(item.content, where)}


def _call(item: InputItem, where: str) -> tuple[str, str, str]:
    if item.call_id is None or item.name is None or item.arguments is None:
        raise bad_request(f"{where} needs call_id, name and arguments", where)
    return item.call_id, item.name, item.arguments


def _text(content: str | list[InputPart] | None, where: str) -> str:
    if not isinstance(content, list):
        return content or ""
    texts = []
    for number, part in enumerate(content):
        place = f"{where}.content.{number}"
        if part.type == "input_image":
            refuse_image(part.image_url or "", place)
        text = part.refusal if part.type == "refusal" else part.text
        if text is None or part.type not in (*TEXT_PARTS, "refusal"):
            raise bad_request(f"{place}: {part.type!r} is not supported; send text", place)
        texts.append(text)
    return "\n".join(texts)


def _function(tool: FlatTool, where: str) -> Function:
    if tool.type != "function" or tool.name is None:
        raise bad_request(
            f"{where}: {tool.type!r} is not here; tools are functions with a name", where
        )
    return Function(tool.name, tool.description or "", tool.parameters or {"type": "object"})


def _choice(body: ResponsesRequest, tools: tuple[Function, ...]) -> ToolChoice:
    parallel = body.parallel_tool_calls is not False
    if isinstance(body.tool_choice, FlatChoice):
        check_choice(body.tool_choice.name, tools)
        return ToolChoice("required", body.tool_choice.name, parallel)
    if body.tool_choice == "required":
        check_choice("", tools)
    return ToolChoice(body.tool_choice or "auto", "", parallel)


def _schema(body: ResponsesRequest) -> dict[str, Any] | None:
    wanted = body.text.format if body.text else None
    if wanted is None or wanted.type == "text":
        return None
    if wanted.type == "json_object":
        return {"type": "object"}
    if wanted.schema_ is None:
        raise bad_request("text.format.schema is missing", "text.format.schema")
    return wanted.schema_


def _echo(body: ResponsesRequest, question: Question, model: str) -> dict[str, Any]:
    """What a response repeats of its request."""
    choice = body.tool_choice
    return {
        "object": "response",
        "created_at": int(time.time()),
        "model": model,
        "instructions": body.instructions,
        "max_output_tokens": body.max_output_tokens,
        "metadata": body.metadata or {},
        "parallel_tool_calls": question.choice.parallel,
        "previous_response_id": None,
        "reasoning": {"effort": body.reasoning.effort if body.reasoning else None, "summary": None},
        "store": False,
        "temperature": question.sampling.temperature,
        "text": {"format": _format(body)},
        "tool_choice": choice.model_dump() if isinstance(choice, FlatChoice) else choice or "auto",
        "tools": [
            {**t.model_dump(include={"type", "name", "description", "parameters"}), "strict": True}
            for t in body.tools or ()
        ],
        "top_p": question.sampling.top_p,
        "truncation": "disabled",
    }


def _format(body: ResponsesRequest) -> dict[str, Any]:
    wanted = body.text.format if body.text else None
    if wanted is None:
        return {"type": "text"}
    return wanted.model_dump(by_alias=True, exclude_none=True)


async def _stream(
    service: Service, answer: Answer, events: ResponseEvents, warnings: list[str]
) -> AsyncGenerator[bytes, None]:
    try:
        for event in events.begin():
            yield sse(event, event["type"])
        async for part in answer.parts():
            if events.waits(part):
                yield sse_comment(f"edgekit.queue_position {events.position}")
            for event in events.part(part):
                yield sse(event, event["type"])
        for event in events.end(answer, service.extras(answer, warnings)):
            yield sse(event, event["type"])
    except Exception as error:
        told = stream_error(error)
        for event in events.fail(told):
            yield sse(event, event["type"])
    finally:
        answer.close()
