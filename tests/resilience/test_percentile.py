"""Percentiles of latency over a moving window."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from framework.percentile import Latencies

WIDTH = 2 ** (1 / 8)
"""An upper edge over the lower one of its bucket."""


def filled(*values: float, now: float = 0.0, minimum: int = 1) -> Latencies:
    """Latencies recorded at one moment."""
    latencies = Latencies(window=30.0, minimum=minimum)
    for value in values:
        latencies.record(now, value)
    return latencies


def test_there_is_no_percentile_before_there_is_history() -> None:
    """19 calls say nothing, the 20th does."""
    latencies = Latencies()
    for _ in range(19):
        latencies.record(0.0, 0.1)
    assert latencies.quantile(0.0, 0.98) is None
    latencies.record(0.0, 0.1)
    assert latencies.quantile(0.0, 0.98) == pytest.approx(0.1, rel=0.091)


def test_the_98th_percentile_leaves_out_two_calls_of_a_hundred() -> None:
    """Two slow calls are not waited for, three are; the median does not notice."""
    two, three = filled(*[0.01] * 98, 1.0, 1.0), filled(*[0.01] * 97, 1.0, 1.0, 1.0)
    assert 0.01 <= (two.quantile(0.0, 0.98) or 0) <= 0.01 * WIDTH
    assert 1.0 <= (three.quantile(0.0, 0.98) or 0) <= 1.0 * WIDTH
    assert 0.01 <= (three.quantile(0.0, 0.5) or 0) <= 0.01 * WIDTH


def test_history_lasts_between_one_and_two_windows() -> None:
    """What was recorded in the window before still counts, and is then forgotten."""
    latencies = filled(0.5)
    latencies.record(31.0, 0.001)
    assert (latencies.quantile(59.9, 1.0) or 0) >= 0.5
    assert (latencies.quantile(60.0, 1.0) or 0) < 0.01
    assert latencies.quantile(90.0, 1.0) is None


def test_a_very_long_idle_gap_forgets_everything() -> None:
    """After a week asleep there is no history, and a new one begins."""
    latencies = filled(0.5)
    assert latencies.quantile(604_800.0, 0.5) is None
    latencies.record(604_800.0, 0.001)
    assert (latencies.quantile(604_800.0, 0.5) or 0) < 0.01


def test_a_change_is_seen_within_an_eighth_of_the_calls() -> None:
    """Between two looks a percentile may be one that was true a few calls ago."""
    latencies = filled(*[0.01] * 800)
    latencies.quantile(0.0, 1.0)
    for _ in range(100):
        latencies.record(0.0, 1.0)
    assert (latencies.quantile(0.0, 1.0) or 0) >= 1.0


@pytest.mark.parametrize("seconds", [0.0, -1.0, 1e-9, 1e9, 1e300])
def test_no_latency_is_out_of_range(seconds: float) -> None:
    """Shorter than 8 us and longer than an hour go to the ends."""
    quantile = filled(seconds).quantile(0.0, 0.5)
    assert quantile is not None
    assert quantile == pytest.approx(8.3e-6 if seconds < 1 else 4096, rel=0.01)


def test_repr() -> None:
    """It says how much it knows."""
    assert repr(filled(0.1, 0.2)) == "<Latencies of 2 calls>"


@given(st.lists(st.floats(1e-5, 4000), min_size=1, max_size=200), st.floats(0.01, 1.0))
def test_a_percentile_is_never_less_than_the_true_one_and_at_most_a_bucket_more(values: list[float], q: float) -> None:
    """For any latencies and any share."""
    true = sorted(values)[math.ceil(q * len(values)) - 1]
    quantile = filled(*values).quantile(0.0, q)
    assert quantile is not None
    assert true * (1 - 1e-12) <= quantile <= true * WIDTH * (1 + 1e-12)


@given(st.lists(st.tuples(st.floats(0, 40), st.floats(1e-5, 10)), min_size=1, max_size=100))
def test_only_the_last_windows_count(events: list[tuple[float, float]]) -> None:
    """What is older than two windows is gone; what is younger than one is there."""
    latencies, now, seen = Latencies(window=30.0, minimum=1), 0.0, list[tuple[float, float]]()
    for gap, seconds in events:
        now += gap
        latencies.record(now, seconds)
        seen.append((now, seconds))
    longest = latencies.quantile(now, 1.0) or 0.0
    young = [each for at, each in seen if at > now - 30]
    known = [each for at, each in seen if at >= now - 60]
    assert max(young) * (1 - 1e-12) <= longest <= max(known) * WIDTH * (1 + 1e-12)
