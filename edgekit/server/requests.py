"""What clients of OpenAI's chat, completions and embeddings send."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, StringConstraints

from edgekit.server.fields import (
    Body,
    CallId,
    Count,
    Dimensions,
    Effort,
    FunctionName,
    JsonSchema,
    ModelName,
    Penalty,
    Repetition,
    Seed,
    StopText,
    StopTexts,
    Temperature,
    TokenId,
    TopK,
    TopLogprobs,
    TopP,
    User,
)
from edgekit.server.limits import LIMITS


class ImageUrl(Body):
    """Where an image is; only ``data:`` addresses are taken, and only by a model that sees."""

    url: str


class ContentPart(Body):
    """A part of a message."""

    type: Annotated[str, StringConstraints(max_length=64)]
    text: str | None = None
    refusal: str | None = None
    image_url: ImageUrl | None = None


Parts = Annotated[list[ContentPart], Field(max_length=LIMITS.messages)]


class CalledFunction(Body):
    """A call of the past; ``arguments`` is JSON."""

    name: FunctionName
    arguments: str


class ToolCall(Body):
    """A call of the past and its id."""

    id: CallId
    type: Literal["function"] = "function"
    function: CalledFunction


class ChatMessage(Body):
    """One turn."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | Parts | None = None
    name: User | None = None
    tool_calls: Annotated[list[ToolCall], Field(max_length=LIMITS.tools)] | None = None
    tool_call_id: CallId | None = None
    reasoning_content: str | None = None


class FunctionDefinition(Body):
    """A function that may be called."""

    name: FunctionName
    description: str | None = None
    parameters: JsonSchema | None = None
    strict: bool | None = None


class Tool(Body):
    """A tool; functions are the only ones."""

    type: Literal["function"]
    function: FunctionDefinition


class FunctionNamed(Body):
    """The name alone."""

    name: FunctionName


class NamedChoice(Body):
    """The function that must be called."""

    type: Literal["function"]
    function: FunctionNamed


class NamedSchema(Body):
    """A schema and its name; followed exactly whether or not ``strict``."""

    name: FunctionName
    description: str | None = None
    schema_: JsonSchema | None = Field(None, alias="schema")
    strict: bool | None = None


class ResponseFormat(Body):
    """What the answer must look like."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: NamedSchema | None = None


class StreamOptions(Body):
    """What a stream carries besides."""

    include_usage: bool | None = None


class TemplateVariables(Body):
    """Variables of chat templates that may be set."""

    enable_thinking: bool | None = None


class Sampled(Body):
    """What chat and completions have in common."""

    model: ModelName | None = None
    max_tokens: Count | None = None
    temperature: Temperature | None = None
    top_p: TopP | None = None
    top_k: TopK | None = None
    repetition_penalty: Repetition | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    seed: Seed | None = None
    stop: StopText | StopTexts | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: Annotated[int, Field(ge=1, le=128)] | None = None
    user: User | None = None


class ChatRequest(Sampled):
    """The body of ``POST /v1/chat/completions``."""

    silent: ClassVar[frozenset[str]] = frozenset(
        {"metadata", "store", "service_tier", "prompt_cache_key", "prompt_cache_retention",
         "safety_identifier", "modalities"}
    )  # fmt: skip

    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=LIMITS.messages)]
    max_completion_tokens: Count | None = None
    logprobs: bool | None = None
    top_logprobs: TopLogprobs | None = None
    tools: Annotated[list[Tool], Field(max_length=LIMITS.tools)] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedChoice | None = None
    parallel_tool_calls: bool | None = None
    response_format: ResponseFormat | None = None
    reasoning_effort: Effort | None = None
    chat_template_kwargs: TemplateVariables | None = None


Tokens = Annotated[list[TokenId], Field(min_length=1)]


class CompletionRequest(Sampled):
    """The body of ``POST /v1/completions``."""

    prompt: (
        str
        | Annotated[list[str], Field(min_length=1, max_length=LIMITS.prompts)]
        | Tokens
        | Annotated[list[Tokens], Field(min_length=1, max_length=LIMITS.prompts)]
    )
    suffix: str | None = None
    echo: bool | None = None
    logprobs: TopLogprobs | None = None
    best_of: Annotated[int, Field(ge=1, le=20)] | None = None


class EmbeddingsRequest(Body):
    """The body of ``POST /v1/embeddings``."""

    model: ModelName | None = None
    input: (
        str
        | Annotated[list[str], Field(min_length=1, max_length=LIMITS.inputs)]
        | Tokens
        | Annotated[list[Tokens], Field(min_length=1, max_length=LIMITS.inputs)]
    )
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Dimensions | None = None
    input_type: Literal["query", "passage"] | None = None
    user: User | None = None
