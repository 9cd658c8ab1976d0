"""How soon calls follow the registry, and what many instances cost."""

from __future__ import annotations

import asyncio
import random
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

from bench.echo import UNARY, Echo
from bench.harness import Row, paired, single
from framework import ClientSettings, Drain, Instance, Registry, ServerSettings, Service, Settings, UnaryReply
from framework.client.balancer import BALANCERS
from framework.client.connect import connect
from framework.client.pool import Pool
from framework.discovery.targets import open_registry
from framework.discovery.watching import PushedWatch
from framework.policy import BalancerName

ROUNDS = 60
PAUSE = 0.002
"""Seconds between two calls of the load."""

QUIET = 0.3
"""Seconds in which calls to an instance that has left are looked for."""


class Counting(Echo):
    """Notes when it was called."""

    def __init__(self) -> None:
        self.first: asyncio.Future[float] = asyncio.get_running_loop().create_future()
        self.last = 0.0

    async def Unary(self, request: Any, context: Any) -> Any:
        self.last = time.perf_counter()
        if not self.first.done():
            self.first.set_result(self.last)
        return await super().Unary(request, context)


async def _follow(name: str, registry: Registry, goal: float) -> AsyncIterator[Row]:
    """Register and deregister instances under a steady load; `registry` is a second object, as in another process."""
    settings = Settings(registry="none", server=ServerSettings(drain=Drain(0, 1, 0.1)))
    appeared: list[float] = []
    left: list[float] = []
    failed = 0
    watching = open_registry(str(registry))
    base = Counting()

    async def load(channel: Any, stop: asyncio.Event) -> None:
        nonlocal failed
        handler = channel.bind(UNARY)
        while not stop.is_set():
            try:
                await UnaryReply(handler, UNARY, UNARY.request(value=b"x"))
            except Exception:
                failed += 1
            await asyncio.sleep(PAUSE)

    async with Service("echo", servicers=[base]).running(settings) as server:
        lease = await registry.register(Instance("base", "echo", server.address))
        async with connect("echo", registry=watching, settings=settings) as channel:
            stop = asyncio.Event()
            loading = asyncio.create_task(load(channel, stop))
            await base.first
            for number in range(ROUNDS):
                fresh = Counting()
                async with Service("echo", servicers=[fresh]).running(settings) as other:
                    own = await registry.register(Instance(f"echo-{number}", "echo", other.address))
                    start = time.perf_counter()
                    appeared.append(await fresh.first - start)
                    start = time.perf_counter()
                    await own.close()
                    await asyncio.sleep(QUIET)  # what is measured is that nothing comes any more
                    left.append(max(0.0, fresh.last - start))
            stop.set()
            await loading
        await lease.close()
    await watching.aclose()
    await registry.aclose()
    yield single(f"{name}.first_call.p99", "s", appeared, f"<= {goal}", quantile=0.99)
    yield single(f"{name}.last_call.p99", "s", left, f"<= {goal}", quantile=0.99)
    yield single(f"{name}.failed", "calls", [float(failed)], "<= 0")


async def local() -> AsyncIterator[Row]:
    """The registry in a file."""
    with tempfile.TemporaryDirectory() as folder:
        async for row in _follow("local", open_registry(f"sqlite:///{folder}/registry.db"), 0.3):
            yield row


async def consul() -> AsyncIterator[Row]:
    """A real Consul agent."""
    from tests.consul_agent import ConsulAgent

    with tempfile.TemporaryDirectory() as folder, ConsulAgent(Path(folder)) as agent:
        async for row in _follow("consul", open_registry(f"consul://{agent.address}"), 0.2):
            yield row


class Ready:
    """A transport that is always ready, or idle until it is dialled."""

    def __init__(self, ready: bool = True) -> None:
        self.ready = ready
        self.failed = self.outdated = False
        self.problem = ""
        self.dialled = False
        self.changed: Callable[[], None] = lambda: None

    def bind(self, method: Any) -> Any:
        raise NotImplementedError

    def connect(self) -> None:
        self.dialled = True

    async def aclose(self) -> None:
        pass


def _instances(count: int) -> dict[str, Instance]:
    return {f"i{number}": Instance(f"i{number}", "echo", f"10.0.0.1:{number}") for number in range(count)}


def _pool(name: BalancerName, count: int, ready: bool, dialled: list[Ready]) -> Pool:
    def dial(instance: Instance) -> Ready:
        dialled.append(Ready(ready))
        return dialled[-1]

    rng = random.Random(1)
    watch = PushedWatch("echo", "bench", set())
    pool = Pool("echo", watch, dial, ClientSettings(balancer=name), where="bench", rng=rng)
    pool.apply(_instances(count))
    return pool


async def picks() -> AsyncIterator[Row]:
    """One pick, and one change, among ten thousand."""
    for name in BALANCERS:
        few, many = (_pool(name, count, True, []) for count in (10, 10_000))
        yield await paired(
            f"pick.{name}.10000", "us/pick", _picking(many), "among 10", _picking(few), "<= 1.2", pairs=31
        )

    dialled: list[Ready] = []
    pool = _pool("peak_ewma", 10_000, False, dialled)
    for _ in range(10):
        pool.pick(0.0)
    woken = sum(transport.dialled for transport in dialled)
    yield single("instances.10000.connections", "after 10 picks", [float(woken)], "<= 20")

    pool = _pool("peak_ewma", 10_000, True, [])
    instances = _instances(10_000)  # a registry gives the same objects again where nothing has changed
    pool.apply(instances)
    samples = []
    for number in range(30):
        changed = {key: one for key, one in instances.items() if key != f"i{number}"}
        changed[f"n{number}"] = Instance(f"n{number}", "echo", f"10.0.0.2:{number}")
        start = time.perf_counter()
        pool.apply(changed)
        samples.append((time.perf_counter() - start) * 1000)
    yield single("instances.10000.change", "ms", samples, "<= 5")


def _picking(pool: Pool) -> Callable[[], Any]:
    rounds = 20_000

    async def measure() -> float:
        start = time.process_time()
        pick = pool.pick
        for number in range(rounds):
            pick(number * 1e-5)
        return (time.process_time() - start) / rounds * 1e6

    return measure
