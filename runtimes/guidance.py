"""Grammars by llguidance: masks over the vocabulary for loops that see the logits themselves."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekit.errors import BadInputError, missing_extra
from edgekit.runtimes.batching import Grammar, Tag
from edgekit.runtimes.grammars import check_grammar, trigger_groups
from edgekit.text import ChatTokenizer

WHITE_SPACE = r"( |\n[ \t]{0,20})?"  # without a limit small models stay in it forever
FORMATS = (
    "date", "date-time", "time", "duration", "email", "hostname", "ipv4", "ipv6", "uri", "uuid",
)  # fmt: skip
_CHOICES = ("anyOf", "oneOf")
_NAMED = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
_VALUES = ("enum", "const", "default", "examples")
_ANY_TEXT = r"/(.|\n)*/"


class GrammarCompiler:
    """Makes guides over one vocabulary."""

    def __init__(self, tokens: Sequence[bytes], tokenizer: ChatTokenizer) -> None:
        try:
            import llguidance
        except ImportError as error:
            raise missing_extra("llguidance", "serve") from error
        self._llguidance = llguidance
        self._ends = sorted(tokenizer.end_tokens)
        vocabulary = llguidance.TokenizerWrapper(_Vocabulary(tokens, tokenizer))
        self._tokenizer = llguidance.LLTokenizer(vocabulary, eos_token=self._ends)

    def guide(self, grammar: Grammar) -> Guide:
        """A guide through one answer.

        Raises:
            BadInputError: the grammar cannot be followed; says which part of it.
        """
        check_grammar(grammar)
        matcher = self._llguidance.LLMatcher(self._tokenizer, self._source(grammar))
        if matcher.is_error():
            raise BadInputError(
                f"the grammar of the answer cannot be followed ({_reason(matcher.get_error())}); "
                "leave that part out of the schema"
            )
        return Guide(matcher, self._tokenizer.vocab_size)

    def _source(self, grammar: Grammar) -> str:
        options: Any = {"whitespace_pattern": WHITE_SPACE, "coerce_one_of": True}
        if grammar.schema is not None:
            schema = narrowed(grammar.schema)
            return str(
                self._llguidance.LLMatcher.grammar_from_json_schema(schema, overrides=options)
            )
        return str(self._llguidance.LLMatcher.grammar_from_lark(_tags_in_lark(grammar, options)))


class Guide:
    """What may come next in one answer."""

    def __init__(self, matcher: Any, vocab_size: int) -> None:
        self._matcher = matcher
        self._mask = np.zeros((vocab_size + 31) // 32, np.int32)
        self._vocab_size = vocab_size

    def allowed(self) -> NDArray[np.bool_]:
        """The tokens [V] that may come next; end tokens when the answer may end.

        Raises:
            BadInputError: the grammar became too complex to follow.
        """
        self._matcher.unsafe_compute_mask_ptr(self._mask.ctypes.data, self._mask.nbytes)
        if self._matcher.is_error():
            raise BadInputError(
                "the grammar of the answer cannot be followed further "
                f"({_reason(self._matcher.get_error())}); make the schema simpler"
            )
        bits = np.unpackbits(self._mask.view(np.uint8), bitorder="little")
        return bits[: self._vocab_size].astype(bool)

    def accept(self, token: int) -> None:
        """Go on after ``token``, which was allowed."""
        self._matcher.consume_token(token)


class _Vocabulary:
    """The vocabulary in the form that llguidance asks for."""

    def __init__(self, tokens: Sequence[bytes], tokenizer: ChatTokenizer) -> None:
        self.tokens = list(tokens)
        self.eos_token_id = min(tokenizer.end_tokens)
        self.bos_token_id = None
        self.special_token_ids = [i for i, token in enumerate(tokens) if not token]
        self._tokenizer = tokenizer

    def __call__(self, text: str) -> list[int]:
        return self._tokenizer.encode(text)


def narrowed(schema: Any) -> Any:
    """The schema with two habits of schemas read as they are meant.

    Objects that name properties have no others unless they say so, or small models go on inventing
    some; a ``format`` such as "path" or "password" is a note.
    """
    return _narrowed(schema, close='"allOf"' not in json.dumps(schema))


def _narrowed(schema: Any, close: bool) -> Any:
    if isinstance(schema, list):
        return [_narrowed(part, close) for part in schema]
    if not isinstance(schema, Mapping):
        return schema
    choices = any(key in schema for key in _CHOICES)
    owns = "properties" in schema
    result: dict[str, Any] = {}
    for key, value in schema.items():
        if key in _NAMED and isinstance(value, Mapping):
            result[key] = {name: _narrowed(part, close) for name, part in value.items()}
        elif key in _VALUES:
            result[key] = value
        elif key != "format" or value in FORMATS:
            result[key] = _narrowed(value, close and not (owns and key in _CHOICES))
    if close and owns and not choices:
        result.setdefault("additionalProperties", False)
    return result


def _tags_in_lark(grammar: Grammar, options: Mapping[str, Any]) -> str:
    """Tags as a grammar of llguidance's own language, which extends Lark's."""
    if grammar.required:
        choices = " | ".join(_tag(tag, tag.begin, options) for tag in grammar.tags)
        more = "" if grammar.single else " (GAP? tag)*"
        return f"%llguidance {{}}\nstart: GAP? tag{more}\ntag: {choices}\nGAP: /[ \\n]{{1,20}}/\n"
    lines, heads = [], []
    for number, (trigger, tags) in enumerate(trigger_groups(grammar.tags)):
        rest = " | ".join(_tag(tag, tag.begin[len(trigger) :], options) for tag in tags)
        lines.append(f"head_{number}[lazy]: {_ANY_TEXT} {json.dumps(trigger)}")
        lines.append(f"tag_{number}: head_{number} ({rest})")
        heads.append(f"tag_{number}")
    choice = " | ".join(heads)
    start = f"start: text | {choice}" if grammar.single else f"start: ({choice})* text"
    return "\n".join(["%llguidance {}", start, f"text: {_ANY_TEXT}", *lines, ""])


def _tag(tag: Tag, begin: str, options: Mapping[str, Any]) -> str:
    options = {**options, "lenient": bool(tag.begin)}
    schema = json.dumps({**narrowed(tag.schema), "x-guidance": options})
    texts = [json.dumps(text) if text else "" for text in (begin, tag.end)]
    return f"{texts[0]} %json {schema} {texts[1]}".strip()


def _reason(message: str) -> str:
    return " ".join(message.split())[:200]
