"""Which instances a client uses when there are very many."""

from __future__ import annotations

import asyncio
import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from framework import ClientSettings
from framework.client.pool import Pool
from framework.client.subset import Subset
from framework.discovery import Instance, Snapshot
from tests.client.simulation import FakeTransport
from tests.client.test_pool import Told


def snapshot(names: object) -> Snapshot:
    return {str(name): Instance(str(name), "catalog", f"{name}:1") for name in names}  # type: ignore[attr-defined]


@given(
    names=st.sets(st.integers(0, 300), min_size=2, max_size=120),
    size=st.integers(1, 40),
    seed=st.integers(0, 100),
)
def test_one_that_comes_or_goes_changes_one_member_at_most(names: set[int], size: int, seed: int) -> None:
    """Case 7: for any set of instances and any client."""
    subset = Subset(size, random.Random(seed))
    before = set(subset.of(snapshot(names)))
    assert len(before) == min(size, len(names))
    gone = min(names)
    without = set(subset.of(snapshot(names - {gone})))
    assert len(before - without) <= 1
    if str(gone) not in before:
        assert without == before
    back = set(subset.of(snapshot(names)))
    assert back == before
    more = set(subset.of(snapshot(names | {1000})))
    assert len(before - more) <= 1


@given(st.lists(st.sets(st.integers(0, 150), max_size=150), min_size=1, max_size=12), st.integers(1, 20))
def test_history_does_not_matter(history: list[set[int]], size: int) -> None:
    """Whatever was there before: the subset of a snapshot is that of the snapshot alone."""
    long_lived = Subset(size, random.Random(1))
    for names in history:
        found = long_lived.of(snapshot(names))
        assert found.keys() == Subset(size, random.Random(1)).of(snapshot(names)).keys()
        assert found.items() <= snapshot(names).items()


def test_few_instances_are_all_used() -> None:
    """Up to the size nothing is left out."""
    names = snapshot(range(10))
    assert Subset(10, random.Random(1)).of(names) == names
    assert len(Subset(9, random.Random(1)).of(names)) == 9


def test_clients_differ_and_the_load_is_even() -> None:
    """A thousand clients of 20 out of 100: every instance has about 200 of them."""
    names = snapshot(range(100))
    used: Counter[str] = Counter()
    for seed in range(1000):
        used.update(list(Subset(20, random.Random(seed)).of(names)))
    assert len(used) == 100
    assert min(used.values()) > 150
    assert max(used.values()) < 250


def test_an_instance_that_says_something_new_of_itself() -> None:
    """It is the new one that is used."""
    subset = Subset(1, random.Random(1))
    names = snapshot("ab")
    [chosen] = subset.of(names)
    again = {**names, chosen: Instance(chosen, "catalog", "elsewhere:2")}
    assert subset.of(again)[chosen].address == "elsewhere:2"


def test_ten_thousand_instances_that_come_and_go() -> None:
    """Much that changes at once, and little."""
    subset, alone = Subset(50, random.Random(3)), random.Random(4)
    names = set(range(10_000))
    for change in (1, 5000, 1, 100, 3):
        names -= set(alone.sample(sorted(names), change))
        names |= set(range(20_000, 20_000 + change))
        assert subset.of(snapshot(names)).keys() == Subset(50, random.Random(3)).of(snapshot(names)).keys()


def pool_of(count: int, size: int) -> Pool:
    pool = Pool(
        "catalog",
        Told(),
        lambda one: FakeTransport(),
        ClientSettings(subset=size),
        where="here",
        rng=random.Random(1),
    )
    pool.apply(snapshot(range(count)))
    return pool


@pytest.mark.virtual_time
async def test_pool_uses_its_subset_and_keeps_its_connections() -> None:
    """A client has so many endpoints and no more; those that stay are not touched."""
    pool = pool_of(100, 10)
    before = {endpoint.instance.id: endpoint for endpoint in pool.endpoints}
    assert len(before) == 10
    gone = next(iter(before))
    pool.apply(snapshot(number for number in range(100) if str(number) != gone))
    after = {endpoint.instance.id: endpoint for endpoint in pool.endpoints}
    assert (len(after), gone in after) == (10, False)
    assert all(after[name] is endpoint for name, endpoint in before.items() if name != gone)
    assert before[gone].retired
    await pool.aclose()


@pytest.mark.virtual_time
async def test_size_that_is_changed() -> None:
    """At once, and the smaller subset is part of the larger one."""
    pool = pool_of(100, 10)
    small = set(pool.endpoints)
    pool.configure(ClientSettings(subset=30))
    large = set(pool.endpoints)
    assert (len(large), small <= large) == (30, True)
    pool.configure(ClientSettings(subset=1000))
    assert len(pool.endpoints) == 100
    pool.configure(ClientSettings(subset=10))
    assert set(pool.endpoints) == small
    await asyncio.sleep(0)
    await pool.aclose()
