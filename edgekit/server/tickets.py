"""A request's place in the scheduler: what happens to it, as events for the one who waits.

The engine thread writes the events, the event loop reads them; every ticket gets exactly one
:class:`Finished` or :class:`Failed`, and it is the last.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from edgekit.runtimes.batching import Job, Produced


@dataclass(frozen=True)
class Queued:
    """It waits; ``position`` 1 is next. Comes again when the position changes."""

    position: int


@dataclass(frozen=True)
class Started:
    """The engine took it."""


@dataclass(frozen=True)
class Tokens:
    """Tokens that came in one step."""

    items: list[Produced]


@dataclass(frozen=True)
class Restarted:
    """The engine failed and the answer begins anew: forget every token so far."""


@dataclass(frozen=True)
class Finished:
    """The last event of an answer that ended by itself."""


@dataclass(frozen=True)
class Failed:
    """The last event of an answer that has none."""

    error: Exception


Event = Queued | Started | Tokens | Restarted | Finished | Failed


@dataclass(eq=False)
class Ticket:
    """One job in the scheduler's hands.

    ``replayable``: its reader shows nothing before the end, so it may begin anew after a failure
    even when tokens came. Times are of ``time.perf_counter``; 0 means not yet.
    """

    job: Job
    client: str
    replayable: bool
    loop: asyncio.AbstractEventLoop
    events: asyncio.Queue[Event] = field(default_factory=asyncio.Queue)
    arrived: float = field(default_factory=time.perf_counter)
    first_token: float = 0.0
    last_token: float = 0.0
    position: int = 0  # as told; 0 when it never waited
    runs: int = 0  # how often the engine began it
    delivered: int = 0  # tokens that its reader got
    cached_tokens: int = 0  # of the prompt
    ended: bool = False  # the last event is on its way, or nobody reads any more

    async def read(self) -> AsyncIterator[Event]:
        """The events up to the last."""
        while True:
            event = await self.events.get()
            yield event
            if isinstance(event, Finished | Failed):
                return

    @property
    def time_to_first_token(self) -> float:
        """Seconds from arrival, waiting included."""
        return max(0.0, self.first_token - self.arrived)

    @property
    def tokens_per_second(self) -> float:
        """Rate after the first token; 0 when fewer than two came."""
        seconds = self.last_token - self.first_token
        return (self.delivered - 1) / seconds if self.delivered > 1 and seconds > 0 else 0.0
