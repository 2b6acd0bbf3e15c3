"""``POST /v1/messages`` and ``/v1/messages/count_tokens``, as Anthropic's clients speak them."""

from __future__ import annotations

import json
import secrets
from collections.abc import AsyncGenerator
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from edgekit.server.answer import Answer, Arguments, Call, Part, Text, Thought, Usage, Waiting
from edgekit.server.chat import check_choice
from edgekit.server.errors import bad_request, error_body, stream_error
from edgekit.server.limits import LIMITS
from edgekit.server.question import Function, Question, ToolChoice, sampling
from edgekit.server.requests_anthropic import (
    AnthropicMessage,
    AnthropicTool,
    Block,
    CountRequest,
    MessagesRequest,
    TextBlock,
)
from edgekit.server.service import Service, client_of, service_of
from edgekit.server.wire import EventStream, json_response, parse, sse, sse_comment, unless_gone

PATH = "/v1/messages"
Event = dict[str, Any]


async def messages(request: Request) -> Response:
    """Answer a conversation."""
    service = service_of(request)
    body, warnings = await parse(request, MessagesRequest)
    model = service.check_model(body.model)
    question = question_of(body, body.max_tokens, body)
    client = client_of(request, body.metadata.user_id if body.metadata else None)
    thinking = body.thinking is not None and body.thinking.type != "disabled"
    blocks = Blocks(thinking)
    head = {
        "id": f"msg_{secrets.token_hex(12)}",
        "type": "message",
        "role": "assistant",
        "model": model,
    }
    if body.stream:
        answer = await service.answerer.open(question, client, streaming=True)
        return EventStream(_stream(service, answer, head, blocks, warnings))

    async def work() -> Response:
        answer = await service.answerer.open(question, client, streaming=False)
        try:
            whole = await answer.whole()
        finally:
            answer.close()
        content: list[Event] = []
        if whole.thought and thinking:
            content.append({"type": "thinking", "thinking": whole.thought, "signature": ""})
        if whole.text or not whole.calls:
            content.append({"type": "text", "text": whole.text})
        for call_id, name, arguments in whole.calls:
            content.append(
                {"type": "tool_use", "id": call_id, "name": name, "input": _input(arguments)}
            )
        return json_response(
            {
                **head,
                "content": content,
                "stop_reason": _reason(answer),
                "stop_sequence": answer.stop,
                "usage": _usage(answer.usage),
                "edgekit": service.extras(answer, warnings),
            }
        )

    return await unless_gone(request, work())


async def count_tokens(request: Request) -> Response:
    """The tokens that a conversation would have."""
    service = service_of(request)
    body, _ = await parse(request, CountRequest)
    service.check_model(body.model)
    question = question_of(body, LIMITS.answer)
    prompt = await service.answerer.tokenize(lambda prompter: prompter.prompt(question))
    return json_response({"input_tokens": len(prompt.tokens)})


def question_of(
    body: CountRequest, max_tokens: int, sampled: MessagesRequest | None = None
) -> Question:
    """The question in a request.

    Raises:
        ApiError: something is asked for that cannot be had (400).
    """
    tools = tuple(_function(t, f"tools.{n}") for n, t in enumerate(body.tools or ()))
    wanted = body.output_config.format if body.output_config else None
    schema = wanted.schema_ if wanted else None
    said = [_system(body)] if body.system else []
    for number, message in enumerate(body.messages):
        said += _messages(message, f"messages.{number}")
    return Question(
        messages=tuple(said),
        sampling=sampling(
            max_tokens=max_tokens,
            temperature=sampled.temperature if sampled else None,
            top_p=sampled.top_p if sampled else None,
            top_k=sampled.top_k if sampled else None,
            stop=tuple((sampled.stop_sequences if sampled else None) or ()),
            exact=bool(tools) or schema is not None,
        ),
        tools=tools,
        choice=_choice(body, tools),
        schema=schema,
        thinking=body.thinking is not None and body.thinking.type != "disabled",
    )


class Blocks:
    """Turns the parts of an answer into content block events."""

    def __init__(self, thinking: bool) -> None:
        self._thinking = thinking
        self._index = -1
        self._kind = ""

    def part(self, part: Part) -> list[Event]:
        """The events of one part."""
        match part:
            case Text(text):
                return self._grow("text", {"text": ""}, "text_delta", text=text)
            case Thought(text):
                if not self._thinking:
                    return []
                thought: Event = {"thinking": "", "signature": ""}
                return self._grow("thinking", thought, "thinking_delta", thinking=text)
            case Call(_, call_id, name):
                empty: Event = {"id": call_id, "name": name, "input": {}}
                return [*self.close(), *self._begin("tool_use", empty)]
            case Arguments(_, text):
                return [self._delta("input_json_delta", partial_json=text)]
        return []

    def end(self) -> list[Event]:
        """The last events; an answer without words has one empty block."""
        begun = self._begin("text", {"text": ""}) if self._index < 0 else []
        return [*begun, *self.close()]

    def close(self) -> list[Event]:
        """End the open block."""
        kind, self._kind = self._kind, ""
        if not kind:
            return []
        signed = [self._delta("signature_delta", signature="")] if kind == "thinking" else []
        return [*signed, {"type": "content_block_stop", "index": self._index}]

    def _grow(self, kind: str, empty: Event, delta: str, **fields: str) -> list[Event]:
        begun = [] if self._kind == kind else [*self.close(), *self._begin(kind, empty)]
        return [*begun, self._delta(delta, **fields)]

    def _begin(self, kind: str, empty: Event) -> list[Event]:
        self._index, self._kind = self._index + 1, kind
        block = {"type": kind, **empty}
        return [{"type": "content_block_start", "index": self._index, "content_block": block}]

    def _delta(self, kind: str, **fields: str) -> Event:
        delta = {"type": kind, **fields}
        return {"type": "content_block_delta", "index": self._index, "delta": delta}


