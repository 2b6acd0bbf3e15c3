"""What a tool is, here and to the model: names, definitions as text that is not trusted, results.

A tool server writes its own names, descriptions and schemas, and all of that is read by the
model. So the names follow a fixed alphabet, the texts lose their control characters and are cut,
schemas have a size, and the hash of the definition as it came tells whether it has changed since
a person agreed to it.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

SERVER_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,15}")
TOOL_NAME = re.compile(r"[A-Za-z0-9._/-]{1,128}")  # as the protocol has it, and "/" as servers do
LONGEST_NAME = 64  # characters, of a function name in OpenAI's form
LONGEST_DESCRIPTION = 1024  # characters
LARGEST_SCHEMA = 16 << 10  # bytes as JSON
LARGEST_RESULT = 64 << 10  # characters that go back to the model
SEPARATOR = "__"

# Control characters but newline and tab, direction overrides, and "tag" characters, which a model
# reads and a person does not see. Joiners stay: Persian and emoji need them.
_INVISIBLE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b\u200e\u200f\u202a-\u202e\u2060-\u2069\ufeff"
    "\U000e0000-\U000e007f]"
)


@dataclass(frozen=True)
class ToolResult:
    """What a call gave: ``text`` for the model (bounded) and whether it is an error.

    ``passages`` are the document passages behind the text, for the citations of an answer.
    """

    text: str
    is_error: bool = False
    passages: tuple[Any, ...] = ()


@dataclass(frozen=True)
class ToolInfo:
    """A tool that the model may be offered.

    Attributes:
        name: as the model sees it, ``server__tool`` for a tool of a server.
        server: the server's name, or "" for a built-in.
        tool: the name at its server.
        description: cleaned and cut.
        schema: JSON schema of the arguments, an object.
        digest: sha256 of the whole definition as the server gave it, hex.
    """

    name: str
    server: str
    tool: str
    description: str
    schema: Mapping[str, Any] = field(default_factory=dict)
    digest: str = ""

    def function(self) -> dict[str, Any]:
        """The definition in OpenAI's form."""
        text = self.description
        if self.server:
            text = f"(described by the tool server {self.server}) {text}".rstrip()
        parameters = dict(self.schema)
        return {
            "type": "function",
            "function": {"name": self.name, "description": text, "parameters": parameters},
        }


def exposed_name(server: str, tool: str) -> str:
    """``server__tool`` in the alphabet of function names, cut to 64 characters with a hash."""
    name = f"{server}{SEPARATOR}{re.sub(r'[./]', '_', tool)}"
    if len(name) <= LONGEST_NAME:
        return name
    return f"{name[: LONGEST_NAME - 7]}_{hashlib.sha256(tool.encode()).hexdigest()[:6]}"


def server_tool(server: str, raw: Mapping[str, Any]) -> ToolInfo | str:
    """A tool of a server from its definition as JSON, or why it cannot be offered."""
    tool = raw.get("name")
    if not isinstance(tool, str) or not TOOL_NAME.fullmatch(tool):
        return f"a tool's name is not valid ({clean(repr(tool), 60)})"
    schema = raw.get("inputSchema")
    if not isinstance(schema, dict) or schema.get("type", "object") != "object":
        return f"{tool}: its arguments are not a JSON object"
    if len(json.dumps(schema)) > LARGEST_SCHEMA:
        return f"{tool}: the schema of its arguments is larger than {LARGEST_SCHEMA} bytes"
    return ToolInfo(
        name=exposed_name(server, tool),
        server=server,
        tool=tool,
        description=clean(str(raw.get("description") or ""), LONGEST_DESCRIPTION),
        schema={"type": "object", **_visible_texts(schema)},
        digest=digest(raw),
    )


def _visible_texts(schema: Any) -> Any:
    """The schema with its descriptions and titles cleaned; they are read by the model too."""
    if isinstance(schema, list):
        return [_visible_texts(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    return {
        key: clean(value, LONGEST_DESCRIPTION)
        if key in ("description", "title") and isinstance(value, str)
        else _visible_texts(value)
        for key, value in schema.items()
    }


def digest(value: Any) -> str:
    """sha256 of JSON in one canonical spelling, as hex."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


def clean(text: str, longest: int) -> str:
    """Text of a server for people and models: no control or invisible characters, cut."""
    text = _INVISIBLE.sub("", text).strip()
    return text if len(text) <= longest else text[: longest - 1] + "…"


def bounded(text: str) -> str:
    """A result's text without invisible characters, cut to what goes back, and saying so."""
    text = _INVISIBLE.sub("", text)
    if len(text) <= LARGEST_RESULT:
        return text
    return f"{text[:LARGEST_RESULT]}\n[cut here: the result had {len(text)} characters]"
