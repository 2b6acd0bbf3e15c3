"""Thoughts and calls in an answer, however its text is cut into pieces."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from simulator import CHATML, write_tokenizer

from edgekit.runtimes.engine import Sampling
from edgekit.server.prompts import Prompter
from edgekit.server.question import Function, Question
from edgekit.server.thinking import CLOSING, ThinkingSplitter
from edgekit.server.tool_calls import CallArguments, CallBegin, CallEnd, Piece, ToolReader, Words
from edgekit.server.tool_formats import HERMES, LLAMA3, MISTRAL, MISTRAL_ARGS, ToolFormat, probe
from edgekit.text import ChatTokenizer

CUTS = st.lists(st.integers(0, 400), max_size=12)
NAMES = frozenset({"weather", "add"})


def cut(text: str, places: list[int]) -> list[str]:
    """The text in pieces."""
    bounds = sorted({0, len(text), *(p for p in places if p < len(text))})
    return [text[a:b] for a, b in pairwise(bounds)]


def thoughts(pieces: list[str], inside: bool = False) -> tuple[str, str]:
    splitter = ThinkingSplitter(inside)
    told = [part for piece in pieces for part in splitter.push(piece)] + splitter.flush()
    return "".join(t for hidden, t in told if hidden), "".join(
        t for hidden, t in told if not hidden
    )


@given(CUTS)
@pytest.mark.parametrize(
    ("text", "thought", "answer"),
    [
        ("<think>\nwhy\nnot\n</think>\n\nBecause.", "why\nnot", "Because."),
        ("\n<think>a < b</think>c", "a < b", "c"),
        ("<think>\n\n</think>\n\nyes", "", "yes"),
        ("<think>no end", "no end", ""),
        ("<thin air> is text", "", "<thin air> is text"),
        ("text with <think> in it</think>", "", "text with <think> in it</think>"),
        ("  leading space", "", "  leading space"),
    ],
)
def test_thoughts_are_the_same_however_the_text_is_cut(
    text: str, thought: str, answer: str, places: list[int]
) -> None:
    assert thoughts(cut(text, places)) == (thought, answer)


@given(CUTS)
def test_a_thought_that_the_prompt_began_ends_at_its_mark(places: list[int]) -> None:
    assert thoughts(cut("hm\n</think>\n\nyes", places), inside=True) == ("hm", "yes")


def read(form: ToolFormat, pieces: list[str]) -> tuple[str, list[tuple[str, str]], list[Piece]]:
    reader = ToolReader(form, NAMES)
    told = [p for piece in pieces for p in reader.push(piece)] + reader.flush()
    words = "".join(p.text for p in told if isinstance(p, Words))
    calls: list[tuple[str, str]] = []
    for piece in told:
        if isinstance(piece, CallBegin):
            calls.append((piece.name, ""))
        elif isinstance(piece, CallArguments):
            calls[-1] = (calls[-1][0], calls[-1][1] + piece.text)
    return words, calls, told


@given(CUTS)
@pytest.mark.parametrize(
    ("form", "text", "words", "calls"),
    [
        (HERMES, '<tool_call>\n{"name": "add", "arguments": {"a": [1, 2], "b": "}\\""}}\n'
                 "</tool_call>", "", [("add", {"a": [1, 2], "b": '}"'})]),
        (HERMES, 'I look.\n<tool_call>{"arguments": {"a": 1}, "name": "add"}</tool_call>\n'
                 '<tool_call>{"name": "weather"}</tool_call>',
         "I look.", [("add", {"a": 1}), ("weather", {})]),
        (HERMES, '<tool_call>{"name": "add", "arguments": "{\\"a\\": 1}"}</tool_call>',
         "", [("add", {"a": 1})]),
        (HERMES, "a <tool and b", "a <tool and b", []),
        (HERMES, '<tool_call>{"name": "rm", "arguments": {}}</tool_call> no',
         '{"name": "rm"', []),
        (LLAMA3, '{"name": "weather", "parameters": {"city": "北京"}}', "",
         [("weather", {"city": "北京"})]),
        (LLAMA3, '<|python_tag|>{"name": "add", "parameters": {}}; {"name": "weather", '
                 '"parameters": {"x": {}}}', "", [("add", {}), ("weather", {"x": {}})]),
        (LLAMA3, '{"type": "function", "name": "add", "parameters": {"a": null}}', "",
         [("add", {"a": None})]),
        (LLAMA3, '{"answer": 42}', '{"answer": 42}', []),
        (LLAMA3, "plain words", "plain words", []),
        (MISTRAL, '[TOOL_CALLS] [{"name": "add", "arguments": {"a": 1}}, {"name": "weather", '
                  '"arguments": {}, "id": "abcdefghi"}]', "", [("add", {"a": 1}), ("weather", {})]),
        (MISTRAL_ARGS, '[TOOL_CALLS]add[ARGS]{"a": {"b": 2}}[TOOL_CALLS]weather[ARGS]{}', "",
         [("add", {"a": {"b": 2}}), ("weather", {})]),
    ],
)  # fmt: skip
def test_calls_are_the_same_however_the_text_is_cut(
    form: ToolFormat, text: str, words: str, calls: list[tuple[str, Any]], places: list[int]
) -> None:
    said, called, told = read(form, cut(text, places))
    assert [(name, json.loads(arguments)) for name, arguments in called] == calls
    assert said == words if calls or not words.startswith('{"name"') else said.startswith(words)
    assert sum(isinstance(p, CallEnd) for p in told) == len(calls)
    begun = [p for p in told if isinstance(p, CallBegin | CallArguments)]
    assert not begun or isinstance(begun[0], CallBegin)  # the name comes before its arguments


def test_arguments_are_told_while_they_come() -> None:
    reader = ToolReader(HERMES, NAMES)
    assert reader.push('<tool_call>{"name": "add", "argum') == [CallBegin("add")]
    assert reader.push('ents": {"a"') == [CallArguments('{"a"')]
    assert reader.push(": 1") == [CallArguments(": 1")]


def test_a_call_that_is_cut_off_keeps_its_name_and_what_came() -> None:
    _, calls, told = read(HERMES, ['<tool_call>{"name": "add", "arguments": {"a": '])
    assert calls == [("add", '{"a": ')]
    assert not any(isinstance(p, CallEnd) for p in told)


@given(
    st.text('<>tolcan_/{}[]":, \\\n', max_size=80), CUTS, st.sampled_from([HERMES, LLAMA3, MISTRAL])
)
def test_no_text_breaks_the_reader(text: str, places: list[int], form: ToolFormat) -> None:
    assert read(form, cut(text, places))[1] == []


HEADER = "{% for t in tools or [] %}{{ t | tojson }}{% endfor %}"
TURN = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% for c in m.tool_calls or [] %}"
LOOP = "{% endfor %}{% endfor %}"


@pytest.mark.parametrize(
    ("template", "form", "knows_tools", "knows_system"),
    [
        (CHATML, HERMES, True, True),
        (HEADER + TURN + '{"name": "{{ c.function.name }}", "parameters": '
         "{{ c.function.arguments | tojson }}}" + LOOP, LLAMA3, True, True),
        (HEADER + TURN + "[TOOL_CALLS] [{{ c.function | tojson }}]" + LOOP, MISTRAL, True, True),
        (HEADER + TURN + "{% if c.id | length != 9 %}{{ raise_exception('id') }}{% endif %}"
         "[TOOL_CALLS]{{ c.function.name }}[ARGS]{{ c.function.arguments | tojson }}" + LOOP,
         MISTRAL_ARGS, True, True),
        (TURN + LOOP, HERMES, False, True),
        ("{% if messages[0].role == 'system' %}{{ raise_exception('no') }}{% endif %}"
         + TURN + LOOP, HERMES, False, False),
        ("{% for m in messages if m.role != 'system' %}{{ m.content }}{% endfor %}", HERMES, False,
         False),
    ],
)  # fmt: skip
def test_the_form_of_calls_is_read_off_the_chat_template(
    template: str, form: ToolFormat, knows_tools: bool, knows_system: bool, tmp_path: Path
) -> None:
    dialect = probe(ChatTokenizer(write_tokenizer(tmp_path, template)))
    assert dialect.tools == form
    assert (dialect.knows_tools, dialect.knows_system) == (knows_tools, knows_system)


def test_a_template_that_knows_nothing_is_told_of_functions_and_results_in_words(
    tmp_path: Path,
) -> None:
    template = "{% for m in messages %}[{{ m.role }}]{{ m.content }}\n{% endfor %}"
    tokenizer = ChatTokenizer(write_tokenizer(tmp_path, template))
    call = {"id": "c", "function": {"name": "add", "arguments": {"a": 1}}}
    messages = [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "Add."},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c", "content": "2"},
    ]
    told = probe(tokenizer).for_template(messages, [Function("add", "Adds.")])
    text = tokenizer.render(told)
    assert text.startswith("[system]Be kind.\n\nYou can call these functions:\n")
    assert '"description": "Adds."' in text
    assert '[assistant]<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>' in text
    assert "[user]<tool_response>\n2\n</tool_response>" in text


THINKING = (
    "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
    "{% if enable_thinking is defined and not enable_thinking %}<think></think>"
    "{% elif always %}{% else %}<think>\n{% endif %}"
)


def test_a_prompt_that_opens_a_thought_is_read_so_and_closed_before_a_fixed_form(
    tmp_path: Path,
) -> None:
    stubborn = THINKING.replace("enable_thinking is defined and not enable_thinking", "false")
    hi = ({"role": "user", "content": "hi"},)
    free = Question(hi, Sampling())
    fixed = Question(hi, Sampling(), schema={"type": "object"})
    for template, ending in ((THINKING, "<think></think>"), (stubborn, "<think>\n" + CLOSING)):
        tokenizer = ChatTokenizer(write_tokenizer(tmp_path, template))
        prompter = Prompter(tokenizer)
        assert prompter.prompt(free).reading.inside
        prompt = prompter.prompt(fixed)
        assert not prompt.reading.inside and tokenizer.decode(prompt.tokens).endswith(ending)


def test_ids_are_what_a_strict_template_takes(tmp_path: Path) -> None:
    assert len(MISTRAL.new_id()) == 9 and MISTRAL.new_id().isalnum()
    assert MISTRAL.rendered_id("call_of_another_client") == MISTRAL.rendered_id(
        "call_of_another_client"
    )
    assert len(MISTRAL.rendered_id("x")) == 9 and MISTRAL.rendered_id("abcdefghi") == "abcdefghi"
    assert HERMES.rendered_id("call_x") == "call_x"
