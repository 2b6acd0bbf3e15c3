"""A JSON schema as rules of XGrammar's EBNF.

XGrammar, which OpenVINO GenAI has built in, converts schemas as well, but what it lets a model
write is not always what the schema allows: bounds of numbers, an ``enum`` beside a ``type``, two
schemas in ``allOf`` and required names without a property came out wrong in its 2026.4 build. It
also lets white space go on forever, where small models like to stay. So the conversion is ours.

It narrows, which keeps every answer valid: properties come in the schema's order and no others
come where some are named; white space is one space, or a line break and an indentation. Keywords
that rules cannot express are collected in ``ignored``: what the rules allow is then more than what
the schema allows, and the caller decides whether that will do.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from edgekit.errors import BadInputError

Schema = Mapping[str, Any]
TYPES = ("object", "array", "string", "number", "integer", "boolean", "null")
MAX_DEPTH = 64
MAX_RULES = 10_000
MAX_COUNT = 256  # of counted repetitions, which are written out inside XGrammar

_NAME = re.compile(r"[a-z]\w*")
_LITERAL = re.compile(r'"(?:[^"\\]|\\.)*"|\[(?:[^\]\\]|\\.)*\]')  # texts and sets of characters
_BASE = {
    "ws": r'("" | " " | "\n" [ \t]{0,20})',
    "value": "object | array | string | number | boolean | null",
    "object": '"{" ws (pair ("," ws pair)* ws)? "}"',
    "pair": 'string ":" ws value',
    "array": '"[" ws (value ("," ws value)* ws)? "]"',
    # by recursion: XGrammar prepares its masks, where repetition cost 23 ms a token
    "string": r'"\"" characters',
    "characters": r'"\"" | [^"\\\x00-\x1f] characters | "\\" escape characters',
    "escape": r'["\\/bfnrt] | "u" [0-9a-fA-F]{4}',
    "integer": '"-"? ("0" | [1-9] [0-9]{0,17})',
    "number": 'integer ("." [0-9]{1,17})? ([eE] [+-]? [0-9]{1,3})?',
    "boolean": '"true" | "false"',
    "null": '"null"',
}
# keywords with a meaning that the rules do not have, by the types that they are about
_UNWRITTEN = {
    "object": ("minProperties", "maxProperties", "patternProperties", "propertyNames",
               "dependentRequired", "dependentSchemas", "dependencies", "unevaluatedProperties"),
    "array": ("prefixItems", "uniqueItems", "contains", "minContains", "maxContains",
              "additionalItems", "unevaluatedItems"),
    "string": ("pattern", "minLength", "maxLength", "format"),
    "number": ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"),
    "": ("not", "if"),
}  # fmt: skip
_UNWRITTEN["integer"] = _UNWRITTEN["number"]
_IMPLIED = (
    ("object", ("properties", "required", "additionalProperties", *_UNWRITTEN["object"])),
    ("array", ("items", "minItems", "maxItems", *_UNWRITTEN["array"])),
    ("string", _UNWRITTEN["string"]),
    ("number", _UNWRITTEN["number"]),
)


class JsonRules:
    """Rules of any number of schemas; ``ignored`` are keywords that they do not express."""

    def __init__(self) -> None:
        self.ignored: set[str] = set()
        self._rules: dict[str, str] = dict(_BASE)
        self._root: Any = {}
        self._references: dict[str, str] = {}

    def add(self, schema: Any) -> str:
        """The name of a rule for JSON of ``schema``.

        Raises:
            BadInputError: it is no schema, nothing fulfils it, or it refers to another document.
        """
        self._root, self._references = schema, {}
        try:
            name = self._named(self._value(schema, 0))
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise BadInputError(
                f"the JSON schema is not one ({error}); check the values of its keywords"
            ) from error
        for rule in self._references.values():
            self._refuse_circle(rule)
        return name

    def text(self, root: str) -> str:
        """The whole grammar, whose answer is ``root``; rules that it does not reach cost memory."""
        rules, waiting = {"root": root}, [root]
        while waiting:
            for name in _NAME.findall(_LITERAL.sub("", waiting.pop())):
                if name in self._rules and name not in rules:
                    rules[name] = self._rules[name]
                    waiting.append(rules[name])
        return "\n".join(f"{name} ::= {rule}" for name, rule in rules.items())

    def _refuse_circle(self, name: str) -> None:
        """Refuse a reference that means nothing but itself."""
        passed = set()
        while name in self._rules:
            if name in passed:
                raise BadInputError("the JSON schema refers to itself in a circle; change it")
            passed.add(name)
            name = self._rules[name]

    def _named(self, rule: str) -> str:
        if len(self._rules) > MAX_RULES:
            raise BadInputError("the JSON schemas are too large for a grammar; make them smaller")
        name = f"r{len(self._rules)}"
        self._rules[name] = rule
        return name

    def _value(self, schema: Any, depth: int) -> str:
        """An expression for JSON of ``schema``."""
        if depth > MAX_DEPTH:
            raise BadInputError(
                f"the JSON schema is nested deeper than {MAX_DEPTH}; make it flatter"
            )
        if schema is True:
            return "value"
        if schema is False:
            raise _UnsatisfiableError("the JSON schema allows no value (false); change it")
        if not isinstance(schema, Mapping):
            raise BadInputError(f"a JSON schema is an object, not {schema!r}; change it")
        if "$ref" in schema:
            return self._reference(schema, depth)
        if "allOf" in schema:
            return self._value(self._all_of(schema, depth), depth + 1)
        for key in ("anyOf", "oneOf"):
            if key in schema:
                rest = {k: v for k, v in schema.items() if k != key}
                return self._any_of([self._merged(rest, s, depth) for s in schema[key]], depth)
        if "enum" in schema or "const" in schema:
            return self._literals(schema)
        self._ignore(schema, "")
        kinds = _types(schema)
        return self._union([self._typed(schema, kind, depth) for kind in kinds])

    def _typed(self, schema: Schema, kind: str, depth: int) -> str:
        if not kind:
            return "value"
        self._ignore(schema, kind)
        if kind == "object":
            return self._object(schema, depth)
        if kind == "array":
            return self._array(schema, depth)
        return kind

    def _ignore(self, schema: Schema, kind: str) -> None:
        self.ignored.update(k for k in _UNWRITTEN.get(kind, ()) if k in schema)

    def _union(self, choices: Sequence[str]) -> str:
        return choices[0] if len(choices) == 1 else "(" + " | ".join(choices) + ")"

    def _any_of(self, schemas: Sequence[Any], depth: int) -> str:
        choices, refusal = [], _UnsatisfiableError("the JSON schema has an empty anyOf; change it")
        for schema in schemas:
            try:
                choices.append(self._value(schema, depth + 1))
            except _UnsatisfiableError as error:
                refusal = error
        if not choices:
            raise refusal
        return self._union(choices)

    def _all_of(self, schema: Schema, depth: int) -> Schema:
        result: Schema = {k: v for k, v in schema.items() if k != "allOf"}
        for part in schema["allOf"]:
            result = self._merged(result, part, depth)
        return result

    def _merged(self, first: Schema, second: Any, depth: int) -> Any:
        """One schema for what fulfils both; what it cannot say is noted as ignored."""
        if second is True:
            return first
        if not first:
            return second
        if not isinstance(second, Mapping):
            return second
        if "$ref" in second:
            if depth > MAX_DEPTH:
                raise BadInputError("the JSON schema refers to itself without end; change it")
            return self._merged(first, self._resolved(second["$ref"]), depth + 1)
        result = dict(first)
        for key, value in second.items():
            if key == "required":
                result[key] = [*dict.fromkeys([*result.get(key, []), *value])]
            elif key == "properties" and not set(result.get(key, {})) & set(value):
                result[key] = {**result.get(key, {}), **value}
            elif result.setdefault(key, value) != value and key not in ("title", "description"):
                self.ignored.add(key)
        return result

    def _reference(self, schema: Schema, depth: int) -> str:
        pointer = schema["$ref"]
        if pointer not in self._references:
            target = self._resolved(pointer)
            name = self._references[pointer] = self._named("")  # it may refer to itself
            self._rules[name] = self._value(target, depth + 1)
        return self._references[pointer]

    def _resolved(self, pointer: Any) -> Any:
        """What a local reference such as ``#/$defs/item`` points at."""
        target = self._root
        try:
            hash_mark, *parts = pointer.split("/")
            if hash_mark != "#":
                raise KeyError(pointer)
            for part in parts:
                target = target[part.replace("~1", "/").replace("~0", "~")]
        except (AttributeError, KeyError, TypeError):
            raise BadInputError(
                f"the JSON schema refers to {pointer!r}, which it does not contain; put it under "
                "$defs and refer to #/$defs/NAME"
            ) from None
        return target

    def _literals(self, schema: Schema) -> str:
        kinds = _types(schema)
        values = schema["enum"] if "enum" in schema else [schema["const"]]
        choices = [_literal(_json(v)) for v in values if not kinds[0] or _is_one_of(v, kinds)]
        if not choices:
            raise _UnsatisfiableError(
                "the JSON schema has an enum without a value of its type; change it"
            )
        return self._union(choices)

    def _object(self, schema: Schema, depth: int) -> str:
        required = schema.get("required", [])
        named = schema.get("properties", {})
        properties = {**named, **{name: True for name in required if name not in named}}
        if not properties:
            others = schema.get("additionalProperties", "properties" not in schema)
            if others is False:
                return r'"{" ws "}"'
            pair = f'string ":" ws {self._value(others, depth + 1)}'
            return self._named(f'"{{" ws ({pair} ("," ws {pair})* ws)? "}}"')
        first, rest = '""', '""'  # what can follow when no pair has come, and when one has
        for name, value in reversed(properties.items()):
            try:
                content = self._value(value, depth + 1)
            except _UnsatisfiableError:
                if name in required:
                    raise
                continue  # a property that may not be there
            pair = self._named(f'{_literal(_json(name))} ":" ws {content}')
            begun = self._named(rest)
            if name in required:
                first, rest = f"{pair} {begun}", f'"," ws {pair} {begun}'
            else:
                first = f"{pair} {begun} | {self._named(first)}"
                rest = f'("," ws {pair})? {begun}'
        return self._named(f'"{{" ws ({first}) ws "}}"')

    def _array(self, schema: Schema, depth: int) -> str:
        items = schema.get("items", True)
        if isinstance(items, list):
            self.ignored.add("items")
            items = True
        least, most = schema.get("minItems", 0), schema.get("maxItems")
        if max(least, most or 0) > MAX_COUNT:
            self.ignored.add("maxItems")
            least, most = min(least, MAX_COUNT), None
        if most == 0 or items is False:
            return r'"[" ws "]"'
        item = self._named(self._value(items, depth + 1))
        more = f"{{{max(least - 1, 0)},{'' if most is None else most - 1}}}"
        some = f'{item} ("," ws {item}){more} ws'
        return self._named(f'"[" ws {some} "]"' if least else f'"[" ws ({some})? "]"')


class _UnsatisfiableError(BadInputError):
    """A schema that no value fulfils; within ``anyOf`` another may be."""


def _types(schema: Schema) -> tuple[str, ...]:
    """The types that a schema names or, by its keywords, is about; ("",) for any."""
    named = schema.get("type")
    if named is None:
        return (next((kind for kind, keys in _IMPLIED if any(k in schema for k in keys)), ""),)
    kinds = tuple(named) if isinstance(named, list) else (named,)
    for kind in kinds:
        if kind not in TYPES:
            raise BadInputError(
                f"the JSON schema has the type {kind!r}; choose among {', '.join(TYPES)}"
            )
    return kinds or ("",)


def _is_one_of(value: Any, kinds: Sequence[str]) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    found = {
        "object": isinstance(value, Mapping),
        "array": isinstance(value, list),
        "string": isinstance(value, str),
        "number": number,
        "integer": number and float(value).is_integer(),
        "boolean": isinstance(value, bool),
        "null": value is None,
    }
    return any(found[kind] for kind in kinds)


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _literal(text: str) -> str:
    """A text as a literal of the grammar."""
    return json.dumps(text, ensure_ascii=False)
