"""Waits between attempts, and what the server says about them."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from framework.call import Metadata
from framework.client.backoff import NEVER, Backoff, pushback
from framework.errors import ConfigError
from framework.policy import BackoffSettings


class Fixed(random.Random):
    """Always the same number."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = value

    def random(self) -> float:
        return self.value


@pytest.mark.parametrize(
    ("drawn", "waits"),
    [
        (0.0, [0.08, 0.16, 0.32, 0.64, 0.8]),
        (0.5, [0.1, 0.2, 0.4, 0.8, 1.0]),
        (1.0, [0.12, 0.24, 0.48, 0.96, 1.2]),
    ],
)
def test_five_retries_wait_twice_as_long_each_up_to_a_second_give_or_take_a_fifth(
    drawn: float, waits: list[float]
) -> None:
    """Retries 1 to 5 wait in [80, 120] [160, 240] [320, 480] [640, 960] [800, 1200] ms."""
    backoff = Backoff(BackoffSettings(), Fixed(drawn))
    assert [backoff.wait() for _ in range(5)] == pytest.approx(waits, rel=1e-12)


@given(st.integers(), st.integers(1, 40))
def test_every_wait_is_within_its_bounds(seed: int, count: int) -> None:
    """Whatever is drawn; the doubling stops at the maximum."""
    backoff = Backoff(BackoffSettings(), random.Random(seed))
    for retry in range(count):
        base = min(0.1 * 2**retry, 1.0)
        assert 0.8 * base - 1e-12 <= backoff.wait() <= 1.2 * base + 1e-12


def test_waits_are_spread() -> None:
    """Clients that failed together do not come back together."""
    rng = random.Random(1)
    waits = [Backoff(BackoffSettings(), rng).wait() for _ in range(1000)]
    assert min(waits) < 0.081
    assert max(waits) > 0.119


def test_pushback_of_250_waits_exactly_250_ms_and_the_next_wait_is_the_first_again() -> None:
    """The server's number is not jittered, and it starts the backoff anew."""
    backoff = Backoff(BackoffSettings(), Fixed(0.5))
    assert [backoff.wait(), backoff.wait()] == [0.1, 0.2]
    assert backoff.wait(pushback((("grpc-retry-pushback-ms", "250"),))) == 0.25
    assert [backoff.wait(), backoff.wait()] == [0.1, 0.2]


@pytest.mark.parametrize(
    ("trailer", "expected"),
    [
        ((), None),
        ((("other", "5"),), None),
        ((("grpc-retry-pushback-ms", "250"),), 0.25),
        ((("grpc-retry-pushback-ms", "0"),), 0.0),
        ((("grpc-retry-pushback-ms", "2147483647"),), 2147483.647),
        ((("grpc-retry-pushback-ms", "2147483648"),), NEVER),
        ((("grpc-retry-pushback-ms", "9" * 5000),), NEVER),
        ((("grpc-retry-pushback-ms", "-1"),), NEVER),
        ((("grpc-retry-pushback-ms", "abc"),), NEVER),
        ((("grpc-retry-pushback-ms", ""),), NEVER),
        ((("grpc-retry-pushback-ms", "1.5"),), NEVER),
        ((("grpc-retry-pushback-ms", "1_0"),), NEVER),
        ((("grpc-retry-pushback-ms", "\u0662"),), NEVER),
        ((("grpc-retry-pushback-ms", b"250"),), NEVER),
        ((("grpc-retry-pushback-ms", "5"), ("grpc-retry-pushback-ms", "5")), NEVER),
    ],
)
def test_pushback_that_is_negative_or_unreadable_forbids_the_retry(trailer: Metadata, expected: float | None) -> None:
    """Only a whole number of milliseconds is a wait; silence is none; all else means: do not come back."""
    assert pushback(trailer) == expected
    if expected == NEVER:
        assert Backoff(BackoffSettings(), Fixed(0.5)).wait(pushback(trailer)) == NEVER


@given(st.text(max_size=20))
def test_whatever_the_server_writes_is_a_wait_or_never(value: str) -> None:
    """Nothing that arrives in a trailer can raise."""
    wait = pushback((("grpc-retry-pushback-ms", value),))
    assert wait is not None
    assert wait >= 0


def test_repr() -> None:
    """It says what comes next."""
    assert repr(Backoff(BackoffSettings(), random.Random(1))) == "<Backoff next=0.1s +-20%>"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"factor": 0.5}, "backoff.factor is 0.5; it must be a number from 1 to 100"),
        ({"initial": 2.0}, "backoff.initial is 2s, more than backoff.maximum, 1s"),
    ],
)
def test_settings_are_validated_when_made(values: dict[str, float], message: str) -> None:
    """The message names the setting, the value and what is possible."""
    with pytest.raises(ConfigError) as caught:
        BackoffSettings(**values)
    assert str(caught.value) == message
