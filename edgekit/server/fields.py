"""Types of request fields: every number has a range, every list and text an end.

What is strict here cannot reach native code: a negative count, a number that is text, NaN.
"""

from __future__ import annotations

import json
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints

from edgekit.server.limits import LIMITS

NAME = r"^[a-zA-Z0-9_.-]{1,64}$"
MODEL = r"^[A-Za-z0-9][A-Za-z0-9._:/@-]{0,127}$"


class Body(BaseModel):
    """Base of what clients send: strict types, unknown fields are left aside."""

    model_config = ConfigDict(strict=True, extra="ignore", frozen=True)
    silent: ClassVar[frozenset[str]] = frozenset()  # ignored fields that deserve no warning


def check_schema(schema: dict[str, Any]) -> dict[str, Any]:
    """A JSON schema of bounded size that refers to itself alone.

    Raises:
        ValueError: it is too large, too deep, or names an address.
    """
    _check_depth(schema, LIMITS.schema_depth)
    if len(json.dumps(schema)) > LIMITS.schema:
        raise ValueError(f"the schema is longer than {LIMITS.schema} characters")
    return schema


def _check_depth(value: Any, left: int) -> None:
    if left < 0:
        raise ValueError(f"the schema is nested deeper than {LIMITS.schema_depth} levels")
    if isinstance(value, dict):
        reference = value.get("$ref")
        if isinstance(reference, str) and not reference.startswith("#"):
            raise ValueError("a $ref must begin with '#': no other schema is fetched")
    for inner in value.values() if isinstance(value, dict) else value:
        if isinstance(inner, dict | list):
            _check_depth(inner, left - 1)


Count = Annotated[int, Field(ge=1, le=1 << 20)]
Seed = Annotated[int, Field(ge=-(1 << 63), le=(1 << 64) - 1)]
Temperature = Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)]
TopP = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
TopK = Annotated[int, Field(ge=0, le=1 << 20)]
Repetition = Annotated[float, Field(ge=0.1, le=10, allow_inf_nan=False)]
Penalty = Annotated[float, Field(ge=-2, le=2, allow_inf_nan=False)]
StopText = Annotated[str, StringConstraints(min_length=1, max_length=LIMITS.stop_length)]
StopTexts = Annotated[list[StopText], Field(max_length=LIMITS.stops)]
ModelName = Annotated[str, StringConstraints(pattern=MODEL)]
FunctionName = Annotated[str, StringConstraints(pattern=NAME)]
CallId = Annotated[str, StringConstraints(min_length=1, max_length=256)]
JsonSchema = Annotated[dict[str, Any], AfterValidator(check_schema)]
TopLogprobs = Annotated[int, Field(ge=0, le=LIMITS.top_logprobs)]
User = Annotated[str, StringConstraints(max_length=512)]
TokenId = Annotated[int, Field(ge=0, le=(1 << 31) - 1)]
Dimensions = Annotated[int, Field(ge=1, le=65536)]
Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]


def stop_texts(stop: str | list[str] | None) -> tuple[str, ...]:
    """Stop strings however they were given."""
    return (stop,) if isinstance(stop, str) else tuple(stop or ())
