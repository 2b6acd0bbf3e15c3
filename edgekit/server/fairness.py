"""Whose turn it is: nobody waits behind another client's pile."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Protocol, TypeVar


class Waiting(Protocol):
    """A request in the queue."""

    @property
    def client(self) -> str:
        """Who asks."""


T = TypeVar("T", bound=Waiting)


def fair_order(
    arrived: Sequence[T], running: Mapping[str, int], served: Mapping[str, int]
) -> list[T]:
    """The order in which requests begin when no new ones come.

    Always next is the oldest request of the client with the fewest answers under way; among such
    clients, of the one that was served longest ago; then the one that came first.

    Args:
        arrived: waiting requests, oldest first.
        running: answers under way of each client; absent is none.
        served: number of the last start of each client, counting up; absent is never.
    """
    piles: dict[str, deque[T]] = {}
    turns: list[tuple[int, int, int, str]] = []
    for number, item in enumerate(arrived):
        if item.client not in piles:
            piles[item.client] = deque()
            client = item.client
            turns.append((running.get(client, 0), served.get(client, -1), number, client))
        piles[item.client].append(item)
    heapq.heapify(turns)
    order: list[T] = []
    later = 1 + max(served.values(), default=0)
    while turns:
        busy, _, number, client = heapq.heappop(turns)
        order.append(piles[client].popleft())
        if piles[client]:
            heapq.heappush(turns, (busy + 1, later + len(order), number, client))
    return order
