"""The concurrency limit of a server, in virtual time."""

from __future__ import annotations

import heapq
import random
from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from framework.call import Criticality
from framework.errors import ConfigError
from framework.policy import LimiterSettings
from framework.server.limiter import Limiter

CRITICAL_PLUS, CRITICAL, SHEDDABLE_PLUS, SHEDDABLE = Criticality


def make(**settings: int) -> Limiter:
    """A limiter without jitter worth mentioning, from 20 to 200 unless said otherwise."""
    return Limiter(LimiterSettings(**{"minimum": 20, "initial": 20, "maximum": 200, **settings}), random.Random(1))


def fill(limiter: Limiter, criticality: Criticality = CRITICAL_PLUS) -> int:
    """Admit calls until one is refused; how many."""
    count = 0
    while limiter.admit(criticality):
        count += 1
    return count


def window(limiter: Limiter, seconds: float, calls: int, *, expired: int = 0) -> int:
    """One window with so many calls at once that take so long, the last of them expired; the limit it leaves."""
    admitted = sum(limiter.admit(CRITICAL_PLUS) for _ in range(calls))
    assert admitted == calls
    for left in reversed(range(calls)):
        limiter.end(limiter._due - (0.05 if left else 0), seconds, expired=left < expired)
    return limiter.limit


def grown(to: int) -> Limiter:
    """A limiter that calls of 100 ms have taken from 20 to this limit."""
    limiter = make()
    while limiter.limit < to:
        window(limiter, 0.1, limiter.limit)
    return limiter


def test_the_first_limit_is_20() -> None:
    """And one call more is refused, until one has ended."""
    limiter = make()
    assert fill(limiter) == 20
    limiter.end(0.0, 0.1)
    assert limiter.admit(CRITICAL_PLUS)
    assert not limiter.admit(CRITICAL_PLUS)


def test_the_limit_grows_while_latency_stays() -> None:
    """By 4, smoothed by 0.2, with every window: 20.8, 21.6, 22.4 ... up to 200."""
    limiter = make()
    assert [window(limiter, 0.1, limiter.limit) for _ in range(5)] == [20, 21, 22, 23, 24]
    for _ in range(500):
        window(limiter, 0.1, limiter.limit)
    assert limiter.limit == 200


def test_the_limit_shrinks_when_latency_grows() -> None:
    """Three times the latency: a gradient of half, so 100 * 0.5 + 4, smoothed: 90.8."""
    limiter = grown(100)
    before = limiter._limit
    window(limiter, 0.3, 100)
    assert limiter._limit == pytest.approx(before + 0.2 * (before * limiter._long * 1.5 / 0.3 + 4 - before), rel=1e-12)
    before = limiter._limit
    window(limiter, 1.0, 90)
    assert limiter._limit == pytest.approx(before * 0.9 + 0.8, rel=1e-12)


def test_one_and_a_half_times_the_latency_is_tolerated() -> None:
    """Noise is no overload."""
    limiter = grown(100)
    assert window(limiter, 0.145, 100) >= 100


def test_latency_that_no_refused_client_would_be_spared_is_none_of_overload() -> None:
    """Calls of 1 ms that take 20 for a while: to stay away takes as long. With 25 there are too many."""
    limiter = make()
    while limiter.limit < 100:
        window(limiter, 0.001, limiter.limit)
    before = limiter.limit
    assert window(limiter, 0.02, limiter.limit) > before
    full = limiter._limit
    window(limiter, 0.025, limiter.limit)
    assert limiter._limit == pytest.approx(full + 0.2 * (full * 0.02 / 0.025 + 4 - full), rel=1e-12)


def test_in_flight_40_of_100_leaves_the_limit_unchanged() -> None:
    """A limit that is not used is neither confirmed nor refuted, whatever the latency."""
    limiter = grown(100)
    before = limiter._limit
    window(limiter, 0.1, 40)
    window(limiter, 1.0, 40)
    assert limiter._limit == before
    window(limiter, 0.1, 51)
    assert limiter._limit > before


def test_calls_of_an_earlier_window_that_are_still_in_flight_use_the_limit() -> None:
    """Nobody new came in, but more than half of the limit was busy all the time."""
    limiter = grown(100)
    for _ in range(80):
        limiter.admit(CRITICAL_PLUS)
    limits = []
    for _ in range(2):
        for _ in range(10):
            limiter.end(limiter._due, 0.1)
        limits.append(limiter.limit)
        limiter._due -= 0.1
    assert limits == [101, 102]


