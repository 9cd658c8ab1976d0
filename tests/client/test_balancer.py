"""Which endpoint gets the next call: power of two choices over peak-EWMA, and round robin, in simulated time."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import pairwise

import pytest

from framework import Cancelled, Code, DeadlineExceeded, Internal, NotFound, ResourceExhausted, RpcError, Unavailable
from framework.call import Outcome
from framework.client.balancer import BALANCERS, Balancer, PeakEwma, RoundRobin
from framework.client.breaker import Treatment
from framework.client.endpoint import Endpoint
from tests.client.simulation import FakeTransport, endpoint, endpoints, fails, never, pick, simulate, takes


class Watched(Sequence[Endpoint]):
    """Endpoints that note who was looked at."""

    def __init__(self, items: list[Endpoint]) -> None:
        self.items = items
        self.seen: list[Endpoint] = []

    def __getitem__(self, index):  # type: ignore[no-untyped-def]  # as list's
        self.seen.append(self.items[index])
        return self.items[index]

    def __len__(self) -> int:
        return len(self.items)


def test_equal_nodes_get_equal_shares() -> None:
    """Over a hundred equal nodes the picks are even."""
    targets = endpoints(100)
    answers = {target.instance.id: takes(0.02) for target in targets}
    picks, _ = simulate(PeakEwma(random.Random(1)), targets, answers, calls=30_000, rate=1000.0, rng=random.Random(2))
    assert len(picks) == 100
    assert min(picks.values()) > 150
    assert max(picks.values()) < 600


def test_idle_equal_nodes_are_even() -> None:
    """So they are when every call is over before the next one begins, and all cost the same."""
    targets = endpoints(10)
    balancer = PeakEwma(random.Random(3))
    picks: Counter[str] = Counter()
    for number in range(20_000):
        now = number * 0.001
        target = pick(balancer, targets, now)
        target.begin(now)
        target.observe(now + 0.0005, 0.0005)
        target.pending -= 1
        picks[target.instance.id] += 1
    assert min(picks.values()) > 1600
    assert max(picks.values()) < 2400


def test_new_node_that_never_answers_is_picked_once() -> None:
    """A node without history that does not answer gets one call, and no second one while that is out."""
    targets = endpoints(5)
    answers = {target.instance.id: takes(0.02) for target in targets}
    balancer, rng = PeakEwma(random.Random(4)), random.Random(5)
    simulate(balancer, targets, answers, calls=2000, rate=200.0, rng=rng)
    mute = endpoint("mute")
    picks, _ = simulate(balancer, [*targets, mute], {**answers, "mute": never()}, calls=5000, rate=200.0, rng=rng)
    assert picks["mute"] == 1


@pytest.mark.parametrize("seed", range(3))
def test_slow_node_carries_less(seed: int) -> None:
    """A node at twice the latency carries about half the mean load, in calls a second."""
    targets = endpoints(10)
    answers = {target.instance.id: takes(0.02) for target in targets}
    answers["e0"] = takes(0.04)
    picks, _ = simulate(
        PeakEwma(random.Random(seed)), targets, answers, calls=50_000, rate=500.0, rng=random.Random(100 + seed)
    )
    others = sum(picks[f"e{number}"] for number in range(1, 10)) / 9
    assert 0.25 <= picks["e0"] / others <= 0.75


@pytest.mark.parametrize("seed", range(3))
def test_much_slower_node_gets_next_to_nothing(seed: int) -> None:
    """A node that is ten times slower has at most half a per cent of five nodes' calls."""
    targets = endpoints(5)
    answers = {target.instance.id: takes(0.01) for target in targets}
    answers["e0"] = takes(0.1)
    balancer, rng = PeakEwma(random.Random(seed)), random.Random(100 + seed)
    simulate(balancer, targets, answers, calls=1000, rate=500.0, rng=rng)
    picks, _ = simulate(balancer, targets, answers, calls=20_000, rate=500.0, rng=rng)
    assert picks["e0"] / 20_000 <= 0.005


def test_two_nodes_are_always_compared() -> None:
    """With two nodes both are looked at: never the same one twice in one pick."""
    targets = Watched(endpoints(2))
    balancer = PeakEwma(random.Random(6))
    for number in range(1000):
        targets.seen.clear()
        balancer.pick(targets, targets, number * 0.001)
        assert set(targets.seen) == set(targets.items)


def test_two_distinct_nodes_of_many() -> None:
    """With more nodes two distinct ones are looked at, every pair as often as any other."""
    targets = Watched(endpoints(4))
    balancer = PeakEwma(random.Random(7))
    pairs: Counter[frozenset[str]] = Counter()
    for _ in range(12_000):
        targets.seen.clear()
        balancer.pick(targets, targets, 0.0)
        pairs[frozenset(target.instance.id for target in targets.seen)] += 1
    assert {len(pair) for pair in pairs} == {2}
    assert len(pairs) == 6
    assert 1800 < min(pairs.values()) < max(pairs.values()) < 2200


@pytest.mark.parametrize("seed", range(3))
def test_fast_failure_attracts_nobody(seed: int) -> None:
    """A node that fails in 1 ms while the others answer in 20 has at most its fair share."""
    targets = endpoints(5)
    answers = {target.instance.id: takes(0.02) for target in targets}
    answers["e0"] = fails(0.001)
    picks, _ = simulate(
        PeakEwma(random.Random(seed)), targets, answers, calls=20_000, rate=500.0, rng=random.Random(100 + seed)
    )
    assert picks["e0"] <= 20_000 / 5


