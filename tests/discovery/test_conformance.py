"""What every registry does, on the local file and on a real Consul; the fixed list where nothing changes."""

from __future__ import annotations

import asyncio
import dataclasses
import signal
import sys
import threading
import uuid
from collections.abc import AsyncIterator, Callable

import pytest

from framework.discovery import Instance, Registry, Snapshot, Watch
from framework.discovery.targets import open_registry
from framework.errors import ConfigError


@pytest.fixture(params=["local", "consul"])
def url(request: pytest.FixtureRequest) -> str:
    """A registry that processes share; instances in Consul keep themselves alive, as no server runs here."""
    if request.param == "local":
        return f"sqlite:///{request.getfixturevalue('tmp_path')}/run/registry.db"
    return f"consul://{request.getfixturevalue('consul').address}?check=ttl&interval=0.5&hold=0.5"


@pytest.fixture
async def registry(url: str) -> AsyncIterator[Registry]:
    registry = open_registry(url)
    yield registry
    await registry.aclose()


@pytest.fixture
async def other(url: str) -> AsyncIterator[Registry]:
    """The same registry, as another process has it."""
    registry = open_registry(url)
    yield registry
    await registry.aclose()


@pytest.fixture(params=["local", "consul", "static"])
async def settled(request: pytest.FixtureRequest) -> AsyncIterator[tuple[Registry, str, Snapshot]]:
    """A registry, the name of a service, and its one instance, which stays."""
    service = name()
    one = Instance("127.0.0.1:7", service, "127.0.0.1:7")
    if request.param == "static":
        registry = open_registry("static://127.0.0.1:7")
    elif request.param == "local":
        registry = open_registry(f"sqlite:///{request.getfixturevalue('tmp_path')}/registry.db")
    else:
        registry = open_registry(
            f"consul://{request.getfixturevalue('consul').address}?check=ttl&interval=0.2&hold=0.1"
        )
    await registry.register(one)
    yield registry, service, {one.id: one}
    await registry.aclose()


DIES = """
import asyncio, sys
from framework.discovery import Instance
from framework.discovery.local import LocalRegistry
from framework.discovery.targets import open_registry

async def main(url, service):
    path = url.removeprefix("sqlite:///")
    registry = open_registry(url) if path == url else LocalRegistry(path, heartbeat=0.3, ttl=1.2)
    await registry.register(Instance(f"{service}-dies", service, "127.0.0.1:7002"))
    await asyncio.Event().wait()

asyncio.run(main(*sys.argv[1:]))
"""


def name() -> str:
    return f"catalog-{uuid.uuid4().hex[:8]}"


def instance(service: str, id: str = "a", address: str = "127.0.0.1:7001", version: str = "") -> Instance:
    return Instance(f"{service}-{id}", service, address, version)


async def until(watch: Watch, wanted: Callable[[Snapshot], bool], within: float = 10.0) -> Snapshot:
    """The first snapshot that is wanted."""
    async with asyncio.timeout(within):
        async for snapshot in watch:
            if wanted(snapshot):
                return snapshot
    raise AssertionError("the watch ended")


async def nothing_comes(watch: Watch, within: float = 0.3) -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(within):
            pytest.fail(f"a snapshot came: {await anext(watch)}")


async def test_first_snapshot_of_nobody_is_empty(registry: Registry) -> None:
    """A service that nobody registered has an empty first snapshot, at once."""
    async with asyncio.timeout(2):
        assert await anext(registry.watch(name())) == {}


async def test_registered_instance_appears(registry: Registry, other: Registry) -> None:
    """What one process registers, another that watches sees."""
    one = instance(name())
    watch = other.watch(one.service)
    assert await anext(watch) == {}
    await registry.register(one)
    assert await until(watch, bool) == {one.id: one}


