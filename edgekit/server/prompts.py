"""From a question to token ids, the grammar of its answer, and how the answer is to be read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from edgekit.runtimes.batching import Grammar, Tag
from edgekit.server.question import Question
from edgekit.server.thinking import CLOSE, CLOSING, OPEN, OPENED
from edgekit.server.tool_calls import PYTHON_TAG
from edgekit.server.tool_formats import Dialect, ToolFormat, probe
from edgekit.text import ChatTokenizer

MARKS = (OPEN, CLOSE, PYTHON_TAG, "<tool_call>", "</tool_call>", "[TOOL_CALLS]", "[ARGS]")


@dataclass(frozen=True)
class Reading:
    """How the tokens of an answer become text, thoughts and calls.

    Attributes:
        tools: how calls are written; None when the answer has none.
        names: the functions that may be called.
        one_call: the answer ends with its first call.
        words: the answer may have words; without, what is no call is left out.
        inside: the prompt opened a thought.
        thoughts: thoughts are separated from the answer.
    """

    tools: ToolFormat | None = None
    names: frozenset[str] = frozenset()
    one_call: bool = False
    words: bool = True
    inside: bool = False
    thoughts: bool = True


@dataclass(frozen=True)
class Prompt:
    """What the engine is given, and how to read what it gives back."""

    tokens: tuple[int, ...]
    grammar: Grammar | None = None
    reading: Reading = field(default_factory=Reading)


class Prompter:
    """Makes prompts for one model. Slow for long texts and not thread safe."""

    def __init__(self, tokenizer: ChatTokenizer) -> None:
        self.tokenizer = tokenizer
        self.dialect: Dialect = probe(tokenizer)
        self.shown = MarkDecoder(tokenizer)

    def prompt(self, question: Question) -> Prompt:
        """The prompt of a question.

        Raises:
            BadInputError: the chat template refuses the messages.
        """
        grammar = self._grammar(question)
        fixed = grammar is not None and (grammar.required or grammar.schema is not None)
        tokens = self._encode(question, thinking=False if fixed else question.thinking)
        inside = bool(OPENED.search(self.shown.decode(tokens[-8:])))
        if inside and fixed:
            tokens += self.tokenizer.encode(CLOSING, allow_special=True)
            inside = False
        functions = question.callable
        return Prompt(
            tuple(tokens),
            grammar,
            Reading(
                tools=self.dialect.tools if functions else None,
                names=frozenset(f.name for f in functions),
                one_call=bool(question.choice.name) or not question.choice.parallel,
                words=question.choice.mode != "required" or not functions,
                inside=inside,
            ),
        )

    def text(self, text: str) -> list[int]:
        """Token ids of a text to continue, begun as the model's texts begin."""
        begin = self.tokenizer.named_special().get("bos")
        head = [begin] if begin is not None and self.tokenizer.begins_texts() else []
        return head + self.tokenizer.encode(text)

    def token(self, text: str) -> int | None:
        """The id of a special token, if the model has it."""
        ids = self.tokenizer.encode(text, allow_special=True)
        return ids[0] if len(ids) == 1 else None

    def _encode(self, question: Question, thinking: bool | None) -> list[int]:
        tools = () if question.choice.mode == "none" else question.tools
        messages = self.dialect.for_template(question.messages, tools)
        told = [t.definition for t in tools] if self.dialect.knows_tools else []
        variables = {} if thinking is None else {"enable_thinking": thinking}
        return self.tokenizer.encode_chat(messages, True, told, **variables)

    def _grammar(self, question: Question) -> Grammar | None:
        functions, choice = question.callable, question.choice
        if not functions:
            return Grammar(schema=question.schema) if question.schema is not None else None
        tags = tuple(self.dialect.tools.tag(f) for f in functions)
        if choice.mode == "required":
            single = bool(choice.name) or not choice.parallel
            return Grammar(tags=tags, required=True, single=single)
        if question.schema is not None:  # a call, or an answer of this form
            return Grammar(tags=(*tags, Tag("", question.schema, "")), required=True, single=True)
        return Grammar(tags=tags)


class MarkDecoder:
    """Decodes tokens with the marks of thoughts and calls in them, also where those are special."""

    def __init__(self, tokenizer: ChatTokenizer) -> None:
        self._tokenizer = tokenizer
        marks = [tokenizer.encode(mark, allow_special=True) for mark in MARKS]
        kept = {ids[0] for ids in marks if len(ids) == 1}
        self._hidden = tokenizer.special_tokens - kept

    def decode(self, tokens: Sequence[int]) -> str:
        """Text of token ids."""
        shown = [t for t in tokens if t not in self._hidden]
        return self._tokenizer.decode(shown, skip_special=False)
