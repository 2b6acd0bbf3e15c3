"""Work on several cores that stays ordered, bounded and interruptible."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")
WAITING = 2  # items beyond those that are worked on
MOST_WORKERS = 16  # beyond, Python's lock and the disk set the pace, and memory would not
THREAD_NAME = "edgekit-quantize"
READERS = 1  # threads beyond the cores: while one waits for the disk, no core idles


def cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def bounded_map(
    work: Callable[[Item], Result], items: Iterable[Item], workers: int = 0
) -> Generator[Result, None, None]:
    """``work`` on every item, in threads; results in the order of the items.

    ``items`` are taken as the results are, so that no more than the workers' and a few more are
    alive at once. An exception of ``work`` or of ``items``, Ctrl-C, or closing the iterator ends
    it: what has not begun never does, what has begun is waited for, and the exception is raised as
    it is. Use it inside :class:`contextlib.closing`.
    """
    workers = workers or min(cores() + READERS, MOST_WORKERS)
    pool = ThreadPoolExecutor(workers, THREAD_NAME)
    running: deque[Future[Result]] = deque()
    try:
        for item in items:
            running.append(pool.submit(work, item))
            del item  # only the work holds it, or it would live a turn longer
            if len(running) >= workers + WAITING:
                yield running.popleft().result()
        while running:
            yield running.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
