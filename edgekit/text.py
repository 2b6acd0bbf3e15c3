"""Text to token ids and back: ``tokenizer.json`` and the chat template, without transformers.

Both runtimes are given token ids made here, so a prompt is the same whichever runtime runs it.
Special tokens take effect only where the chat template writes them: a message that contains
``<|im_end|>`` is text and cannot end its own turn.
"""

from __future__ import annotations

import datetime
import json
import re
import secrets
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer

from edgekit.chat_turns import TurnFinder
from edgekit.checkpoint import read_json
from edgekit.errors import BadInputError

TOKENIZER = "tokenizer.json"
_SURROGATE = re.compile(r"[\ud800-\udfff]")  # half a character: what undecodable input leaves


class ChatTokenizer:
    """The tokenizer of a checkpoint or variant directory.

    Attributes:
        end_tokens: token ids that end an answer.
        has_template: whether the model has a chat template.
        template_source: the chat template as written, or "".
    """

    def __init__(self, directory: Path) -> None:
        self._tokenizer = open_tokenizer(directory)
        self._encoding = threading.Lock()  # whether special tokens count is the tokenizer's state
        self._directory = directory
        settings = _optional_json(directory / "tokenizer_config.json")
        self._special = {
            key: _token_text(settings.get(key))
            for key in ("bos_token", "eos_token", "pad_token", "unk_token")
        }
        self.template_source = _template_source(directory, settings)
        self._template = self._compile(self.template_source) if self.template_source else None
        self.end_tokens = self._find_end_tokens()
        added = self._tokenizer.get_added_tokens_decoder().items()
        special = {i: t.content for i, t in added if t.special}
        self.special_tokens = frozenset(special)
        longest_first = sorted(special.values(), key=len, reverse=True)
        # a pattern that matches nothing where there are none
        self._special_texts = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")

    @property
    def has_template(self) -> bool:
        """Whether messages can be rendered."""
        return self._template is not None

    @property
    def vocab_size(self) -> int:
        """Number of tokens, added ones included."""
        return self._tokenizer.get_vocab_size(with_added_tokens=True)

    def named_special(self) -> dict[str, int]:
        """Ids of the special tokens that have a purpose: "bos", "eos", "pad" and "unk"."""
        found = {
            key.removesuffix("_token"): self._tokenizer.token_to_id(token)
            for key, token in self._special.items()
        }
        return {key: number for key, number in found.items() if number is not None}

    def begins_texts(self) -> bool:
        """Whether the tokenizer itself puts the "bos" token before a text."""
        first = self._tokenizer.encode("a", add_special_tokens=True).ids[:1]
        return first == [self.named_special().get("bos")]

    def encode(self, text: str, allow_special: bool = False) -> list[int]:
        """Token ids of ``text``; special tokens written in it count only if allowed."""
        whole = whole_characters(text)
        with self._encoding:
            self._tokenizer.encode_special_tokens = not allow_special
            return self._tokenizer.encode(whole, add_special_tokens=False).ids

    def decode(self, tokens: Sequence[int], skip_special: bool = True) -> str:
        """Text of token ids."""
        return self._tokenizer.decode(list(tokens), skip_special_tokens=skip_special)

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] = (),
        **variables: Any,
    ) -> str:
        """The conversation as the model was trained to see it.

        ``tools`` are function definitions in OpenAI's form; ``variables`` are what the template
        may ask for besides, such as ``enable_thinking``.

        Raises:
            BadInputError: there is no chat template, or it refuses the messages.
        """
        if self._template is None:
            raise BadInputError(
                f"{self._directory}: no chat template (chat_template.jinja); add one, or give the "
                "instruction-tuned checkpoint"
            )
        try:
            return self._template.render(
                **variables,
                messages=[dict(m) for m in messages],
                # None as transformers gives it: templates test `tools is not none`
                tools=[dict(t) for t in tools] or None,
                documents=None,
                add_generation_prompt=add_generation_prompt,
                **self._special,
            )
        except Exception as error:  # a template is a program of the checkpoint: it can raise any
            raise BadInputError(
                f"{self._directory}: the chat template refused the messages ({_reason(error)}); "
                "check roles and their order"
            ) from error

    def encode_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] = (),
        **variables: Any,
    ) -> list[int]:
        """Token ids of a conversation, ready to be answered unless told otherwise.

        A special token written in a message is rendered as a mark that no message can guess and
        encoded as plain text where the mark stands, so only the template can write special
        tokens, whatever it repeats, drops or cuts of a message.
        """
        marks: dict[str, str] = {}
        safe_messages = [self._unmarked(dict(m), marks) for m in messages]
        safe_tools = [self._unmarked(dict(t), marks) for t in tools]
        text = self.render(safe_messages, add_generation_prompt, safe_tools, **variables)
        return self._encode_marked(text, marks)

    def encode_turns(self, messages: Sequence[Mapping[str, Any]]) -> tuple[list[int], list[bool]]:
        """Token ids of a conversation, as :meth:`encode_chat` makes them, and for each whether an
        assistant wrote it: its words and the token that ends its turn (:mod:`edgekit.chat_turns`).

        Raises:
            BadInputError: the template refuses the messages, or does not show an answer as it asks
                for it.
        """
        marks: dict[str, str] = {}
        finder = TurnFinder(
            source=str(self._directory),
            render=lambda some, ask: self.render(some, add_generation_prompt=ask),
            encode=lambda text: self._encode_marked(text, marks),
            special=self._special_texts,
            ends=frozenset(
                token for i in self.end_tokens if (token := self._tokenizer.id_to_token(i))
            ),
        )
        return finder.encoded([self._unmarked(dict(m), marks) for m in messages])

    def _encode_marked(self, text: str, marks: Mapping[str, str]) -> list[int]:
        """Token ids of a rendered conversation; a special token counts unless a mark names it."""
        if not marks:
            return self.encode(text, allow_special=True)
        tokens: list[int] = []
        for piece in re.split("(" + "|".join(map(re.escape, marks)) + ")", text):
            if piece in marks:
                tokens += self.encode(marks[piece])
            elif piece:
                tokens += self.encode(piece, allow_special=True)
        return tokens

    def _unmarked(self, value: Any, marks: dict[str, str]) -> Any:
        """``value`` with every special token in its texts, keys included, replaced by a mark."""
        if isinstance(value, str):
            return self._special_texts.sub(lambda m: _mark(m.group(), marks), value)
        if isinstance(value, Mapping):
            return {self._unmarked(k, marks): self._unmarked(v, marks) for k, v in value.items()}
        if isinstance(value, list | tuple):
            return [self._unmarked(v, marks) for v in value]
        return value

    def _compile(self, source: str) -> jinja2.Template:
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=["jinja2.ext.loopcontrols", _Generation],
        )
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _raise_exception
        environment.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
        try:
            return environment.from_string(source)
        except Exception as error:  # besides jinja2's own, what deep nesting raises in Python
            raise BadInputError(
                f"{self._directory}: the chat template is not valid ({_reason(error)}); "
                "download it again"
            ) from error

    def _find_end_tokens(self) -> frozenset[int]:
        found: set[int] = set()
        for name in ("generation_config.json", "config.json"):
            value = _optional_json(self._directory / name).get("eos_token_id")
            found.update(
                v for v in (value if isinstance(value, list) else [value]) if isinstance(v, int)
            )
        eos = self._tokenizer.token_to_id(self._special["eos_token"])
        if eos is not None:
            found.add(eos)
        return frozenset(found)


