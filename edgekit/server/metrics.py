"""``GET /metrics``: counts and times in Prometheus' text format."""

from __future__ import annotations

import threading
import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable

import psutil
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from edgekit.server.scheduler import Scheduler
from edgekit.server.tickets import Ticket

SECONDS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
OUTCOMES = ("finished", "failed", "cancelled", "refused")
STATES = ("loading", "ok", "failed", "stopped")


class Histogram:
    """How many values fell below each bound."""

    def __init__(self, bounds: tuple[float, ...] = SECONDS) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0
        self._lock = threading.Lock()

    def add(self, value: float) -> None:
        """Count a value."""
        with self._lock:
            self._counts[bisect_left(self._bounds, value)] += 1
            self._sum += value

    def lines(self, name: str) -> Iterable[str]:
        """As Prometheus reads it: each bucket holds those below as well."""
        with self._lock:
            counts, total = list(self._counts), self._sum
        below = 0
        for bound, count in zip((*map(str, self._bounds), "+Inf"), counts, strict=True):
            below += count
            yield f'{name}_bucket{{le="{bound}"}} {below}'
        yield f"{name}_sum {total:.6f}"
        yield f"{name}_count {below}"


class Metrics:
    """What the server counts about itself."""

    def __init__(self, scheduler: Scheduler, paths: Iterable[str]) -> None:
        self._scheduler = scheduler
        self._paths = frozenset(paths)
        self._answers: Counter[tuple[str, int]] = Counter()
        self._first_token, self._whole = Histogram(), Histogram()
        scheduler.on_finished = self._finished

    def counting(self, app: ASGIApp) -> ASGIApp:
        """An application whose answers are counted by path and status, refusals included."""

        async def counted(scope: Scope, receive: Receive, send: Send) -> None:
            async def watch(message: Message) -> None:
                if message["type"] == "http.response.start":
                    path = scope["path"] if scope["path"] in self._paths else "other"
                    self._answers[path, message["status"]] += 1
                await send(message)

            await app(scope, receive, watch)

        return counted

    def text(self) -> str:
        """The whole page."""
        scheduler = self._scheduler
        engine = scheduler.loaded_or_none
        lines = [
            *_metric("edgekit_engine_state", "gauge", "1 for the state the engine is in"),
            *(f'edgekit_engine_state{{state="{s}"}} {int(s == scheduler.state)}' for s in STATES),
            *_metric("edgekit_answers_total", "counter", "Requests to the engine by outcome"),
            *(f'edgekit_answers_total{{outcome="{o}"}} {scheduler.counts[o]}' for o in OUTCOMES),
            *_metric("edgekit_tokens_total", "counter", "Tokens by kind"),
            *(
                f'edgekit_tokens_total{{kind="{kind}"}} {scheduler.counts[f"{kind}_tokens"]}'
                for kind in ("prompt", "cached", "generated")
            ),
            *_value("edgekit_engine_failures_total", "counter", "Times the engine was lost",
                    scheduler.counts["engine_failures"]),
            *_value("edgekit_restarted_total", "counter", "Answers begun anew after that",
                    scheduler.counts["restarted"]),
            *_value("edgekit_queue_length", "gauge", "Requests that wait", scheduler.waiting),
            *_value("edgekit_running", "gauge", "Answers under way", scheduler.running),
            *_value("edgekit_capacity", "gauge", "Answers that may run together",
                    engine.capacity if engine else 0),
            *_metric("edgekit_time_to_first_token_seconds", "histogram", "Waiting included"),
            *self._first_token.lines("edgekit_time_to_first_token_seconds"),
            *_metric("edgekit_answer_seconds", "histogram", "From arrival to the last token"),
            *self._whole.lines("edgekit_answer_seconds"),
            *_metric("edgekit_http_responses_total", "counter", "HTTP answers by path and status"),
            *(
                f'edgekit_http_responses_total{{path="{path}",status="{status}"}} {count}'
                for (path, status), count in sorted(self._answers.items())
            ),
            *_process(),
        ]  # fmt: skip
        return "\n".join(lines) + "\n"

    def _finished(self, ticket: Ticket) -> None:
        if ticket.first_token:
            self._first_token.add(ticket.time_to_first_token)
            self._whole.add(time.perf_counter() - ticket.arrived)


def _metric(name: str, kind: str, text: str) -> list[str]:
    return [f"# HELP {name} {text}", f"# TYPE {name} {kind}"]


def _value(name: str, kind: str, text: str, value: float) -> list[str]:
    return [*_metric(name, kind, text), f"{name} {value}"]


def _process() -> list[str]:
    process = psutil.Process()
    opened = process.num_fds() if hasattr(process, "num_fds") else process.num_handles()
    memory = process.memory_info().rss
    return [
        *_value("process_resident_memory_bytes", "gauge", "Memory in use", memory),
        *_value("process_open_fds", "gauge", "Open files and sockets", opened),
    ]
