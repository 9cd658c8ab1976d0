"""Waiting for a turn on a busy event loop, with a clock and a loop that the test moves."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextvars import copy_context

import pytest

from framework.server.gate import MOST, QUIET, ROUND, TURN, Gate, arrival


class Loop:
    """Turns, one at a time."""

    def __init__(self) -> None:
        self.now = 100.0
        self.next: list[Callable[[], None]] = []
        self.gate = Gate(lambda: self.now, self.next.append)

    async def turn(self, seconds: float = TURN) -> None:
        """One turn that takes so long."""
        self.now += seconds
        due, self.next[:] = list(self.next), []
        for function in due:
            function()
        for _ in range(3):
            await asyncio.sleep(0)

    async def turns(self, begun: list[str], count: int, seconds: float = TURN) -> int:
        """Turns until so many have begun; how many that were."""
        for number in range(1, 1000):
            await self.turn(seconds)
            if len(begun) >= count:
                return number
        raise TimeoutError


async def waiting(loop: Loop, begun: list[str], *names: str) -> list[asyncio.Task[None]]:
    """Calls that wait; what begins is noted."""

    async def wait(name: str) -> None:
        await loop.gate.turn()
        begun.append(name)

    tasks = [asyncio.ensure_future(wait(name)) for name in names]
    await asyncio.sleep(0)
    return tasks


def test_a_call_that_begins_soon_after_it_arrived_need_not_wait() -> None:
    """Four milliseconds are a quick loop, and a fifth if another call began meanwhile; more are a busy one."""
    gate = Loop().gate
    assert not gate.busy(100.0, 0, 100.0039)
    assert gate.busy(100.0, 1, 100.0041)
    assert not gate.busy(100.0, 1, 100.0049)
    assert gate.busy(100.0, 2, 100.0051)


def test_an_arrival_is_known_to_the_task_that_serves_it() -> None:
    """And to no other: when it was, how many had begun, and the metadata."""
    loop = Loop()
    mine, other = copy_context(), copy_context()
    mine.run(loop.gate.arrived, (("a", "b"),))
    assert (mine.run(arrival.get), other.run(arrival.get)) == ((100.0, 0, (("a", "b"),)), None)


async def test_nobody_overtakes_those_that_wait() -> None:
    """While one waits, the next waits too, in order."""
    loop, begun = Loop(), list[str]()
    await waiting(loop, begun, "a", "b")
    assert loop.gate.busy(loop.now, 0, loop.now)
    await loop.turns(begun, 2)
    assert begun == ["a", "b"]


async def test_work_begins_once_nobody_has_arrived_for_a_while() -> None:
    """The first pause ends after 2 ms of turns in which the loop had nothing to do."""
    loop, begun = Loop(), list[str]()
    await waiting(loop, begun, "a")
    assert await loop.turns(begun, 1) == pytest.approx(QUIET / TURN + 1, abs=1)


async def test_an_arrival_prolongs_the_pause() -> None:
    """Behind one that has just been handed over there may be another."""
    loop, begun = Loop(), list[str]()
    await waiting(loop, begun, "a")
    for _ in range(20):
        await loop.turn()
        loop.gate.arrived()
    assert begun == []
    await loop.turns(begun, 1)


async def test_a_pause_does_not_last_for_ever() -> None:
    """After 64 arrivals work goes on, however many follow."""
    loop, begun = Loop(), list[str]()
    await waiting(loop, begun, "a")
    for number in range(MOST + 1):
        assert begun == [], number
        loop.gate.arrived()
        await loop.turn()
    assert begun == ["a"]


async def test_a_long_turn_is_no_silence() -> None:
    """While a handler computes for 50 ms grpc cannot hand anything over, so that says nothing."""
    loop, begun = Loop(), list[str]()
    await waiting(loop, begun, "a")
    await loop.turn()
    await loop.turn(0.05)
    assert begun == []
    await loop.turns(begun, 1)


async def test_between_two_pauses_one_begins_in_every_turn() -> None:
    """For 30 ms of work; then there is another pause."""
    loop, begun = Loop(), list[str]()
    await waiting(loop, begun, *"abcdefghij")
    await loop.turns(begun, 1)
    gaps = [await loop.turns(begun, count, 0.005) for count in range(2, 10)]
    work = round(ROUND / 0.005)
    assert gaps[: work - 1] == [1] * (work - 1)
    assert max(gaps[work - 1 :]) >= QUIET / TURN


async def test_a_call_that_is_given_up_while_it_waits_is_left_out() -> None:
    """Its turn goes to the next."""
    loop, begun = Loop(), list[str]()
    first, _ = await waiting(loop, begun, "a", "b")
    first.cancel()
    await asyncio.sleep(0)
    await loop.turns(begun, 1)
    assert begun == ["b"]
    assert loop.gate.waiting == 0


async def test_how_long_one_more_would_wait() -> None:
    """Those before it, times the time from one beginning to the next, lately."""
    loop, begun = Loop(), list[str]()
    assert loop.gate.wait == 0.0
    await waiting(loop, begun, *(str(number) for number in range(100)))
    await loop.turns(begun, 60, 0.005)
    assert loop.gate.waiting == 40
    assert 40 * 0.005 < loop.gate.wait < 40 * 0.020  # turns of 5 ms, and pauses of ten of them


async def test_repr() -> None:
    """It says how full it is."""
    loop, begun = Loop(), list[str]()
    assert repr(loop.gate) == "<Gate 0 waiting, one in 0.0ms>"
    tasks = await waiting(loop, begun, "a", "b")
    assert repr(loop.gate) == "<Gate 2 waiting, one in 0.0ms>"
    for task in tasks:
        task.cancel()
