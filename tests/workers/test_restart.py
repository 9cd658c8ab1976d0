"""When a worker that died is started again."""

from __future__ import annotations

import random

import pytest

from framework.workers.restart import STABLE, Restart


class Steady(random.Random):
    """Nothing is left to chance: waits are neither longer nor shorter."""

    def random(self) -> float:
        return 0.5


def test_waits_double_up_to_a_limit() -> None:
    """A worker that cannot start is tried less and less often."""
    restart = Restart(Steady())
    waits = [restart.died(now=float(number)) for number in range(11)]
    assert waits == pytest.approx([0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8, 25.6, 30.0, 30.0])


def test_one_that_serves_shortly_is_no_better() -> None:
    """A worker that dies of its first call is not started in a tight loop."""
    restart = Restart(Steady())
    waits = []
    for now in (0.0, 10.0, 20.0):
        restart.serves(now)
        waits.append(restart.died(now + STABLE - 0.1))
    assert waits == pytest.approx([0.1, 0.2, 0.4])


def test_one_that_served_for_a_while_is_forgiven() -> None:
    """What happened long ago does not keep a worker from coming back soon."""
    restart = Restart(Steady())
    for _ in range(5):
        restart.died(0.0)
    restart.serves(100.0)
    assert restart.died(100.0 + STABLE) == pytest.approx(0.1)


def test_serving_once_does_not_count_twice() -> None:
    """A worker that died after a long time, and whose successor never serves, is tried less and less often again."""
    restart = Restart(Steady())
    restart.serves(0.0)
    assert [restart.died(now) for now in (1000.0, 2000.0, 3000.0)] == pytest.approx([0.1, 0.2, 0.4])


def test_waits_are_spread() -> None:
    """Workers that die of one thing come back one after the other, within a fifth of the wait."""
    rng = random.Random(7)
    waits = [Restart(rng).died(0.0) for _ in range(200)]
    assert 0.08 <= min(waits) < 0.085
    assert 0.115 < max(waits) <= 0.12


def test_how_it_reads() -> None:
    """It tells whether the worker serves, and the next wait."""
    restart = Restart(Steady())
    assert repr(restart) == "<Restart is down <Backoff next=0.1s +-20%>>"
    restart.serves(3.0)
    assert repr(restart) == "<Restart serves since 3s <Backoff next=0.1s +-20%>>"
