"""How a model writes a call: found by letting its chat template write one.

A conversation with a call of an invented function is rendered; the text around the function's
name tells the form. Templates that know nothing of functions get them described in the system
message, in the form that most models have seen.
"""

from __future__ import annotations

import hashlib
import json
import re
import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from edgekit.errors import BadInputError
from edgekit.runtimes.batching import Tag
from edgekit.server.question import Function
from edgekit.text import ChatTokenizer

PROBE = "edgekit_probe"
PROBE_TOOL = Function(PROBE, "probe", {"type": "object", "properties": {}})


@dataclass(frozen=True)
class ToolFormat:
    """One way to write calls.

    Attributes:
        marker: text that begins a call; "" where a call is the whole answer and plain JSON.
        close: text that ends it; "" where nothing does.
        begin: what stands before the arguments, with ``NAME`` for the function's.
        end: what stands after them.
        signature: pattern of a rendered call of :data:`PROBE`.
        short_ids: the template wants ids of nine letters and digits.
    """

    name: str
    marker: str
    close: str
    begin: str
    end: str
    signature: str
    short_ids: bool = False

    def tag(self, function: Function) -> Tag:
        """A call of ``function`` as a part of a grammar."""
        return Tag(self.begin.replace("NAME", function.name), function.parameters, self.end)

    def write(self, name: str, arguments: Any) -> str:
        """A call as the model would write it."""
        return (
            self.begin.replace("NAME", name) + json.dumps(arguments, ensure_ascii=False) + self.end
        )

    def new_id(self) -> str:
        """The id of a new call."""
        return secrets.token_hex(5)[:9] if self.short_ids else f"call_{secrets.token_hex(12)}"

    def rendered_id(self, call_id: str) -> str:
        """An id of a client in the form that the template takes."""
        if not self.short_ids or re.fullmatch(r"[a-zA-Z0-9]{9}", call_id):
            return call_id
        return hashlib.sha256(call_id.encode("utf-8", "replace")).hexdigest()[:9]


HERMES = ToolFormat(
    "hermes", "<tool_call>", "</tool_call>",
    '<tool_call>\n{"name": "NAME", "arguments": ', "}\n</tool_call>",
    rf'<tool_call>\s*\{{"name": "{PROBE}"',
)  # fmt: skip
LLAMA3 = ToolFormat(
    "llama3", "", "", '{"name": "NAME", "parameters": ', "}",
    rf'\{{"name": "{PROBE}", "parameters": ',
)  # fmt: skip
MISTRAL = ToolFormat(
    "mistral", "[TOOL_CALLS]", "", '[TOOL_CALLS] [{"name": "NAME", "arguments": ', "}]",
    r"\[TOOL_CALLS\]\s*\[\s*\{", short_ids=True,
)  # fmt: skip
MISTRAL_ARGS = ToolFormat(
    "mistral-args", "[TOOL_CALLS]", "", "[TOOL_CALLS]NAME[ARGS]", "",
    rf"\[TOOL_CALLS\]\s*{PROBE}\s*\[ARGS\]", short_ids=True,
)  # fmt: skip
FORMATS = (HERMES, MISTRAL, MISTRAL_ARGS, LLAMA3)


@dataclass(frozen=True)
class Dialect:
    """What a chat template can say.

    Attributes:
        tools: how calls are written.
        knows_tools: the template describes functions itself.
        knows_system: a system message reaches the prompt.
    """

    tools: ToolFormat
    knows_tools: bool
    knows_system: bool

    def for_template(
        self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Function]
    ) -> list[dict[str, Any]]:
        """The messages in words that the template understands."""
        result = [dict(m) for m in messages]
        if self.knows_tools:
            result = [self._with_ids(m) for m in result]
        else:
            result = [self._written(m) for m in result]
            if tools:
                result = _with_system(result, self._described(tools))
        return result if self.knows_system else _system_in_first_user(result)

    def _with_ids(self, message: dict[str, Any]) -> dict[str, Any]:
        if "tool_call_id" in message:
            message["tool_call_id"] = self.tools.rendered_id(message["tool_call_id"])
        if message.get("tool_calls"):
            message["tool_calls"] = [
                {**call, "id": self.tools.rendered_id(str(call.get("id", "")))}
                for call in message["tool_calls"]
            ]
        return message

    def _written(self, message: dict[str, Any]) -> dict[str, Any]:
        """Calls and their results as text."""
        if message["role"] == "tool":
            return {
                "role": "user",
                "content": f"<tool_response>\n{message['content']}\n</tool_response>",
            }
        calls = message.pop("tool_calls", None) or []
        written = [
            self.tools.write(c["function"]["name"], c["function"]["arguments"]) for c in calls
        ]
        if written:
            message["content"] = "\n".join(filter(None, [message.get("content") or "", *written]))
        return message

    def _described(self, tools: Sequence[Function]) -> str:
        lines = [json.dumps(t.definition["function"], ensure_ascii=False) for t in tools]
        example = self.tools.begin + '{"argument": "value"}' + self.tools.end
        return (
            "You can call these functions:\n" + "\n".join(lines) + "\n\n"
            "When a function helps, answer with a call of this form and nothing else:\n"
            f"{example}\nResults come back between <tool_response> and </tool_response>. Otherwise "
            "answer in plain words."
        )


def probe(tokenizer: ChatTokenizer) -> Dialect:
    """Find out what the chat template of a model can say."""
    user = {"role": "user", "content": "a"}
    call = {
        "id": "abcdefghi",
        "type": "function",
        "function": {"name": PROBE, "arguments": {"b": "c"}},
    }
    answer = {"role": "assistant", "content": "", "tool_calls": [call]}
    described = _rendered(tokenizer, [user])
    called = _rendered(tokenizer, [user, answer])
    known = [f for f in FORMATS if re.search(f.signature, called)] if PROBE in described else []
    system = _rendered(tokenizer, [{"role": "system", "content": PROBE}, user], tools=())
    return Dialect(known[0] if known else HERMES, bool(known), PROBE in system)


def _rendered(
    tokenizer: ChatTokenizer,
    messages: Sequence[Mapping[str, Any]],
    tools: Iterable[Function] = (PROBE_TOOL,),
) -> str:
    """The conversation, or nothing where the template refuses it."""
    try:
        return tokenizer.render(messages, True, [t.definition for t in tools])
    except BadInputError:
        return ""


def _with_system(messages: list[dict[str, Any]], text: str) -> list[dict[str, Any]]:
    if messages and messages[0]["role"] == "system":
        first = {**messages[0], "content": f"{messages[0]['content']}\n\n{text}".strip()}
        return [first, *messages[1:]]
    return [{"role": "system", "content": text}, *messages]


def _system_in_first_user(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What system messages say before the first words of the user."""
    said = [str(m["content"]) for m in messages if m["role"] == "system" and m["content"]]
    rest = [m for m in messages if m["role"] != "system"]
    if not said:
        return rest
    if rest and rest[0]["role"] == "user":
        return [{**rest[0], "content": "\n\n".join([*said, str(rest[0]["content"])])}, *rest[1:]]
    return [{"role": "user", "content": "\n\n".join(said)}, *rest]
