"""Ejection of hosts that do worse than the others."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from framework.client.breaker import Breaker, State, Treatment
from framework.client.outlier import Host, panicking, success_rate_threshold, sweep
from framework.errors import ConfigError
from framework.policy import BreakerSettings, OutlierSettings
from tests.resilience.test_breaker import Fixed, run

RATE_ALONE = OutlierSettings(failure_percentage=100)
PERCENTAGE_ALONE = OutlierSettings(deviations=0)


def serve(hosts: Sequence[Host], *rates: float, calls: int = 100) -> None:
    """Each host in use answers so many calls with this success rate."""
    for host, rate in zip(hosts, rates, strict=True):
        if not host.ejected:
            host.successes += round(calls * rate)
            host.failures += calls - round(calls * rate)


def hosts_serving(*rates: float, calls: int = 100) -> list[Host]:
    """Hosts that have answered so many calls each."""
    hosts = [Host() for _ in rates]
    serve(hosts, *rates, calls=calls)
    return hosts


def ejected(hosts: Sequence[Host]) -> list[bool]:
    """Who is out."""
    return [host.ejected for host in hosts]


def test_one_of_five_failing_is_below_the_threshold_and_ejected() -> None:
    """Rates [1, 1, 1, 1, 0]: threshold 0.04."""
    assert success_rate_threshold([1, 1, 1, 1, 0], 1.9) == pytest.approx(0.04)
    hosts = hosts_serving(1, 1, 1, 1, 0)
    assert sweep(hosts, 10.0, RATE_ALONE) == [hosts[4]]
    assert ejected(hosts) == [False, False, False, False, True]


def test_two_of_five_failing_hide_each_other_and_the_breaker_catches_both() -> None:
    """Rates [1, 1, 1, 0, 0]: threshold -0.33, below any rate; each breaker looks at its own endpoint alone."""
    assert success_rate_threshold([1, 1, 1, 0, 0], 1.9) == pytest.approx(-0.33, abs=0.001)
    hosts = hosts_serving(1, 1, 1, 0, 0)
    assert sweep(hosts, 10.0, RATE_ALONE) == []
    breakers = [Breaker(BreakerSettings(), Fixed(0.0)) for _ in hosts]
    ends = [Treatment.SUCCESS] * 3 + [Treatment.FAILURE] * 2
    states = [run(breaker, 10.0, *[end] * 100) for breaker, end in zip(breakers, ends, strict=True)]
    assert states == [State.CLOSED] * 3 + [State.OPEN] * 2


def test_two_endpoints_failing_out_of_five_eject_exactly_one() -> None:
    """10% of 5 is less than one; one at least may go, and the other stays however often it is looked at."""
    hosts = hosts_serving(1, 1, 1, 0, 0)
    for tick in (10.0, 20.0, 30.0):
        sweep(hosts, tick, OutlierSettings(minimum_hosts=4))
        assert sum(ejected(hosts)) == 1
        serve(hosts, 1, 1, 1, 0, 0)


def test_at_most_a_tenth_of_thirty_and_the_worst_first() -> None:
    """Of five bad ones the three that are worst; the others stay while those are out."""
    hosts = hosts_serving(*[1.0] * 25, 0.14, 0.10, 0.02, 0.0, 0.05)
    for tick in (10.0, 20.0, 30.0):
        sweep(hosts, tick, OutlierSettings())
        assert ejected(hosts) == [False] * 27 + [True] * 3
        serve(hosts, *[1.0] * 25, 0.14, 0.10, 0.02, 0.0, 0.05)


def test_the_third_ejection_without_decay_takes_90_seconds() -> None:
    """A host that fails again as soon as it is back: 30, 60, 90 seconds."""
    hosts = hosts_serving(1, 1, 1, 1, 0)
    bad, out, changes = hosts[4], 0.0, list[float]()
    for tick in range(10, 500, 10):
        if hosts[4] in sweep(hosts, float(tick), OutlierSettings()):
            if not bad.ejected:
                changes.append(tick - out)
            out = float(tick)
        serve(hosts, 1, 1, 1, 1, 0)
    assert changes[:3] == [30.0, 60.0, 90.0]


def test_no_ejection_takes_more_than_300_seconds() -> None:
    """The eleventh in a row is no longer than the tenth."""
    host = Host()
    host.multiplier = 10
    host.eject(0.0)
    host.sweep(299.9, OutlierSettings())
    assert host.ejected
    host.sweep(300.0, OutlierSettings())
    assert not host.ejected


def test_each_clean_sweep_takes_one_from_the_multiplier() -> None:
    """30 s out, then well: one sweep later the ejection is forgotten, and the next one takes 30 s again."""
    hosts = hosts_serving(1, 1, 1, 1, 0)
    sweep(hosts, 10.0, OutlierSettings())
    multipliers = []
    for tick in (20.0, 30.0, 40.0, 50.0, 60.0):
        serve(hosts, 1, 1, 1, 1, 1)
        sweep(hosts, tick, OutlierSettings())
        multipliers.append((hosts[4].ejected, hosts[4].multiplier))
    assert multipliers == [(True, 1), (True, 1), (False, 1), (False, 0), (False, 0)]


@pytest.mark.parametrize(("rate", "out"), [(0.15, False), (0.14, True)])
def test_more_than_85_percent_of_failures_eject(rate: float, out: bool) -> None:
    """85% is not more than 85%."""
    hosts = hosts_serving(1, 1, 1, 1, rate)
    sweep(hosts, 10.0, PERCENTAGE_ALONE)
    assert hosts[4].ejected is out


@pytest.mark.parametrize("deviations", [0.0, 0.5, 1.9])
def test_four_hosts_never_eject(deviations: float) -> None:
    """Too few to say who is the outlier."""
    hosts = hosts_serving(1, 1, 1, 0)
    assert sweep(hosts, 10.0, OutlierSettings(deviations=deviations)) == []


@pytest.mark.parametrize(("settings", "calls"), [(RATE_ALONE, 100), (PERCENTAGE_ALONE, 50)])
def test_hosts_with_too_few_calls_are_not_looked_at(settings: OutlierSettings, calls: int) -> None:
    """The last call that is missing is missed; calls of an earlier interval do not count."""
    hosts = hosts_serving(1, 1, 1, 1, 0, calls=calls - 1)
    assert sweep(hosts, 10.0, settings) == []
    serve(hosts, 1, 1, 1, 1, 0, calls=calls - 1)
    assert sweep(hosts, 20.0, settings) == []
    serve(hosts, 1, 1, 1, 1, 0, calls=calls)
    assert sweep(hosts, 30.0, settings) == [hosts[4]]


def test_no_hosts_and_no_calls() -> None:
    """Nothing to say, nothing said."""
    assert sweep([], 10.0, OutlierSettings()) == []
    assert sweep([Host() for _ in range(10)], 10.0, OutlierSettings()) == []


def test_zero_percent_ejects_none() -> None:
    """The one that may always go is meant for small services, not for those that switch ejection off."""
    hosts = hosts_serving(1, 1, 1, 1, 0)
    assert sweep(hosts, 10.0, OutlierSettings(max_ejected=0)) == []


def test_a_host_both_ways_bad_is_ejected_once() -> None:
    """Success rate and failure percentage both speak against it, and there is room for three: multiplier 1."""
    hosts = hosts_serving(*[1.0] * 29, 0)
    sweep(hosts, 10.0, OutlierSettings())
    assert hosts[29].multiplier == 1


def test_what_an_ejected_host_does_is_not_held_against_it() -> None:
    """Calls that were under way, or sent in a panic, fail: it is not ejected anew, and its time runs on."""
    hosts = hosts_serving(*[1.0] * 29, 0)
    sweep(hosts, 10.0, OutlierSettings())
    serve(hosts[:29], *[1.0] * 29)
    hosts[29].failures = 100
    assert sweep(hosts, 20.0, OutlierSettings()) == []
    assert hosts[29].multiplier == 1
    assert sweep(hosts, 40.0, OutlierSettings()) == [hosts[29]]


@pytest.mark.parametrize(
    ("healthy", "total", "panic"), [(2, 5, True), (3, 5, False), (5, 10, False), (4, 10, True), (0, 1, True)]
)
def test_fewer_than_half_healthy_is_panic(healthy: int, total: int, panic: bool) -> None:
    """Half is enough; with less all are used."""
    assert panicking(healthy, total) is panic


def test_no_hosts_is_no_panic() -> None:
    """There is nothing to use."""
    assert not panicking(0, 0)


def test_repr() -> None:
    """It says what counts."""
    host = Host()
    host.record(True)
    host.record(False)
    assert repr(host) == "<Host in use multiplier=0 1 of 2 failed>"
    host.eject(0.0)
    assert repr(host) == "<Host ejected multiplier=1 1 of 2 failed>"


def test_settings_are_validated_when_made() -> None:
    """The message names the setting, the value and what is possible."""
    with pytest.raises(ConfigError) as caught:
        OutlierSettings(max_ejected=101)
    assert str(caught.value) == "outlier.max_ejected is 101; it must be a whole number from 0 to 100"


@given(
    st.lists(st.lists(st.floats(0, 1), min_size=12, max_size=12), min_size=1, max_size=40),
    st.integers(1, 100),
    st.floats(0.1, 3),
)
def test_never_more_are_ejected_than_there_is_room_for_and_all_come_back(
    rounds: list[list[float]], percent: int, deviations: float
) -> None:
    """Whatever the rates do; and nobody stays out for ever."""
    settings = OutlierSettings(max_ejected=percent, deviations=deviations)
    hosts = [Host() for _ in range(12)]
    now = 0.0
    for rates in rounds:
        now += 10.0
        serve(hosts, *rates)
        sweep(hosts, now, settings)
        assert sum(ejected(hosts)) <= max(1, 12 * percent // 100)
        assert all(host.multiplier >= 0 for host in hosts)
    sweep(hosts, now + 300.0, settings)
    assert not any(ejected(hosts))
