"""The scheduler on a scripted engine: turns, positions, failures, endings."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from serving import async_until, scheduling, scripted
from simulator import ScriptedBatchEngine, refusing_loader

from edgekit.errors import BadInputError, MissingRuntimeError
from edgekit.runtimes.batching import Job
from edgekit.runtimes.engine import Sampling
from edgekit.server.errors import ApiError
from edgekit.server.fairness import fair_order
from edgekit.server.scheduler import Scheduler
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

pytestmark = pytest.mark.anyio


@dataclass(frozen=True)
class Asked:
    """A request by name."""

    client: str
    name: str


def job(engine: ScriptedBatchEngine, text: str, max_tokens: int = 100) -> Job:
    return Job(tuple(engine.tokenizer.encode(text)), Sampling(max_tokens=max_tokens))


async def events(ticket: Ticket) -> list[Event]:
    return [event async for event in ticket.read()]


def told(engine: ScriptedBatchEngine, seen: list[Event]) -> str:
    """The text of an answer, begun anew where it was."""
    tokens: list[int] = []
    for event in seen:
        if isinstance(event, Restarted):
            tokens.clear()
        elif isinstance(event, Tokens):
            tokens += [item.token for item in event.items]
    return engine.tokenizer.decode(tokens)


def ends(seen: list[Event]) -> int:
    return sum(isinstance(event, Finished | Failed) for event in seen)


async def test_every_answer_belongs_to_its_question(tmp_path: Path) -> None:
    engine = scripted(tmp_path, lambda j: engine.tokenizer.decode(j.prompt)[::-1], capacity=3)
    async with scheduling(lambda: engine) as scheduler:
        names = [f"question {n} {'x' * (n % 7)}" for n in range(40)]
        tickets = [scheduler.submit(job(engine, n), f"c{i % 5}") for i, n in enumerate(names)]
        answers = await asyncio.gather(*map(events, tickets))
        assert [told(engine, a) for a in answers] == [n[::-1] for n in names]
        assert all(ends(a) == 1 for a in answers)
        assert scheduler.counts["finished"] == 40 and not engine.running


def test_a_pile_of_one_client_delays_nobody_else() -> None:
    arrived = [Asked("pile", f"p{n}") for n in range(5)] + [Asked("one", "o"), Asked("two", "t")]
    order = [item.name for item in fair_order(arrived, {}, {})]
    assert order == ["p0", "o", "t", "p1", "p2", "p3", "p4"]
    busy = [item.name for item in fair_order(arrived, {"pile": 2, "one": 1}, {})]
    assert busy[:2] == ["t", "o"]


def test_among_equals_who_was_served_longest_ago_is_next() -> None:
    arrived = [Asked("a", "a"), Asked("b", "b"), Asked("c", "c")]
    assert [i.name for i in fair_order(arrived, {}, {"a": 7, "b": 3})] == ["c", "b", "a"]


@given(
    st.lists(st.sampled_from("abcd"), max_size=30),
    st.dictionaries(st.sampled_from("abcd"), st.integers(0, 4)),
    st.dictionaries(st.sampled_from("abcd"), st.integers(0, 9)),
)
def test_an_order_loses_nobody_and_keeps_each_clients_own_order(
    clients: list[str], running: dict[str, int], served: dict[str, int]
) -> None:
    arrived = [Asked(client, str(n)) for n, client in enumerate(clients)]
    order = fair_order(arrived, running, served)
    assert sorted(order, key=lambda i: int(i.name)) == arrived
    for client in "abcd":
        own = [item for item in arrived if item.client == client]
        assert [item for item in order if item.client == client] == own
    gone = Counter(running)
    for number, item in enumerate(order):  # the next is always of a client with the fewest
        left = {other.client for other in order[number:]}
        assert gone[item.client] == min(gone[client] for client in left)
        gone[item.client] += 1


async def test_who_waits_is_told_a_position_that_only_falls(tmp_path: Path) -> None:
    engine = scripted(tmp_path, "abc", capacity=1)
    engine.gate.clear()
    async with scheduling(lambda: engine) as scheduler:
        first = scheduler.submit(job(engine, "1"), "a")
        await async_until(lambda: scheduler.running == 1)
        waiting = [scheduler.submit(job(engine, "2"), "a"), scheduler.submit(job(engine, "3"), "b")]
        engine.gate.set()
        seen = await asyncio.gather(*map(events, [first, *waiting]))
        places = [[e.position for e in s if isinstance(e, Queued)] for s in seen]
        assert places == [[], [1, 2, 1], [1]]  # "b" goes before the second of "a"
        assert isinstance(seen[0][0], Started)


async def test_a_full_queue_refuses_and_says_when_to_come_again(tmp_path: Path) -> None:
    engine = scripted(tmp_path, capacity=1)
    engine.gate.clear()
    async with scheduling(lambda: engine, max_queue=2) as scheduler:
        tickets = [scheduler.submit(job(engine, "a"), "c")]
        await async_until(lambda: scheduler.running == 1)
        tickets += [scheduler.submit(job(engine, "a"), "c") for _ in range(2)]
        with pytest.raises(ApiError) as refused:
            scheduler.submit(job(engine, "a"), "d")
        assert refused.value.status == 429 and (refused.value.retry_after or 0) >= 1
        engine.gate.set()
        assert all(ends(s) == 1 for s in await asyncio.gather(*map(events, tickets)))


async def test_a_cancelled_answer_frees_its_run_and_its_place(tmp_path: Path) -> None:
    engine = scripted(tmp_path, capacity=1)
    engine.stalled = True
    async with scheduling(lambda: engine) as scheduler:
        stuck = scheduler.submit(job(engine, "1"), "a")
        await async_until(lambda: engine.running)
        (run,) = engine.running
        next_one = scheduler.submit(job(engine, "2"), "a")
        scheduler.cancel(stuck)
        scheduler.cancel(stuck)
        engine.stalled = False
        assert told(engine, await events(next_one)) == "ok"
        assert run.cancelled and not engine.running
        assert scheduler.counts["cancelled"] == 1 and scheduler.counts["finished"] == 1


async def test_a_request_that_waits_can_be_cancelled(tmp_path: Path) -> None:
    engine = scripted(tmp_path, capacity=1)
    engine.gate.clear()
    async with scheduling(lambda: engine) as scheduler:
        tickets = [scheduler.submit(job(engine, "a"), "c")]
        await async_until(lambda: scheduler.running == 1)
        tickets += [scheduler.submit(job(engine, "a"), "c") for _ in range(2)]
        scheduler.cancel(tickets[1])
        engine.gate.set()
        await events(tickets[2])
        assert len(engine.jobs) == 2 and scheduler.waiting == 0


async def test_a_job_that_the_engine_refuses_ends_alone(tmp_path: Path) -> None:
    engine = scripted(tmp_path)
    async with scheduling(lambda: engine) as scheduler:
        engine.refuse = "the grammar cannot be followed"
        seen = await events(scheduler.submit(job(engine, "a"), "c"))
        assert len(seen) == 1 and isinstance(seen[0], Failed)
        assert isinstance(seen[0].error, BadInputError)
        engine.refuse = ""
        assert told(engine, await events(scheduler.submit(job(engine, "a"), "c"))) == "ok"


class Makers:
    """A factory that makes scripted engines, the first ``failing`` of which break."""

    def __init__(self, directory: Path, failing: int, at_step: int = 2, capacity: int = 2) -> None:
        self.directory, self.failing = directory, failing
        self.at_step, self.capacity = at_step, capacity
        self.made: list[ScriptedBatchEngine] = []

    def __call__(self) -> ScriptedBatchEngine:
        engine = scripted(
            self.directory,
            lambda job: engine.tokenizer.decode(job.prompt) * 2,
            capacity=self.capacity,
        )
        if len(self.made) < self.failing:
            engine.fail_at_step = self.at_step
        self.made.append(engine)
        return engine


async def test_after_a_failure_what_showed_nothing_begins_anew_and_the_rest_ends(
    tmp_path: Path,
) -> None:
    makers = Makers(tmp_path, failing=1)
    async with scheduling(makers) as scheduler:
        first = makers.made[0]
        first.gate.clear()
        shown = scheduler.submit(job(first, "shown"), "a")
        whole = scheduler.submit(job(first, "whole"), "b", replayable=True)
        await async_until(lambda: scheduler.running == 2)
        waits = scheduler.submit(job(first, "waits"), "c")
        first.gate.set()
        seen = await asyncio.gather(*map(events, [shown, whole, waits]))
        assert [ends(s) for s in seen] == [1, 1, 1]
        last = seen[0][-1]
        assert isinstance(last, Failed) and isinstance(last.error, MissingRuntimeError)
        assert told(first, seen[1]) == "wholewhole" and told(first, seen[2]) == "waitswaits"
        assert first.closed and len(makers.made) == 2
        assert scheduler.state == "ok" and scheduler.counts["engine_failures"] == 1


async def test_a_request_that_breaks_every_engine_ends_after_its_second_try(
    tmp_path: Path,
) -> None:
    makers = Makers(tmp_path, failing=2, at_step=0)
    async with scheduling(makers) as scheduler:
        seen = await events(scheduler.submit(job(makers.made[0], "poison"), "a", replayable=True))
        assert [type(e) for e in seen] == [Started, Restarted, Started, Failed]
        await async_until(lambda: scheduler.state == "ok")
        assert told(makers.made[0], await events(scheduler.submit(job(makers.made[0], "b"), "b")))


async def test_nothing_is_lost_or_mixed_up_when_the_engine_fails_under_load(
    tmp_path: Path,
) -> None:
    makers = Makers(tmp_path, failing=8, at_step=15, capacity=4)
    async with scheduling(makers, max_queue=200) as scheduler:
        engine = makers.made[0]
        names = [f"<{n}>" for n in range(120)]
        tickets = [
            scheduler.submit(job(engine, name), f"c{n % 6}", replayable=n % 2 == 0)
            for n, name in enumerate(names)
        ]
        seen = await asyncio.gather(*map(events, tickets))
        assert all(ends(s) == 1 for s in seen)
        for name, answer in zip(names, seen, strict=True):
            if isinstance(answer[-1], Finished):
                assert told(engine, answer) == name * 2
            else:  # what was shown before the failure is its own
                assert (name * 2).startswith(told(engine, answer))
        finished = sum(isinstance(s[-1], Finished) for s in seen)
        assert len(makers.made) == 9 and finished >= 120 - 8 * 4
        assert scheduler.counts["finished"] + scheduler.counts["failed"] == 120


async def test_an_engine_that_cannot_be_made_again_ends_everything(tmp_path: Path) -> None:
    engine = scripted(tmp_path, capacity=1)
    engine.fail_at_step = 0
    made = iter([engine])

    def factory() -> ScriptedBatchEngine:
        return next(made, None) or refusing_loader()

    engine.gate.clear()  # it fails when all have asked
    async with scheduling(factory) as scheduler:
        tickets = [scheduler.submit(job(engine, "a"), "c") for _ in range(3)]
        engine.gate.set()
        seen = await asyncio.gather(*map(events, tickets))
        assert all(isinstance(s[-1], Failed) and ends(s) == 1 for s in seen)
        assert scheduler.state == "failed" and "device NPU" in scheduler.error
        with pytest.raises(ApiError, match="device NPU"):
            scheduler.submit(job(engine, "a"), "c")


async def test_a_model_that_cannot_be_loaded_is_told_and_refuses_requests() -> None:
    heard: list[Exception] = []
    scheduler = Scheduler(refusing_loader)
    scheduler.on_failed = heard.append
    scheduler.start()
    await async_until(lambda: heard)
    assert scheduler.state == "failed" and isinstance(scheduler.failure, MissingRuntimeError)
    with pytest.raises(ApiError, match="device NPU") as refused:
        scheduler.loaded  # noqa: B018
    assert refused.value.status == 503 and refused.value.retry_after is None


async def test_an_exception_of_a_library_is_not_shown_to_clients(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def script(_: Job) -> str:
        raise RuntimeError("secret words of a library")

    async with scheduling(lambda: scripted(tmp_path, script)) as scheduler:
        seen = await events(scheduler.submit(job(scripted(tmp_path), "a"), "c"))
        last = seen[-1]
        assert isinstance(last, Failed) and "secret" not in str(last.error)
    assert "secret words" in capsys.readouterr().err


async def test_stopping_ends_what_runs_and_what_waits_even_when_the_engine_hangs(
    tmp_path: Path,
) -> None:
    engine = scripted(tmp_path, capacity=1)
    engine.gate.clear()
    async with scheduling(lambda: engine) as scheduler:
        tickets = [scheduler.submit(job(engine, "a"), "c") for _ in range(3)]
        await async_until(lambda: scheduler.running == 1)
        assert not await asyncio.to_thread(scheduler.stop, 0.01)
        seen = await asyncio.gather(*map(events, tickets))
        assert all(isinstance(s[-1], Failed) and ends(s) == 1 for s in seen)
        with pytest.raises(ApiError, match="stopping"):
            scheduler.submit(job(engine, "a"), "c")
        engine.gate.set()
    assert engine.closed
