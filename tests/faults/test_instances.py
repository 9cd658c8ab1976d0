"""What callers notice when an instance dies, hangs, slows down or fails."""

from __future__ import annotations

import pytest

from bench.faults import scenarios
from tests.faults.conftest import Play

pytestmark = pytest.mark.timeout(180)


async def test_kill_9(play: Play) -> None:
    """No idempotent call fails, of the others only those in flight, none runs twice; the dead gets no more calls."""
    assert await play(scenarios.kill) == []


async def test_sigstop(play: Play) -> None:
    """Nobody waits for long for an instance that has been stopped; the 90th percentile may be four times as high."""
    assert await play(scenarios.sigstop) == []


async def test_packets_that_vanish(play: Play) -> None:
    """The same for one whose connections are open and dead."""
    assert await play(scenarios.vanish) == []


async def test_one_slow_instance(play: Play) -> None:
    """It gets no more than a look a second; the 90th percentile may be three times as high, not ten times."""
    assert await play(scenarios.slow) == []


@pytest.mark.parametrize("code", ["UNAVAILABLE", "INTERNAL"])
async def test_an_instance_that_always_fails(play: Play, code: str) -> None:
    """Nobody sees its errors, and it is left alone after five of them."""
    assert await play(scenarios.errors, percent=100, code=code) == []


@pytest.mark.parametrize("code", ["UNAVAILABLE", "INTERNAL"])
async def test_an_instance_that_sometimes_fails(play: Play, code: str) -> None:
    """Nobody sees its errors; how long it takes to find it out takes longer than this test."""
    assert await play(scenarios.errors, percent=30, code=code) == []


async def test_rolling_restart(play: Play) -> None:
    """Every instance is replaced, and no call of either kind fails or runs twice."""
    assert await play(scenarios.rolling) == []


async def test_the_wall_clock_jumps(play: Play) -> None:
    """An hour forward or back changes nothing: a broken instance stays out, and deadlines are kept."""
    assert await play(scenarios.clock) == []


async def test_messages_that_are_too_large(play: Play) -> None:
    """Each fails with the limit in its message and is not sent again; nobody else notices, no instance is blamed."""
    assert await play(scenarios.oversize) == []
