"""One thread owns the engine; every request passes through it and ends exactly once.

The life of a request: ``submit`` puts a ticket into a bounded queue (a full one refuses with 429);
the engine thread starts tickets in fair order while the engine has room, advances all of them
together and hands out what came. Who stops reading calls ``cancel``, and the memory of the run is
freed before the next step.

When the engine fails, all its answers are lost inside. The engine is made anew by the same factory;
answers of which nothing was shown begin again, once; the others end with the error. When it cannot
be made anew, everything ends with that error and the server says so.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable
from typing import Literal

from edgekit.errors import BadInputError, EdgekitError, MissingRuntimeError, OutOfResourcesError
from edgekit.runtimes.batching import BatchEngine, Job, Run
from edgekit.server.errors import ApiError
from edgekit.server.fairness import fair_order
from edgekit.server.limits import LIMITS
from edgekit.server.loaded import Loaded
from edgekit.server.tickets import (
    Event,
    Failed,
    Finished,
    Queued,
    Restarted,
    Started,
    Ticket,
    Tokens,
)

State = Literal["loading", "ok", "failed", "stopped"]
RUNS_PER_TICKET = 2  # the first, and one more after a failure of the engine


class Scheduler:
    """Owns a :class:`BatchEngine` that ``factory`` makes in the scheduler's own thread.

    Attributes:
        state: "loading" until the engine is there, also while it is made anew and requests wait for
            it; then "ok"; "failed" when it cannot be made; "stopped" after :meth:`stop`.
        error: why it failed, a sentence.
        counts: totals since the start, by name; :mod:`edgekit.server.metrics` shows them.
        failure: the same as an exception.
        on_failed: called in the engine thread when the engine cannot be made.
        on_finished: called, in any thread, with every ticket that ended by itself.
    """

    def __init__(self, factory: Callable[[], BatchEngine], max_queue: int = LIMITS.queue) -> None:
        self.state: State = "loading"
        self.error = ""
        self.counts: Counter[str] = Counter()
        self.failure: Exception | None = None
        self.on_failed: Callable[[Exception], None] = lambda error: None
        self.on_finished: Callable[[Ticket], None] = lambda ticket: None
        self._factory = factory
        self._max_queue = max_queue
        self._engine: BatchEngine | None = None
        self._loaded: Loaded | None = None
        self._changed = threading.Condition()
        self._queue: list[Ticket] = []  # oldest first
        self._running: dict[Ticket, Run | None] = {}
        self._served: dict[str, int] = {}
        self._seconds = 1.0  # of a usual answer, smoothed
        self._stopping = False
        self._thread = threading.Thread(target=self._work, name="engine", daemon=True)

    def start(self) -> None:
        """Load the engine in the background."""
        self._thread.start()

    @property
    def loaded(self) -> Loaded:
        """What the engine is, also while it is made anew.

        Raises:
            ApiError: it was never loaded, cannot be, or stops (503).
        """
        if self._loaded is None or self.state in ("failed", "stopped") or self._stopping:
            raise self._not_ready()
        return self._loaded

    @property
    def loaded_or_none(self) -> Loaded | None:
        """The same, or None."""
        return self._loaded if self.state != "failed" else None

    @property
    def waiting(self) -> int:
        """Requests in the queue."""
        return len(self._queue)

    @property
    def running(self) -> int:
        """Answers under way."""
        return len(self._running)

    def submit(self, job: Job, client: str, replayable: bool = False) -> Ticket:
        """Queue a job; call it in the event loop that reads the ticket.

        Raises:
            ApiError: the queue is full (429), or there is no engine (503).
        """
        ticket = Ticket(job, client, replayable, asyncio.get_running_loop())
        with self._changed:
            capacity = self.loaded.capacity
            if len(self._queue) >= self._max_queue:
                self.counts["refused"] += 1
                raise self._full()
            self.counts["requests"] += 1
            self._queue.append(ticket)
            if len(self._queue) + len(self._running) > capacity:
                _send(self._positions())
            self._changed.notify()
        return ticket

    def cancel(self, ticket: Ticket, complete: bool = False) -> None:
        """Stop an answer that nobody reads any more; safe to call at any time, twice as well.

        ``complete``: its reader has all it wants, such as the text before a stop string.
        """
        with self._changed:
            if not self._end(ticket, "finished" if complete else "cancelled"):
                return
            if complete:
                self._account(ticket)
            if ticket in self._queue:
                self._queue.remove(ticket)
                _send(self._positions())
            self._changed.notify()

    def end_all(self, error: Exception) -> None:
        """End every request with ``error`` now, whatever the engine is doing."""
        with self._changed:
            tickets = [*self._queue, *self._running]
            self._queue.clear()
            _send([(t, Failed(error)) for t in tickets if self._end(t, "failed")])
            self._changed.notify()

    def stop(self, timeout: float = 10.0) -> bool:
        """End every request, free the model and join the thread; false when it hangs."""
        with self._changed:
            self._stopping = True
        self.end_all(stopped())
        if self._thread.ident is not None:
            self._thread.join(timeout)
        return not self._thread.is_alive()

    # everything below runs in the engine thread

    def _work(self) -> None:
        while self._load():
            try:
                self._serve()
                break
            except Exception as error:  # native runtimes raise whatever they like
                self._lose(error)
        self._free()
        if self.state != "failed":
            self.state = "stopped"

    def _load(self) -> bool:
        self.state = "loading"
        try:
            engine = self._factory()
        except Exception as error:
            self._give_up(error)
            return False
        with self._changed:
            self._engine, self.state = engine, "ok"
            self._loaded = Loaded.of(engine)
        return True

    def _serve(self) -> None:
        """Until the scheduler stops.

        Raises:
            Exception: whatever the engine raised; its runs are lost.
        """
        engine = self._engine
        assert engine is not None
        while True:
            with self._changed:
                while not (self._stopping or self._queue or self._running):
                    self._changed.wait()
                released = self._release_ended()
                starting = [] if self._stopping else self._next()
            for ticket in starting:
                self._begin(engine, ticket)
            if self._running or released:  # memory of cancelled runs is free after a step
                engine.step()
                self._hand_out()
            if self._stopping:
                return

    def _next(self) -> list[Ticket]:
        """Tickets that begin now, in fair order; the others learn their new positions."""
        room = self._capacity() - len(self._running)
        if room <= 0 or not self._queue:
            return []
        starting = self._order()[:room]
        clients = {t.client for t in [*self._queue, *self._running]}
        turn = 1 + max(self._served.values(), default=0)
        self._served = {c: n for c, n in self._served.items() if c in clients}
        for number, ticket in enumerate(starting):
            self._queue.remove(ticket)
            self._running[ticket] = None
            self._served[ticket.client] = turn + number
        _send(self._positions())
        return starting

    def _begin(self, engine: BatchEngine, ticket: Ticket) -> None:
        ticket.runs += 1
        try:
            run = engine.start(ticket.job)
        except (BadInputError, OutOfResourcesError) as error:
            with self._changed:
                del self._running[ticket]
                if self._end(ticket, "failed"):
                    _send([(ticket, Failed(error))])
            return
        with self._changed:
            self._running[ticket] = run
        _send([(ticket, Started())])

    def _hand_out(self) -> None:
        now = time.perf_counter()
        events: list[tuple[Ticket, Event]] = []
        with self._changed:
            for ticket, run in list(self._running.items()):
                if ticket.ended or run is None:
                    continue  # cancelled during the step: released before the next
                done, items = run.done, run.read()
                ticket.cached_tokens = run.cached_tokens
                if items:
                    ticket.first_token = ticket.first_token or now
                    ticket.last_token = now
                    ticket.delivered += len(items)
                    self.counts["generated_tokens"] += len(items)
                    events.append((ticket, Tokens(items)))
                if done:
                    del self._running[ticket]
                    self._end(ticket, "finished")
                    self._account(ticket)
                    events.append((ticket, Finished()))
            _send(events)

    def _release_ended(self) -> int:
        """Cancel runs that nobody reads any more; how many."""
        ended = [ticket for ticket in self._running if ticket.ended]
        for ticket in ended:
            run = self._running.pop(ticket)
            if run is not None:
                run.cancel()
        return len(ended)

    def _account(self, ticket: Ticket) -> None:
        self.counts["prompt_tokens"] += len(ticket.job.prompt)
        self.counts["cached_tokens"] += ticket.cached_tokens
        took = ticket.last_token - ticket.arrived
        self._seconds += 0.2 * (took - self._seconds)
        self.on_finished(ticket)

    def _lose(self, error: Exception) -> None:
        """The engine failed: begin again what can, end what cannot, let the engine go."""
        if not isinstance(error, EdgekitError):
            traceback.print_exception(error)
        failure = _failure(error)
        self.counts["engine_failures"] += 1
        with self._changed:
            self.state = "loading"
            again: list[Ticket] = []
            events: list[tuple[Ticket, Event]] = []
            for ticket in self._running:
                shown = ticket.delivered and not ticket.replayable
                if ticket.ended:
                    continue
                if shown or ticket.runs >= RUNS_PER_TICKET:
                    self._end(ticket, "failed")
                    events.append((ticket, Failed(failure)))
                else:
                    ticket.delivered, ticket.first_token = 0, 0.0
                    again.append(ticket)
                    events.append((ticket, Restarted()))
            self.counts["restarted"] += len(again)
            for run in filter(None, self._running.values()):
                with contextlib.suppress(Exception):  # lost already; it may refuse this too
                    run.cancel()
            self._running.clear()
            self._queue[:0] = again
            _send(events)
        self._free()

    def _give_up(self, error: Exception) -> None:
        if not isinstance(error, EdgekitError):
            traceback.print_exception(error)
        failure = _failure(error)
        with self._changed:
            self.error, self.failure = str(failure), failure
            self.state = "failed"
            self.end_all(failure)
            self._running.clear()
        self.on_failed(failure)

    def _free(self) -> None:
        engine, self._engine = self._engine, None
        if engine is not None:
            try:
                engine.close()
            except Exception as error:  # a lost device may refuse this too
                traceback.print_exception(error)

    # helpers that need the lock

    def _end(self, ticket: Ticket, outcome: str) -> bool:
        """Whether the ticket's last event may be sent: true once."""
        if ticket.ended:
            return False
        ticket.ended = True
        self.counts[outcome] += 1
        return True

    def _capacity(self) -> int:
        return self._loaded.capacity if self._loaded is not None else 0

    def _order(self) -> list[Ticket]:
        running = Counter(ticket.client for ticket in self._running)
        return fair_order(self._queue, running, self._served)

    def _positions(self) -> list[tuple[Ticket, Event]]:
        """The positions that changed."""
        events: list[tuple[Ticket, Event]] = []
        for position, ticket in enumerate(self._order(), 1):
            if ticket.position != position:
                ticket.position = position
                events.append((ticket, Queued(position)))
        return events

    def _not_ready(self) -> ApiError:
        if self.state == "failed":
            return ApiError(503, "engine_failed", self.error)
        if self._stopping or self.state == "stopped":
            return stopped()
        return ApiError(503, "loading", "the model is loading; try again soon", retry_after=2)

    def _full(self) -> ApiError:
        turns = len(self._queue) / max(1, self._capacity())
        return ApiError(
            429, "queue_full",
            f"{len(self._queue)} requests wait already; try again in a moment",
            retry_after=min(60, max(1, round(self._seconds * turns / 2))),
        )  # fmt: skip


def stopped() -> ApiError:
    """The error for requests that a stopping server ends."""
    return ApiError(503, "stopping", "the server is stopping", retry_after=5)


def _failure(error: Exception) -> Exception:
    """The error as clients may see it: no words of a library, which may hold anything."""
    if isinstance(error, EdgekitError):
        return error
    return MissingRuntimeError(
        "the engine failed on this device; try again, or choose another with --device"
    )


def _send(events: list[tuple[Ticket, Event]]) -> None:
    """Give events to the loops that wait for them, waking each loop once."""
    by_loop: dict[asyncio.AbstractEventLoop, list[tuple[Ticket, Event]]] = {}
    for ticket, event in events:
        by_loop.setdefault(ticket.loop, []).append((ticket, event))
    for loop, batch in by_loop.items():
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody reads any more
            loop.call_soon_threadsafe(_put, batch)


def _put(batch: list[tuple[Ticket, Event]]) -> None:
    for ticket, event in batch:
        ticket.events.put_nowait(event)