def test_constant_timeouts_shrink_the_limit() -> None:
    """From the first call on everything ends after the same second: constant, but not well."""
    limiter = make(minimum=20, initial=40)
    for _ in range(1000):
        window(limiter, 1.0, limiter.limit, expired=limiter.limit)
    assert limiter.limit == 20


def test_timeouts_of_few_calls_shrink_a_limit_that_was_never_reached() -> None:
    """The callers' deadlines keep 100 in flight of 500: the limit comes down from the 100, not from 500."""
    limiter = make(initial=500, maximum=5000)
    limits = [window(limiter, 1.0, 100, expired=60)]
    assert limits[0] < 100
    while limits[-1] > 20:
        calls = min(100, limits[-1])
        limits.append(window(limiter, 1.0, calls, expired=calls * 6 // 10))
    assert len(limits) < 40


def test_timeouts_after_better_days_shrink_the_limit_to_its_minimum_and_it_stays_there() -> None:
    """600 windows of timeouts do not become the new normal: 400 ms are still too slow after them."""
    limiter = grown(100)
    for _ in range(600):
        window(limiter, 1.0, limiter.limit, expired=limiter.limit)
    window(limiter, 0.4, 20)
    assert limiter._limit == 20.0


def test_timeouts_shorter_than_usual_do_not_grow_the_limit() -> None:
    """Clients in a hurry: their calls end early without having been fast."""
    limiter = grown(100)
    before = limiter.limit
    for _ in range(100):
        window(limiter, 0.01, limiter.limit, expired=limiter.limit)
        assert limiter.limit <= before


@pytest.mark.parametrize(("expired", "grows"), [(10, True), (11, False)])
def test_a_few_timeouts_do_not_stop_it(expired: int, grows: bool) -> None:
    """One in ten may be due to clients; more are a sign."""
    limiter = grown(100)
    before = limiter._limit
    window(limiter, 0.1, 100, expired=expired)
    assert (limiter._limit > before) is grows


def test_a_long_overload_is_forgotten_quickly() -> None:
    """After half an hour at 5 s latency, 100 ms are normal again within 100 windows, and 400 ms are not."""
    limiter = grown(50)
    for _ in range(1800):
        window(limiter, 5.0, limiter.limit)
    for _ in range(100):
        window(limiter, 0.1, limiter.limit)
    before = limiter.limit
    assert window(limiter, 0.4, limiter.limit) < before


def test_thresholds_by_criticality() -> None:
    """100, 95, 60 and 40 of a limit of 100 that has done no harm."""
    for criticality, room in zip(Criticality, [100, 95, 60, 40], strict=True):
        assert fill(grown(100), criticality) == room


def test_what_may_be_shed_is_admitted_where_it_is_known_to_do_no_harm() -> None:
    """Of a limit that nobody has used yet it gets shares of the minimum, and later of twice what went well."""
    limiter = make(initial=100)
    assert fill(limiter, SHEDDABLE) == 8
    assert fill(limiter, SHEDDABLE_PLUS) == 4
    assert fill(limiter, CRITICAL) == 83
    limiter = make(initial=100)
    window(limiter, 0.1, 30)
    assert fill(limiter, SHEDDABLE_PLUS) == 36


def test_what_matters_less_leaves_room_for_what_matters_more() -> None:
    """Sheddable calls stop at 40, and 60 more of the most critical still find a place."""
    limiter = grown(100)
    assert [fill(limiter, criticality) for criticality in reversed(Criticality)] == [40, 20, 35, 5]


def test_a_limit_of_one_admits_one_call_of_any_kind() -> None:
    """40% of 1 is not none."""
    assert fill(make(minimum=1, initial=1), SHEDDABLE) == 1


def test_twice_the_capacity_half_critical_and_half_sheddable_sheds_no_critical_call() -> None:
    """One worker, 1 ms a call, 2000 calls/s for 60 s: CRITICAL >= 99.9%, and the worker is never idle."""
    limiter, ends, done, free = make(), list[tuple[float, float]](), 0, 0.0
    results = Counter[tuple[Criticality, bool]]()
    for number in range(120_000):
        now = number / 2000
        while ends and ends[0][0] <= now:
            end, start = heapq.heappop(ends)
            limiter.end(end, end - start)
            done += 1
        criticality = CRITICAL if number % 2 else SHEDDABLE
        admitted = limiter.admit(criticality)
        results[criticality, admitted] += 1
        if admitted:
            free = max(free, now) + 0.001
            heapq.heappush(ends, (free, now))
    assert results[CRITICAL, True] >= 0.999 * 60_000
    assert done >= 0.99 * 60_000
    assert len(ends) <= 200


def test_windows_last_a_tenth_of_a_second_and_hold_ten_calls() -> None:
    """Until both are so, nothing changes."""
    limiter = make()
    windows = []
    for now, calls in ((5.0, 9), (5.0, 1), (5.05, 19), (5.1, 1), (9.0, 9), (9.0, 1)):
        for _ in range(calls):
            limiter.admit(CRITICAL)
            limiter.end(now, 0.1)
        windows.append(limiter._windows)
    assert windows == [0, 1, 1, 2, 2, 3]


def test_calls_that_leave_are_no_samples() -> None:
    """A cancelled call, or one refused for its credentials, gives its place back and changes nothing."""
    limiter = make()
    for tick in range(100):
        assert fill(limiter) == 20
        for _ in range(20):
            limiter.leave()
        assert limiter.limit == 20, tick
    assert limiter.in_flight == 0


def test_pushback_is_about_one_latency_and_jittered() -> None:
    """A place is free about one latency later; those refused together do not come back together."""
    limiter = make()
    assert 0.016 <= limiter.pushback() <= 0.024
    window(limiter, 0.1, 20)
    assert {0.08 <= limiter.pushback() <= 0.12 for _ in range(100)} == {True}
    assert len({limiter.pushback() for _ in range(100)}) > 90
    window(limiter, 60.0, 20)
    assert limiter.pushback() <= 1.2


def test_calls_that_take_no_time() -> None:
    """A clock that is too coarse to see them divides nothing by zero."""
    assert window(make(), 0.0, 20) == 20


def test_repr() -> None:
    """It says how full it is."""
    limiter = make()
    window(limiter, 0.1, 20)
    limiter.admit(CRITICAL)
    assert repr(limiter) == "<Limiter 1 of 20 in flight, short=100.0ms long=100.0ms>"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"minimum": 600},
            "limiter has minimum 600, initial 500 and maximum 5000; they must be whole numbers above 0, in this order",
        ),
        (
            {"minimum": 0},
            "limiter has minimum 0, initial 500 and maximum 5000; they must be whole numbers above 0, in this order",
        ),
    ],
)
def test_settings_are_validated_when_made(values: dict[str, Any], message: str) -> None:
    """The message names what does not fit."""
    with pytest.raises(ConfigError) as caught:
        LimiterSettings(**values)
    assert str(caught.value) == message


