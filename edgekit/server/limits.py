"""Every cap of the server in one place."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """What a request may ask for; sizes in bytes or characters, times in seconds.

    Attributes:
        body: bytes of a request.
        queue: requests that may wait for their turn.
        messages: messages, or items of a Responses input.
        prompts: prompts of one completions request, and their embeddings counterpart ``inputs``.
        tools: functions of one request.
        stops: stop strings, each of ``stop_length`` characters at most.
        schema: characters of one JSON schema written as JSON.
        schema_depth: levels of one JSON schema.
        top_logprobs: alternatives for each token.
        answer: tokens of an answer that names no limit of its own.
        write_seconds: longest time a client may leave what was sent unread.
    """

    body: int = 8 << 20
    queue: int = 64
    messages: int = 4096
    prompts: int = 16
    inputs: int = 2048
    tools: int = 128
    stops: int = 16
    stop_length: int = 256
    schema: int = 64 << 10
    schema_depth: int = 32
    top_logprobs: int = 20
    answer: int = 4096
    write_seconds: float = 60.0


LIMITS = Limits()