async def _stream(
    service: Service, answer: Answer, head: Event, blocks: Blocks, warnings: list[str]
) -> AsyncGenerator[bytes, None]:
    def send(event: Event) -> bytes:
        return sse(event, event["type"])

    begun = {**head, "content": [], "stop_reason": None, "stop_sequence": None}
    try:
        yield send({"type": "message_start", "message": {**begun, "usage": _usage(answer.usage)}})
        async for part in answer.parts():
            if isinstance(part, Waiting):
                yield sse_comment(f"edgekit.queue_position {part.position}")
            for event in blocks.part(part):
                yield send(event)
        for event in blocks.end():
            yield send(event)
        delta = {"stop_reason": _reason(answer), "stop_sequence": answer.stop}
        ended = {"type": "message_delta", "delta": delta, "usage": _usage(answer.usage)}
        yield send({**ended, "edgekit": service.extras(answer, warnings)})
        yield send({"type": "message_stop"})
    except Exception as error:
        told = stream_error(error)
        yield send(error_body(PATH, told.status, told.code, told.message))
    finally:
        answer.close()


def _system(body: CountRequest) -> dict[str, Any]:
    return {"role": "system", "content": _joined(body.system, "system")}


def _messages(message: AnthropicMessage, where: str) -> list[dict[str, Any]]:
    """One turn as chat messages: what tools gave back are messages of their own."""
    if isinstance(message.content, str):
        return [{"role": message.role, "content": message.content}]
    texts: list[str] = []
    results: list[dict[str, Any]] = []
    calls: list[dict[str, Any]] = []
    thoughts: list[str] = []
    for number, block in enumerate(message.content):
        place = f"{where}.content.{number}"
        if block.type == "text" and block.text is not None:
            texts.append(block.text)
        elif block.type == "tool_use":
            calls.append(_call(block, place))
        elif block.type == "tool_result":
            results.append(_result(block, place))
        elif block.type in ("thinking", "redacted_thinking"):
            thoughts.append(block.thinking or "")
        else:
            raise bad_request(f"{place}: {block.type!r} is not supported; send text", place)
    said: dict[str, Any] = {"role": message.role, "content": "\n".join(texts)}
    if calls:
        said["tool_calls"] = calls
    if any(thoughts):
        said["reasoning_content"] = "\n".join(thoughts)
    return [*results, said] if texts or calls or not results else results


def _call(block: Block, where: str) -> dict[str, Any]:
    if block.id is None or block.name is None or block.input is None:
        raise bad_request(f"{where} needs id, name and input", where)
    function = {"name": block.name, "arguments": block.input}
    return {"id": block.id, "type": "function", "function": function}


def _result(block: Block, where: str) -> dict[str, Any]:
    if block.tool_use_id is None:
        raise bad_request(f"{where}.tool_use_id is missing", where)
    text = _joined(block.content, where)
    shown = f"Error: {text}" if block.is_error else text
    return {"role": "tool", "tool_call_id": block.tool_use_id, "content": shown}


def _joined(content: str | list[TextBlock] | None, where: str) -> str:
    if not isinstance(content, list):
        return content or ""
    texts = []
    for number, block in enumerate(content):
        if block.type != "text" or block.text is None:
            place = f"{where}.{number}"
            raise bad_request(f"{place}: {block.type!r} is not supported; send text", place)
        texts.append(block.text)
    return "\n".join(texts)


def _function(tool: AnthropicTool, where: str) -> Function:
    if tool.type not in (None, "custom"):
        raise bad_request(f"{where}: the tool {tool.type!r} is not here; define your own", where)
    return Function(tool.name, tool.description or "", tool.input_schema or {"type": "object"})


def _choice(body: CountRequest, tools: tuple[Function, ...]) -> ToolChoice:
    choice = body.tool_choice
    if choice is None:
        return ToolChoice()
    parallel = choice.disable_parallel_tool_use is not True
    if choice.type == "tool":
        if choice.name is None:
            raise bad_request("tool_choice.name is missing", "tool_choice.name")
        check_choice(choice.name, tools)
        return ToolChoice("required", choice.name, parallel)
    if choice.type == "any":
        check_choice("", tools)
        return ToolChoice("required", "", parallel)
    return ToolChoice("none" if choice.type == "none" else "auto", "", parallel)


def _input(arguments: str) -> dict[str, Any]:
    """The arguments of a call, which may have been cut off."""
    try:
        value = json.loads(arguments)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _reason(answer: Answer) -> str:
    if answer.stop is not None:
        return "stop_sequence"
    return {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use"}[answer.finish]


def _usage(usage: Usage) -> dict[str, int]:
    return {
        "input_tokens": usage.prompt_tokens - usage.cached_tokens,
        "cache_read_input_tokens": usage.cached_tokens,
        "cache_creation_input_tokens": 0,
        "output_tokens": usage.completion_tokens,
    }
