"""Balancers beside the default one: by calls in flight, and by weights, in simulated time."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from framework import ClientSettings
from framework.client.balancer import LeastLoaded, Weighted
from framework.client.endpoint import Endpoint
from framework.client.pool import Pool
from framework.discovery import Instance, Snapshot
from tests.client.simulation import FakeTransport, endpoints, never, pick, simulate, takes
from tests.client.test_pool import Told
from tests.resilience.lab import fails, lab


def weighing(*weights: int) -> list[Endpoint]:
    """Endpoints of these weights."""
    return [
        Endpoint(Instance(f"e{number}", "catalog", f"e{number}:1", weight=weight), FakeTransport())
        for number, weight in enumerate(weights)
    ]


@given(st.lists(st.integers(1, 100), min_size=1, max_size=40), st.integers(0, 1000))
def test_weighted_shares_are_exact(weights: list[int], seed: int) -> None:
    """The alias table gives every instance the share of its weight, to the last digit that counts."""
    targets = weighing(*weights)
    balancer = Weighted(random.Random(seed))
    pick(balancer, targets, 0.0)
    shares = dict.fromkeys(range(len(weights)), 0.0)
    for index, (own, other) in enumerate(zip(balancer._shares, balancer._others, strict=True)):
        assert 0.0 <= own <= 1.0 + 1e-9
        shares[index] += own / len(weights)
        shares[other] += (1.0 - own) / len(weights)
    assert list(shares.values()) == pytest.approx([weight / sum(weights) for weight in weights], abs=1e-9)


def test_weighted_picks_follow_the_weights() -> None:
    """1, 2 and 7 of ten."""
    targets, balancer = weighing(1, 2, 7), Weighted(random.Random(1))
    picks = Counter(pick(balancer, targets, 0.0).instance.id for _ in range(10_000))
    assert picks["e0"] == pytest.approx(1000, rel=0.1)
    assert picks["e1"] == pytest.approx(2000, rel=0.1)
    assert picks["e2"] == pytest.approx(7000, rel=0.1)


def shown(**weights: int) -> Snapshot:
    return {name: Instance(name, "catalog", f"{name}:1", weight=weight) for name, weight in weights.items()}


def shares(pool: Pool, picks: int = 4000) -> dict[str, float]:
    """Who is picked how often."""
    found: Counter[str] = Counter()
    for _ in range(picks):
        endpoint = pool.pick(0.0)
        assert endpoint is not None
        found[endpoint.instance.id] += 1
    return {name: count / picks for name, count in sorted(found.items())}


@pytest.mark.virtual_time
async def test_weighted_notices_every_change() -> None:
    """A new weight, one that comes or goes, and a connection that is lost or back."""
    transports: dict[str, FakeTransport] = {}

    def dial(instance: Instance) -> FakeTransport:
        transports[instance.id] = FakeTransport()
        return transports[instance.id]

    settings = ClientSettings(balancer="weighted")
    pool = Pool("catalog", Told(), dial, settings, where="here", rng=random.Random(1))
    pool.apply(shown(a=1, b=3))
    assert shares(pool) == pytest.approx({"a": 0.25, "b": 0.75}, abs=0.03)
    pool.apply(shown(a=3, b=1))
    assert shares(pool) == pytest.approx({"a": 0.75, "b": 0.25}, abs=0.03)
    pool.apply(shown(a=3, b=1, c=6))
    assert shares(pool) == pytest.approx({"a": 0.3, "b": 0.1, "c": 0.6}, abs=0.03)
    transports["c"].become(failed=True)
    assert shares(pool) == pytest.approx({"a": 0.75, "b": 0.25}, abs=0.03)
    transports["a"].become(failed=True)
    transports["c"].become(ready=True)
    assert shares(pool) == pytest.approx({"b": 1 / 7, "c": 6 / 7}, abs=0.03)
    pool.apply(shown(b=1))
    assert shares(pool) == {"b": 1.0}
    pool.configure(ClientSettings(balancer="round_robin"))
    pool.apply(shown(b=100, d=1))
    transports["d"].become(ready=True)
    assert shares(pool) == {"b": 0.5, "d": 0.5}
    await pool.aclose()


def test_least_loaded_takes_the_one_with_fewer_calls() -> None:
    """Of two, always; neither latency nor failures count."""
    a, b = endpoints(2)
    balancer = LeastLoaded(random.Random(1))
    a.pending, b.pending = 3, 2
    b.observe(0.0, 100.0)
    assert {pick(balancer, [a, b], 0.0) for _ in range(50)} == {b}


def test_least_loaded_is_even_among_equals() -> None:
    """With nothing in flight every one has its share."""
    targets, balancer = endpoints(10), LeastLoaded(random.Random(2))
    picks = Counter(pick(balancer, targets, 0.0).instance.id for _ in range(10_000))
    assert min(picks.values()) > 850
    assert max(picks.values()) < 1150


@pytest.mark.parametrize("seed", range(3))
def test_least_loaded_spares_the_slow_and_the_hanging(seed: int) -> None:
    """A node four times slower has clearly less than its share; one that never answers has next to nothing."""
    targets = endpoints(5)
    answers = {target.instance.id: takes(0.02) for target in targets}
    answers["e0"], answers["e1"] = takes(0.08), never()
    picks, _ = simulate(
        LeastLoaded(random.Random(seed)), targets, answers, calls=20_000, rate=500.0, rng=random.Random(100 + seed)
    )
    assert picks["e0"] < 0.6 * picks["e2"]
    assert picks["e1"] < 0.01 * 20_000


@pytest.mark.virtual_time
@pytest.mark.parametrize("balancer", ["least_loaded", "weighted", "round_robin", "peak_ewma"])
async def test_shares_of_real_calls(balancer: str) -> None:
    """Three equal instances have a third each, and all are back in the count at the end."""
    async with lab(3, balancer=balancer, idempotent=False) as here:
        for _ in range(300):
            await here.call()
        counts = Counter(here.peers)
        assert min(counts.values()) > 60
        here.script(fails())
        await here.fail()