async def test_every_field_arrives(registry: Registry, other: Registry) -> None:
    """All that an instance says of itself reaches those who watch."""
    service = name()
    one = Instance(
        id=f"{service}-[::1]:7001",
        service=service,
        address="[::1]:7001",
        version="1.2.0-rc1",
        zone="eu-1a",
        weight=25,
        protocol="grpc",
        tags=("canary", "blue"),
        metadata={"commit": "5ba1e", "owner": "größe & co", "empty": ""},
    )
    await registry.register(one)
    assert await until(other.watch(service), bool) == {one.id: one}


async def test_deregistered_instance_vanishes_alone(registry: Registry, other: Registry) -> None:
    """Closing a lease takes its instance away, and the others stay the objects they were."""
    service = name()
    leases = [await registry.register(instance(service, id)) for id in "abc"]
    watch = other.watch(service)
    before = await until(watch, lambda snapshot: len(snapshot) == 3)
    await leases[1].close()
    after = await until(watch, lambda snapshot: len(snapshot) < 3, within=2)
    assert set(before) - set(after) == {f"{service}-b"}
    assert all(after[id] is before[id] for id in after)


async def test_last_instance_vanishes(registry: Registry, other: Registry) -> None:
    """A service whose last instance has left has an empty snapshot."""
    one = instance(name())
    lease = await registry.register(one)
    watch = other.watch(one.service)
    assert await until(watch, bool)
    await lease.close()
    assert await anext(watch) == {}


async def test_two_watchers_agree(registry: Registry, other: Registry) -> None:
    """Two watches in one process and one in another end with the same snapshot."""
    service = name()
    watches = [registry.watch(service), registry.watch(service), other.watch(service)]
    for id in "abc":
        await registry.register(instance(service, id))
    seen = [await until(watch, lambda snapshot: len(snapshot) == 3) for watch in watches]
    assert seen[0] == seen[1] == seen[2]


async def test_cancelled_wait_loses_nothing(registry: Registry, other: Registry) -> None:
    """A reader that gives up waiting, again and again, still sees the next change."""
    one = instance(name())
    watch = other.watch(one.service)
    assert await anext(watch) == {}
    for _ in range(5):
        await nothing_comes(watch, within=0.02)
    await registry.register(one)
    for _ in range(500):
        try:
            async with asyncio.timeout(0.01):
                assert await anext(watch) == {one.id: one}
                break
        except TimeoutError:
            continue
    else:
        pytest.fail("the instance was never seen")


async def test_same_id_replaces(registry: Registry, other: Registry) -> None:
    """Registering an id again replaces its entry; closing the lease that lost it takes nothing away."""
    service = name()
    await registry.register(instance(service, "neighbour"))
    old = await registry.register(instance(service, version="1"))
    watch = other.watch(service)
    assert sorted(one.version for one in (await anext(watch)).values()) == ["", "1"]
    await other.register(instance(service, version="2"))
    assert sorted(one.version for one in (await anext(watch)).values()) == ["", "2"]
    await old.close()
    await nothing_comes(watch, within=0.8)


async def test_equal_snapshots_are_not_repeated(registry: Registry, other: Registry) -> None:
    """Registering what is there already, or another service, wakes nobody."""
    service = name()
    watch = other.watch(service)
    await registry.register(instance(service))
    assert await until(watch, bool)
    await registry.register(instance(service))
    await registry.register(instance(name()))
    await nothing_comes(watch)


async def test_slow_reader_sees_the_newest(registry: Registry, other: Registry) -> None:
    """A reader that was busy while much happened is not told the past."""
    service = name()
    slow, fast = other.watch(service), other.watch(service)
    assert await anext(slow) == {}
    for id in "abcd":
        await registry.register(instance(service, id))
    assert len(await until(fast, lambda snapshot: len(snapshot) == 4)) == 4
    await asyncio.sleep(0.2)  # the two watches of Consul are told separately
    assert len(await anext(slow)) == 4