def test_recovered_node_is_found_again() -> None:
    """A node that has lost every comparison is picked now and then, so that its recovery is noticed."""
    targets = endpoints(3)
    answers = {target.instance.id: takes(0.01) for target in targets}
    balancer, rng = PeakEwma(random.Random(8)), random.Random(9)
    simulate(balancer, targets, {**answers, "e0": takes(2.0)}, calls=3000, rate=300.0, rng=rng)
    picks, _ = simulate(balancer, targets, answers, calls=30_000, rate=300.0, rng=rng)
    assert picks["e0"] > 2000


def test_failing_node_is_tried_again_ever_later() -> None:
    """One that loses every comparison is tried after 1 s; with each failure in a row after twice the time."""
    good, bad = endpoints(2)
    good.observe(0.0, 0.001)
    balancer, tries, now = PeakEwma(random.Random(5)), list[float](), 0.0
    bad.observe(0.0, 100.0)
    while now < 20.0:
        now += 0.01
        target = pick(balancer, [good, bad], now)
        permit = target.begin(now)
        if target is bad:
            tries.append(now)
            target.failed(now, permit, 0.01, Outcome(Code.UNAVAILABLE), Treatment.FAILURE, 100.0)
        else:
            target.answered(now, permit, 0.001)
    gaps = [later - earlier for earlier, later in pairwise(tries)]
    assert gaps == pytest.approx([2.0, 4.0, 8.0], abs=0.03)


def test_peak_is_believed_at_once() -> None:
    """A latency above the average replaces it; better ones win slowly, and old ones fade."""
    target = endpoint("e")
    target.observe(0.0, 0.010)
    assert target.cost(0.0) == pytest.approx(0.010)
    target.observe(1.0, 0.100)
    assert target.cost(1.0) == pytest.approx(0.100)
    target.observe(1.1, 0.010)
    assert 0.09 < target.cost(1.1) < 0.1
    assert target.cost(11.1) == pytest.approx(target.cost(1.1) / 2.718, rel=0.01)


def test_cost_counts_the_calls_in_flight() -> None:
    """Every call in flight makes the next one dearer by the average."""
    target = endpoint("e")
    target.observe(0.0, 0.010)
    for pending in range(5):
        assert target.cost(0.0) == pytest.approx(0.010 * (pending + 1))
        target.begin(0.0)


def test_node_without_history() -> None:
    """It costs nothing before its first call, and more than anybody while that is out."""
    new, old = endpoint("new"), endpoint("old")
    old.observe(0.0, 1.0)
    assert new.cost(0.0) == 0.0
    new.begin(0.0)
    assert new.cost(0.0) > 100 * old.cost(0.0)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (Unavailable(remote=True), 1.0),
        (Internal(remote=True), 1.0),
        (Unavailable(remote=False), 1.0),
        (DeadlineExceeded(remote=False), 1.0),
        (NotFound(remote=True), 0.001),
        (ResourceExhausted(remote=True), 1.0),
        (Cancelled(remote=False), 0.0),
        (NotFound(remote=False), 0.0),
    ],
    ids=repr,
)
def test_what_a_failure_costs(error: RpcError, expected: float) -> None:
    """Failures that the node answers for cost the caller's patience, answers their latency, our own doing nothing."""
    target = endpoint("e")
    target.observe_failure(0.0, 0.001, error.code, error.remote, patience=1.0)
    assert target.cost(0.0) == pytest.approx(expected)


@pytest.mark.parametrize("make", BALANCERS.values(), ids=BALANCERS)
def test_single_node(make: Callable[[random.Random], Balancer]) -> None:
    """The only node is asked to connect, and is the choice once it has."""
    only = endpoint("only", ready=False)
    assert make(random.Random(0)).pick([only], [], 0.0) is None
    assert isinstance(only.transport, FakeTransport)
    assert only.transport.connects == 1
    only.available = True
    assert make(random.Random(0)).pick([only], [only], 0.0) is only


@pytest.mark.parametrize("make", BALANCERS.values(), ids=BALANCERS)
def test_idle_nodes_that_are_looked_at_are_woken(make: Callable[[random.Random], Balancer]) -> None:
    """Nodes that are not connected are asked to be, when they are looked at and only then."""
    targets = Watched([endpoint(f"e{number}", ready=False) for number in range(100)])
    for _ in range(5):
        make(random.Random(1)).pick(targets, [], 0.0)
    woken = {target for target in targets.items if isinstance(t := target.transport, FakeTransport) and t.connects}
    assert woken == set(targets.seen)


def test_ready_node_is_preferred() -> None:
    """Of two nodes the one that is ready is picked, whatever it costs."""
    dear, idle = endpoint("dear"), endpoint("idle", ready=False)
    dear.observe(0.0, 100.0)
    balancer = PeakEwma(random.Random(2))
    assert {balancer.pick([dear, idle], [dear], 0.0) for _ in range(50)} == {dear}


def test_round_robin_is_even() -> None:
    """Each node has its turn."""
    targets = endpoints(7)
    balancer = RoundRobin(random.Random(3))
    picks = [pick(balancer, targets, 0.0).instance.id for _ in range(70)]
    assert set(Counter(picks).values()) == {10}
    assert picks[:7] == picks[7:14]


def test_round_robins_start_anywhere() -> None:
    """Many clients that start together do not all begin with the same node."""
    targets = endpoints(5)
    first = Counter(pick(RoundRobin(random.Random(seed)), targets, 0.0).instance.id for seed in range(500))
    assert min(first.values()) > 50


def test_repr() -> None:
    """An endpoint says where it goes, its state and what it costs."""
    target = endpoint("e")
    target.observe(0.0, 0.0125)
    target.begin(0.0)
    assert repr(target) == "<Endpoint e:1 ready pending=1 ewma=12.5ms>"
