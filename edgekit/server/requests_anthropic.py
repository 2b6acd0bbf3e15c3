"""What clients of Anthropic's Messages API send."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, StringConstraints

from edgekit.server.fields import (
    Body,
    CallId,
    Count,
    FunctionName,
    JsonSchema,
    ModelName,
    StopTexts,
    TopK,
    TopP,
    User,
)
from edgekit.server.limits import LIMITS

Kind = Annotated[str, StringConstraints(max_length=64)]


class TextBlock(Body):
    """A part of a system text or of a tool's result."""

    type: Kind
    text: str | None = None


TextBlocks = Annotated[list[TextBlock], Field(max_length=LIMITS.messages)]


class Block(Body):
    """A part of a message; which one tells ``type``."""

    type: Kind
    text: str | None = None
    id: CallId | None = None
    name: FunctionName | None = None
    input: dict[str, Any] | None = None
    tool_use_id: CallId | None = None
    content: str | TextBlocks | None = None
    is_error: bool | None = None
    thinking: str | None = None


class AnthropicMessage(Body):
    """One turn."""

    role: Literal["user", "assistant", "system"]
    content: str | Annotated[list[Block], Field(max_length=LIMITS.messages)]


class AnthropicTool(Body):
    """A function that may be called."""

    type: Kind | None = None
    name: FunctionName
    description: str | None = None
    input_schema: JsonSchema | None = None


class AnthropicChoice(Body):
    """Whether functions may, must or must not be called."""

    type: Literal["auto", "any", "tool", "none"]
    name: FunctionName | None = None
    disable_parallel_tool_use: bool | None = None


class Thinking(Body):
    """Whether to think first; the budget is not followed."""

    type: Literal["enabled", "disabled", "adaptive"]
    budget_tokens: Count | None = None


class OutputFormat(Body):
    """What the answer must look like."""

    type: Literal["json_schema"]
    schema_: JsonSchema = Field(alias="schema")


class OutputConfig(Body):
    """How to answer; the effort is not followed."""

    format: OutputFormat | None = None
    effort: Kind | None = None


class Metadata(Body):
    """Who asks."""

    user_id: User | None = None


class CountRequest(Body):
    """The body of ``POST /v1/messages/count_tokens``."""

    silent: ClassVar[frozenset[str]] = frozenset({"cache_control", "service_tier"})

    model: ModelName | None = None
    messages: Annotated[list[AnthropicMessage], Field(min_length=1, max_length=LIMITS.messages)]
    system: str | TextBlocks | None = None
    tools: Annotated[list[AnthropicTool], Field(max_length=LIMITS.tools)] | None = None
    tool_choice: AnthropicChoice | None = None
    thinking: Thinking | None = None
    output_config: OutputConfig | None = None


class MessagesRequest(CountRequest):
    """The body of ``POST /v1/messages``."""

    max_tokens: Count
    temperature: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] | None = None
    top_p: TopP | None = None
    top_k: TopK | None = None
    stop_sequences: StopTexts | None = None
    stream: bool | None = None
    metadata: Metadata | None = None