async def test_killed_process_vanishes(registry: Registry, url: str) -> None:
    """The instance of a process that is killed goes away by itself, without touching the others."""
    service = name()
    await registry.register(instance(service, "stays"))
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", DIES, url, service)
    watch = registry.watch(service)
    try:
        await until(watch, lambda snapshot: len(snapshot) == 2)
        process.send_signal(signal.SIGKILL)
        left = await until(watch, lambda snapshot: len(snapshot) < 2, within=5)
        assert set(left) == {f"{service}-stays"}
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def test_services_lists_all(registry: Registry, other: Registry) -> None:
    """Every service is listed with the instances it has."""
    one, two = instance(name()), instance(name())
    await registry.register(one)
    await registry.register(two)
    found = await other.services()
    assert {service: found[service] for service in (one.service, two.service)} == {
        one.service: {one.id: one},
        two.service: {two.id: two},
    }


async def test_leases_close_in_any_order(registry: Registry) -> None:
    """Closing twice, at once, and after the registry is harmless."""
    first, second = [await registry.register(instance(name())) for _ in range(2)]
    await asyncio.gather(first.close(), first.close())
    await first.close()
    await registry.aclose()
    await registry.aclose()
    await second.close()


async def test_closed_registry_deregisters_what_is_left(registry: Registry, other: Registry) -> None:
    """A registry that is closed takes its instances along."""
    one = instance(name())
    await registry.register(one)
    await registry.aclose()
    assert one.id not in (await other.services()).get(one.service, {})


async def test_closing_leaves_nothing_behind(url: str) -> None:
    """After `aclose`, no task and no thread of the registry is left."""
    tasks, threads = asyncio.all_tasks(), set(threading.enumerate())
    registry = open_registry(url)
    await registry.register(instance(name()))
    waiting = asyncio.create_task(until(registry.watch(name()), bool))
    await anext(registry.watch(name()))
    await asyncio.sleep(0)
    await registry.aclose()
    with pytest.raises(AssertionError, match="ended"):
        await waiting
    assert asyncio.all_tasks() == tasks
    assert set(threading.enumerate()) <= threads


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"service": "no spaces"}, "Service name 'no spaces'"),
        ({"id": "a/b"}, "the id may not be empty or contain"),
        ({"address": ""}, "needs the address that clients dial"),
        ({"weight": 0}, "weight 0 is not between 1 and 100"),
        ({"metadata": {"zone": "x"}}, "metadata 'zone' is reserved"),
        ({"metadata": {"a.b": "x"}}, "metadata 'a.b': a key is at most"),
        ({"metadata": {"a": "x" * 513}}, "metadata 'a': a key is at most"),
    ],
)
async def test_invalid_instance_is_refused(registry: Registry, wrong: dict[str, object], message: str) -> None:
    """What Consul could not hold, no registry takes: the message names the field."""
    with pytest.raises(ConfigError, match=message):
        await registry.register(dataclasses.replace(instance(name()), **wrong))  # type: ignore[arg-type]  # on purpose


async def test_first_snapshot_is_complete(settled: tuple[Registry, str, Snapshot]) -> None:
    """The first snapshot has all that is there, on every watch."""
    registry, service, there = settled
    assert [await anext(registry.watch(service)) for _ in range(2)] == [there, there]


async def test_nothing_comes_while_nothing_changes(settled: tuple[Registry, str, Snapshot]) -> None:
    """After the first snapshot a watch is silent, through cancelled waits and signs of life."""
    registry, service, there = settled
    watch = registry.watch(service)
    assert await anext(watch) == there
    await nothing_comes(watch, within=0.1)
    await nothing_comes(watch, within=0.8)
    assert watch.problem == ""


async def test_closed_watch_ends_its_reader(settled: tuple[Registry, str, Snapshot]) -> None:
    """Closing a watch ends the loop that reads it, and closing it again is harmless."""
    registry, service, there = settled
    watch = registry.watch(service)
    assert await anext(watch) == there
    reader = asyncio.create_task(until(watch, bool))
    await asyncio.sleep(0)
    await watch.aclose()
    await watch.aclose()
    with pytest.raises(AssertionError, match="ended"):
        await reader
    with pytest.raises(StopAsyncIteration):
        await anext(watch)
