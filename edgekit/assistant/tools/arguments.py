"""Arguments that the model wrote, held against the tool's JSON schema before anybody is asked.

The schema may come from a tool server, so it cannot make this process work: references stay
within the schema and are counted, and regular expressions, which can take for ever, are left to
the server that wrote them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

LARGEST = 256 << 10  # characters of arguments as JSON
MOST_REFERENCES = 2000  # followed in one validation
_PATTERNS = ("pattern", "patternProperties")
_DEPEND_ON_PATTERNS = ("additionalProperties", "unevaluatedProperties")


class _TooMuchWorkError(Exception):
    """The schema refers to itself again and again."""


def parse_arguments(arguments: str | Mapping[str, Any]) -> dict[str, Any] | str:
    """The arguments as a dictionary, or one sentence about what is wrong, for the model."""
    if not isinstance(arguments, str):
        return dict(arguments)
    if len(arguments) > LARGEST:
        return f"the arguments are longer than {LARGEST} characters; send less"
    try:
        value = json.loads(arguments or "{}", parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        return f"the arguments are not valid JSON ({' '.join(str(error).split())}); write an object"
    if not isinstance(value, dict):
        return "the arguments must be one JSON object"
    return value


def schema_problem(schema: Mapping[str, Any], arguments: Mapping[str, Any]) -> str:
    """What the schema says against the arguments, in one sentence; "" when they fit."""
    from jsonschema import exceptions
    from referencing import Registry
    from referencing.exceptions import Unresolvable

    try:
        # An empty registry: a reference out of the schema is never fetched.
        validator = _validator()(_without_patterns(dict(schema)), registry=Registry())
        error = exceptions.best_match(validator.iter_errors(dict(arguments)))
    except (Unresolvable, _TooMuchWorkError, RecursionError):
        return "the tool's schema cannot be followed; choose another tool"
    except Exception as problem:  # a schema that is none breaks the validator in many ways
        words = " ".join(f"{type(problem).__name__}: {problem}".split())[:300]
        return f"the tool's schema is not a JSON schema ({words}); choose another tool"
    if error is None:
        return ""
    where = "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in error.absolute_path)
    words = " ".join(error.message.split())[:300]
    return f"arguments{where}: {words}; correct the arguments and call again"


def _validator() -> Any:
    """Draft 2020-12 with its references counted."""
    from jsonschema import Draft202012Validator
    from jsonschema.validators import extend

    left = MOST_REFERENCES

    def counted(name: str) -> Any:
        follow = Draft202012Validator.VALIDATORS[name]

        def keyword(validator: Any, target: Any, instance: Any, schema: Any) -> Iterator[Any]:
            nonlocal left
            left -= 1
            if left < 0:
                raise _TooMuchWorkError
            yield from follow(validator, target, instance, schema) or ()

        return keyword

    names = ("$ref", "$dynamicRef")
    return extend(Draft202012Validator, {name: counted(name) for name in names})


def _without_patterns(schema: Any) -> Any:
    """A copy without regular expressions, and without what only makes sense beside them."""
    if isinstance(schema, list):
        return [_without_patterns(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    by_pattern = isinstance(schema.get("patternProperties"), dict)
    dropped = {*_PATTERNS, *(_DEPEND_ON_PATTERNS if by_pattern else ())}
    kept = {}
    for key, value in schema.items():
        if key in dropped:
            continue
        if key in ("properties", "$defs", "definitions", "dependentSchemas"):
            # Names of properties, not keywords: an argument may be called "pattern".
            inside = value.items() if isinstance(value, dict) else ()
            kept[key] = {name: _without_patterns(one) for name, one in inside}
        elif key in ("const", "enum", "default", "examples"):
            kept[key] = value
        else:
            kept[key] = _without_patterns(value)
    return kept


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not JSON")
