"""Token buckets, which are told the time."""

from __future__ import annotations

import pytest

from framework.http.rates import Buckets, Rate
from framework.web import RateSettings


async def times(buckets: Buckets, rate: Rate, now: float, count: int, key: str = "a") -> list[float]:
    """How long each of so many calls at one moment has to wait."""
    return [round(await buckets.take(key, rate, now), 6) for _ in range(count)]


async def test_a_burst_and_then_the_rate() -> None:
    """A full bucket empties at once, and fills token by token; a refused call costs nothing."""
    buckets, rate = Buckets(), Rate(2.0, 3)
    assert await times(buckets, rate, 100.0, 5) == [0, 0, 0, 0.5, 0.5]
    assert await times(buckets, rate, 100.4, 1) == [0.1]
    assert await times(buckets, rate, 100.5, 2) == [0, 0.5]
    assert await times(buckets, rate, 200.0, 4) == [0, 0, 0, 0.5]


async def test_in_the_long_run() -> None:
    """Whoever comes back when told gets the rate, to the call."""
    buckets, rate, now, calls = Buckets(), Rate(10.0, 1), 0.0, 0
    while now < 60.0:
        wait = await buckets.take("a", rate, now)
        calls += not wait
        now += wait
    assert calls == pytest.approx(600, abs=1)


async def test_keys_are_apart() -> None:
    """What one uses up is there for another."""
    buckets, rate = Buckets(), Rate(1.0, 1)
    assert await times(buckets, rate, 0.0, 2) == [0, 1]
    assert await times(buckets, rate, 0.0, 2, "b") == [0, 1]


async def test_memory_is_bounded() -> None:
    """Full buckets are forgotten, which changes nothing; when none is full, the oldest."""
    buckets, rate = Buckets(most=100), Rate(1.0, 1)
    for number in range(1000):
        await buckets.take(f"caller {number}", rate, number / 50)
    assert len(buckets) <= 100
    assert await times(buckets, rate, 20.0, 1, "caller 999") == [0.98]
    for number in range(200):
        await buckets.take(f"other {number}", rate, 20.0)
    assert len(buckets) == 100


def test_what_settings_mean() -> None:
    """No rate is no limit, no burst a second's worth."""
    assert Rate.of(RateSettings()) is None
    assert Rate.of(RateSettings(rate=50)) == Rate(50, 50)
    assert Rate.of(RateSettings(rate=0.1)) == Rate(0.1, 1)
    assert Rate.of(RateSettings(rate=5, burst=20)) == Rate(5, 20)
