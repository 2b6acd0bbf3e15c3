"""What clients of Ollama send."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, StringConstraints

from edgekit.server.fields import (
    Body,
    Dimensions,
    FunctionName,
    JsonSchema,
    ModelName,
    Penalty,
    Repetition,
    Seed,
    StopText,
    StopTexts,
    TopK,
    TopLogprobs,
    TopP,
)
from edgekit.server.limits import LIMITS

Text64 = Annotated[str, StringConstraints(max_length=64)]


class Options(Body):
    """How to sample; what concerns loading is ignored, since the model is loaded."""

    temperature: Annotated[float, Field(ge=0, le=5, allow_inf_nan=False)] | None = None
    top_p: TopP | None = None
    top_k: TopK | None = None
    repeat_penalty: Repetition | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    seed: Seed | None = None
    num_predict: Annotated[int, Field(ge=-2, le=1 << 20)] | None = None
    stop: StopText | StopTexts | None = None


class OllamaFunction(Body):
    """A call of the past, or the definition of a function."""

    name: FunctionName
    description: str | None = None
    arguments: dict[str, Any] | None = None
    parameters: JsonSchema | None = None


class OllamaCall(Body):
    """A call of the past."""

    function: OllamaFunction


class OllamaTool(Body):
    """A function that may be called."""

    type: Literal["function"] | None = None
    function: OllamaFunction


class OllamaMessage(Body):
    """One turn."""

    role: Literal["system", "user", "assistant", "tool"]
    content: str | None = None
    thinking: str | None = None
    images: Annotated[list[str], Field(max_length=64)] | None = None
    tool_calls: Annotated[list[OllamaCall], Field(max_length=LIMITS.tools)] | None = None
    tool_name: FunctionName | None = None


class OllamaBody(Body):
    """What chat and generate have in common."""

    silent: ClassVar[frozenset[str]] = frozenset({"keep_alive"})

    model: ModelName
    stream: bool | None = None
    format: Literal["json", ""] | JsonSchema | None = None
    options: Options | None = None
    think: bool | Literal["low", "medium", "high"] | None = None
    logprobs: bool | None = None
    top_logprobs: TopLogprobs | None = None


class OllamaChat(OllamaBody):
    """The body of ``POST /api/chat``."""

    messages: Annotated[list[OllamaMessage], Field(max_length=LIMITS.messages)] | None = None
    tools: Annotated[list[OllamaTool], Field(max_length=LIMITS.tools)] | None = None


class OllamaGenerate(OllamaBody):
    """The body of ``POST /api/generate``."""

    prompt: str | None = None
    suffix: str | None = None
    system: str | None = None
    raw: bool | None = None
    images: Annotated[list[str], Field(max_length=64)] | None = None


class OllamaEmbed(Body):
    """The body of ``POST /api/embed``."""

    silent: ClassVar[frozenset[str]] = frozenset({"keep_alive", "options"})

    model: ModelName
    input: str | Annotated[list[str], Field(max_length=LIMITS.inputs)]
    truncate: bool | None = None
    dimensions: Dimensions | None = None


class OllamaShow(Body):
    """The body of ``POST /api/show``."""

    silent: ClassVar[frozenset[str]] = frozenset({"verbose"})

    model: ModelName | None = None
    name: ModelName | None = None
