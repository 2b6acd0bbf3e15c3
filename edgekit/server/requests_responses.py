"""What clients of OpenAI's Responses API send."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, StringConstraints

from edgekit.server.fields import (
    Body,
    CallId,
    Count,
    Effort,
    FunctionName,
    JsonSchema,
    ModelName,
    Temperature,
    TopLogprobs,
    TopP,
    User,
)
from edgekit.server.limits import LIMITS

Kind = Annotated[str, StringConstraints(max_length=64)]


class InputPart(Body):
    """A part of an item."""

    type: Kind
    text: str | None = None
    refusal: str | None = None
    image_url: str | None = None


InputParts = Annotated[list[InputPart], Field(max_length=LIMITS.messages)]


class InputItem(Body):
    """A message, a call, or what a call gave back; which one tells ``type``."""

    type: Kind = "message"
    role: Literal["system", "developer", "user", "assistant"] | None = None
    content: str | InputParts | None = None
    call_id: CallId | None = None
    name: FunctionName | None = None
    arguments: str | None = None
    output: str | InputParts | None = None


class FlatTool(Body):
    """A function, without the nesting of chat completions."""

    type: Kind
    name: FunctionName | None = None
    description: str | None = None
    parameters: JsonSchema | None = None
    strict: bool | None = None


class FlatChoice(Body):
    """The function that must be called."""

    type: Literal["function"]
    name: FunctionName


class TextFormat(Body):
    """What the answer must look like."""

    type: Literal["text", "json_object", "json_schema"]
    name: FunctionName | None = None
    description: str | None = None
    schema_: JsonSchema | None = Field(None, alias="schema")
    strict: bool | None = None


class TextConfig(Body):
    """How text is answered."""

    format: TextFormat | None = None
    verbosity: Literal["low", "medium", "high"] | None = None


class Reasoning(Body):
    """Whether to think first."""

    effort: Effort | None = None
    summary: Literal["auto", "concise", "detailed"] | None = None


class ResponsesRequest(Body):
    """The body of ``POST /v1/responses``."""

    silent: ClassVar[frozenset[str]] = frozenset(
        {"store", "service_tier", "prompt_cache_key", "prompt_cache_retention",
         "safety_identifier", "include", "truncation", "stream_options"}
    )  # fmt: skip

    model: ModelName | None = None
    input: str | Annotated[list[InputItem], Field(min_length=1, max_length=LIMITS.messages)]
    instructions: str | None = None
    max_output_tokens: Count | None = None
    temperature: Temperature | None = None
    top_p: TopP | None = None
    top_logprobs: TopLogprobs | None = None
    stream: bool | None = None
    tools: Annotated[list[FlatTool], Field(max_length=LIMITS.tools)] | None = None
    tool_choice: Literal["none", "auto", "required"] | FlatChoice | None = None
    parallel_tool_calls: bool | None = None
    text: TextConfig | None = None
    reasoning: Reasoning | None = None
    metadata: dict[str, Any] | None = None
    previous_response_id: Annotated[str, StringConstraints(max_length=256)] | None = None
    background: bool | None = None
    user: User | None = None
