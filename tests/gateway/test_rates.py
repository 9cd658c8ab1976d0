"""Token buckets, which are told the time."""

from __future__ import annotations

import time

import pytest

from framework.errors import ConfigError
from framework.http.rates import Buckets, Rate
from framework.web import RateSettings, WebSettings


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
    """The bucket is forgotten that was asked for longest ago, also by a call that was refused."""
    buckets, rate = Buckets(most=100), Rate(1.0, 1)
    for number in range(1000):
        await buckets.take(f"caller {number}", rate, 0.0)
        assert await times(buckets, rate, 0.0, 1, "caller 0") == [1]
    assert len(buckets) == 100
    assert repr(buckets) == "<Buckets of 100 keys>"
    assert await times(buckets, rate, 0.0, 1, "caller 901") == [1]
    assert await times(buckets, rate, 0.0, 1, "caller 900") == [0]


async def test_many_keys_cost_no_more_each() -> None:
    """A new key in a full house does not look through all that are there: a few cost less than it took to fill it."""
    buckets, rate, took = Buckets(most=20_000), Rate(0.1, 20), []
    for count in (20_000, 1000):
        start = time.thread_time()
        for number in range(count):
            await buckets.take(f"{count} {number}", rate, 0.0)
        took.append(time.thread_time() - start)
    assert took[1] < took[0]


def test_what_settings_mean() -> None:
    """No rate is no limit, no burst a second's worth."""
    assert Rate.of(RateSettings()) is None
    assert Rate.of(RateSettings(rate=50)) == Rate(50, 50)
    assert Rate.of(RateSettings(rate=0.1)) == Rate(0.1, 1)
    assert Rate.of(RateSettings(rate=5, burst=20)) == Rate(5, 20)
    assert RateSettings.parse({"rate": 5}, "x", RateSettings(burst=20)) == RateSettings(rate=5, burst=20)
    off = WebSettings.parse({"rate_limit": "off"}, "x", WebSettings(rate_limit=RateSettings(5, 20)))
    assert Rate.of(off.rate_limit) is None
    with pytest.raises(ConfigError, match="a rate limit has a burst of 5 and no rate"):
        Rate.of(RateSettings(burst=5))