def test_settings_from_a_table() -> None:
    """A file names what it changes."""
    assert LimiterSettings.parse({"maximum": 1000}, "server.limiter") == LimiterSettings(20, 1000, 500, 0.2)


@given(
    st.lists(
        st.one_of(
            st.sampled_from(Criticality),
            st.tuples(st.floats(0, 5), st.floats(0, 20), st.booleans()),
            st.none(),
        ),
        max_size=300,
    ),
    st.integers(1, 30),
    st.integers(0, 50),
)
def test_the_limit_stays_within_its_bounds_and_calls_within_the_limit(
    events: list[Criticality | tuple[float, float, bool] | None], minimum: int, spread: int
) -> None:
    """Whatever the latencies: minimum <= limit <= maximum, and nobody is let in above the limit of the moment."""
    limiter = make(minimum=minimum, initial=minimum, maximum=minimum + spread)
    now, out = 0.0, 0
    for event in events:
        if isinstance(event, Criticality):
            if limiter.admit(event):
                out += 1
                assert out <= limiter.limit
        elif out:
            out -= 1
            if event is None:
                limiter.leave()
            else:
                now += event[0]
                limiter.end(now, event[1], expired=event[2])
        assert limiter.in_flight == out
        assert minimum <= limiter.limit <= minimum + spread
