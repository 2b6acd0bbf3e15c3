"""How many tokens of key-value cache an engine gets.

``cache_bytes`` where the caller says so; else as much as ``capacity`` answers of a usual length
need, and at least one of the whole context, but no more than a quarter of the memory that is free.
A token is counted with 2 bytes a value; a runtime that stores 1 (OpenVINO on CPUs) needs less.
Where not even one whole context fits, the context that is offered shrinks to what does.
"""

from __future__ import annotations

from dataclasses import dataclass

from edgekit.architecture import Architecture
from edgekit.errors import OutOfResourcesError
from edgekit.memory import available_memory

USUAL_TOKENS = 4096  # of one answer with its prompt
LEAST_TOKENS = 512  # below this no conversation is possible
BYTES_PER_VALUE = 2


@dataclass(frozen=True)
class CachePlan:
    """Tokens of cache in all; ``context_length`` is what one answer with its prompt may have."""

    tokens: int
    context_length: int

    def answers(self, most: int) -> int:
        """How many answers of a usual length fit; 1 to ``most``."""
        usual = min(self.context_length, USUAL_TOKENS)
        return max(1, min(most, self.tokens // usual))


def plan_cache(
    architecture: Architecture,
    context_length: int,
    capacity: int,
    cache_bytes: int | None,
    bytes_per_value: int = BYTES_PER_VALUE,
    free_bytes: int | None = None,
) -> CachePlan:
    """Plan the cache of ``capacity`` answers; ``free_bytes`` is by default what the system has.

    Raises:
        OutOfResourcesError: there is not enough memory for one short conversation.
    """
    token = architecture.kv_bytes_per_token(bytes_per_value)
    if cache_bytes is None:
        free = available_memory() if free_bytes is None else free_bytes
        wanted = max(context_length, capacity * min(context_length, USUAL_TOKENS))
        tokens = min(wanted, free // 4 // token)
    else:
        tokens = min(capacity * context_length, cache_bytes // token)
    least = min(context_length, LEAST_TOKENS)
    if tokens < least:
        raise OutOfResourcesError(
            f"the cache of a conversation of {least} tokens needs {least * token / 1e6:.0f} MB, "
            f"{tokens * token / 1e6:.0f} MB are allowed; close other programs or allow more"
        )
    return CachePlan(tokens, min(context_length, tokens))