def _template_source(directory: Path, settings: Mapping[str, Any]) -> str:
    path = directory / "chat_template.jinja"
    if path.is_file():
        try:
            return path.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise BadInputError(
                f"{path}: not UTF-8 text ({error.reason}); download it again"
            ) from error
    value = settings.get("chat_template")
    if isinstance(value, list):  # several named templates
        named = {t.get("name"): t.get("template") for t in value if isinstance(t, dict)}
        value = named.get("default")
    return value if isinstance(value, str) else ""


def _optional_json(path: Path) -> dict[str, Any]:
    return read_json(path) if path.is_file() else {}


def _token_text(value: Any) -> str:
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) else ""


def open_tokenizer(directory: Path) -> Tokenizer:
    """``tokenizer.json`` of a checkpoint or variant directory; it neither cuts nor pads.

    Raises:
        BadInputError: it is missing or cannot be read.
    """
    path = directory / TOKENIZER
    if not path.is_file():
        raise BadInputError(
            f"{path} is missing; copy the tokenizer files of the original model there"
        )
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises plain Exception
        raise BadInputError(
            f"{path}: not a tokenizer that `tokenizers` reads ({error}); download it again"
        ) from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def whole_characters(text: str) -> str:
    """``text`` as UTF-8 can hold it: half a character becomes the replacement character."""
    return _SURROGATE.sub("\ufffd", text)


def _mark(text: str, marks: dict[str, str]) -> str:
    """A private name for ``text`` in a rendered conversation."""
    mark = f"\ue000{secrets.token_hex(8)}\ue001"
    marks[mark] = text
    return mark


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _to_json(value: Any, ensure_ascii: bool = False, **options: Any) -> str:
    """The filter of transformers; jinja2's own escapes ``<`` and others for HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, **options)


def _reason(error: Exception) -> str:
    """What was raised: the words of a template error, the kind as well of anything else."""
    words = " ".join(str(error).split())
    if isinstance(error, jinja2.TemplateError) and words:
        return words
    return f"{type(error).__name__}: {words}".removesuffix(": ")


class _Generation(Extension):
    """``{% generation %}`` marks answers for training in transformers; it renders its body."""

    tags = {"generation"}  # noqa: RUF012, jinja2 declares it so

    def parse(self, parser: Parser) -> nodes.Node:
        """The body in a scope of its own, as the call block of transformers has."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=line)
