"""The endpoints of a service, as its registry reports them, and calls that meet them in every state."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from framework import (
    Call,
    Cancelled,
    ClientSettings,
    Code,
    DeadlineExceeded,
    Instance,
    Method,
    RpcError,
    Service,
    Unavailable,
)
from framework.call import Idempotency, Outcome
from framework.client.balancer import BALANCERS
from framework.client.breaker import Treatment
from framework.client.channel import ServiceChannel
from framework.client.pool import Pool
from framework.discovery import Snapshot
from framework.policy import BalancerName
from framework.rpc import UnaryReply
from framework.testing import Network
from tests.client.simulation import FakeTransport
from tests.invariants.echo import Blocked, Echo, EchoClient, text

pytestmark = pytest.mark.virtual_time

GET = Method("shop.Catalog", "Get", str, str)
READ = Method("shop.Catalog", "Read", str, str, idempotency=Idempotency.NO_SIDE_EFFECTS)
WATCH = Method("shop.Catalog", "Watch", str, str, server_streaming=True)


class Told:
    """A watch that shows what the test tells it."""

    def __init__(self) -> None:
        self.problem = ""
        self.closed = False
        self._queue: asyncio.Queue[Snapshot | Exception] = asyncio.Queue()

    def tell(self, *instances: Instance) -> None:
        self._queue.put_nowait({instance.id: instance for instance in instances})

    def fail(self, error: Exception) -> None:
        self._queue.put_nowait(error)

    def __aiter__(self) -> Told:
        return self

    async def __anext__(self) -> Snapshot:
        said = await self._queue.get()
        if isinstance(said, Exception):
            raise said
        return said

    async def aclose(self) -> None:
        self.closed = True


def instance(name: str, address: str = "", **fields: Any) -> Instance:
    return Instance(name, "catalog", address or f"{name}:1", **fields)


class Site:
    """A channel whose registry and transports the test plays."""

    def __init__(
        self, balancer: BalancerName = "peak_ewma", *, on_connect: Callable[[FakeTransport], None] | None = None
    ):
        self.watch = Told()
        self.transports: dict[str, FakeTransport] = {}
        self._on_connect = on_connect or (lambda transport: transport.become(ready=True))
        rng = random.Random(1)
        pool = Pool(
            "catalog", self.watch, self._dial, ClientSettings(balancer=balancer), where="registry://here", rng=rng
        )
        self.pool = pool
        self.channel = ServiceChannel(pool, ClientSettings())

    def _dial(self, instance: Instance) -> FakeTransport:
        transport = self.transports[instance.address] = FakeTransport(ready=False)
        transport.on_connect = self._on_connect
        return transport

    async def tell(self, *names: str) -> None:
        """A snapshot of instances of these names arrives."""
        self.watch.tell(*map(instance, names))
        await asyncio.sleep(0.001)

    def call(self, request: str = "a", *, method: Method[str, str] = GET, timeout: float | None = None) -> Any:
        return UnaryReply(self.channel.bind(method), method, request, timeout)

    def at(self, name: str) -> FakeTransport:
        return self.transports[f"{name}:1"]


@asynccontextmanager
async def site(balancer: BalancerName = "peak_ewma", **options: Any) -> AsyncIterator[Site]:
    """A site whose channel is open."""
    one = Site(balancer, **options)
    async with one.channel:
        await asyncio.sleep(0)
        yield one


def fail(transport: FakeTransport) -> None:
    """What a connection to a dead instance does: it fails a moment later."""
    asyncio.get_running_loop().call_later(0.01, lambda: transport.become(failed=True))


def nothing(transport: FakeTransport) -> None:
    """What a connection to an instance behind a silent firewall does."""


def test_method_with_its_types_spelled_out() -> None:
    """`Method[Req, Res](...)` is a Method like any other."""
    assert Method[str, str]("shop.Catalog", "Get", str, str).full_name == "shop.Catalog/Get"


async def test_connections_of_the_others_are_kept() -> None:
    """A new set of instances touches only those that came or went."""
    async with site() as here:
        await here.tell("a", "b", "c")
        before = dict(here.transports)
        await here.tell("b", "c", "d")
        assert here.at("b") is before["b:1"]
        assert here.at("c") is before["c:1"]
        assert [name for name, transport in before.items() if transport.closed] == ["a:1"]
        assert sorted(endpoint.instance.id for endpoint in here.pool.endpoints) == ["b", "c", "d"]


async def test_instance_that_says_something_new_of_itself() -> None:
    """A change of version or metadata keeps the connection; a change of address makes a new one."""
    async with site() as here:
        here.watch.tell(instance("a"))
        await asyncio.sleep(0.001)
        first = here.at("a")
        here.watch.tell(instance("a", version="2"))
        await asyncio.sleep(0.001)
        [endpoint] = here.pool.endpoints
        assert (endpoint.transport, endpoint.instance.version, first.closed) == (first, "2", False)
        here.watch.tell(instance("a", "elsewhere:2"))
        await asyncio.sleep(0.001)
        [endpoint] = here.pool.endpoints
        assert (endpoint.instance.address, first.closed) == ("elsewhere:2", True)


async def test_instance_that_speaks_something_else_from_now_on() -> None:
    """It is dialled anew, as its protocol says how."""
    async with site() as here:
        here.watch.tell(instance("a"))
        await asyncio.sleep(0.001)
        first = here.at("a")
        here.watch.tell(instance("a", protocol="grpcs"))
        await asyncio.sleep(0.001)
        [endpoint] = here.pool.endpoints
        assert (endpoint.transport is first, first.closed) == (False, True)
        assert (endpoint.transport, endpoint.instance.protocol) == (here.at("a"), "grpcs")


async def test_vanished_instance_finishes_its_calls() -> None:
    """An instance that the registry drops gets no new calls, ends those it has, and is closed after the last."""
    async with site() as here:
        await here.tell("a")
        go = asyncio.Event()

        async def slow(call: Call) -> str:
            await go.wait()
            return "done"

        await here.call()
        here.at("a").answer = slow
        calls = [asyncio.ensure_future(here.call()) for _ in range(3)]
        await asyncio.sleep(0.001)
        await here.tell("b")
        assert await here.call("b") == "b"
        assert not here.at("a").closed
        go.set()
        assert await asyncio.gather(*calls) == ["done"] * 3
        await asyncio.sleep(0)
        assert here.at("a").closed


async def test_instance_that_comes_back() -> None:
    """An instance that was dropped and comes back is used again."""
    async with site() as here:
        for names in (["a"], ["b"], ["a"], ["b"]):
            await here.tell(*names)
            assert await here.call() == "a"
        assert [here.at(name).closed for name in "ab"] == [True, False]


async def test_call_before_the_first_snapshot() -> None:
    """A call made before anything is known waits, and goes when instances appear."""
    async with site() as here:
        call = asyncio.ensure_future(here.call())
        await asyncio.sleep(3)
        assert not call.done()
        await here.tell("a")
        assert await call == "a"


async def test_confirmed_empty_set() -> None:
    """No instance at all is UNAVAILABLE at once, and says which service in which registry."""
    async with site() as here:
        here.watch.tell()
        start = asyncio.get_running_loop().time()
        with pytest.raises(Unavailable) as caught:
            await here.call()
        assert asyncio.get_running_loop().time() == start
        error = caught.value
        assert error.message == "no instance of catalog in registry://here"
        assert (error.remote, error.sent, error.method) == (False, False, "shop.Catalog/Get")


async def test_registry_with_a_problem() -> None:
    """A registry that cannot be asked is UNAVAILABLE at the deadline, with the reason: never its own error."""
    async with site() as here:
        here.watch.problem = "consul at 1.2.3.4: connection refused"
        with pytest.raises(Unavailable) as caught:
            await here.call(timeout=0.5)
        assert "catalog" in caught.value.message
        assert "consul at 1.2.3.4: connection refused" in caught.value.message
        assert (caught.value.remote, caught.value.sent) == (False, False)
        assert asyncio.get_running_loop().time() == pytest.approx(0.5, abs=0.01)


async def test_registry_that_says_nothing() -> None:
    """A registry that only is slow is DEADLINE_EXCEEDED at the deadline."""
    async with site() as here:
        with pytest.raises(DeadlineExceeded) as caught:
            await here.call(timeout=0.5)
        assert (caught.value.remote, caught.value.sent) == (False, False)
        assert "registry://here" in caught.value.message


async def test_last_known_instances_stay_in_use() -> None:
    """While the registry has a problem, calls go to the instances known last."""
    async with site() as here:
        await here.tell("a")
        here.watch.problem = "down"
        assert await here.call() == "a"


@pytest.mark.parametrize("method", [GET, READ], ids=["not idempotent", "idempotent"])
async def test_call_that_was_not_sent_goes_elsewhere(method: Method[str, str]) -> None:
    """A call that provably was not sent goes to another endpoint, whatever its method is; nobody gets it twice."""
    received: list[int] = []

    async def refuse(call: Call) -> str:
        raise Unavailable("the connection is gone", sent=False, method=method.full_name, attempts=call.attempt)

    async def accept(call: Call) -> str:
        received.append(call.attempt)
        return "done"

    async with site() as here:
        await here.tell("a", "b", "c")
        for name in "abc":
            here.at(name).become(ready=True)
            here.at(name).answer = accept if name == "c" else refuse
        assert [await here.call(method=method) for _ in range(20)] == ["done"] * 20
    assert len(received) == 20
    assert set(received) <= {1, 2, 3}
    assert not any(endpoint.pending for endpoint in here.pool.endpoints)


async def test_call_that_was_sent_stays_failed() -> None:
    """A call that may have reached a server is not sent again."""
    received: list[str] = []

    async def lose(call: Call) -> str:
        received.append(call.request)
        raise Unavailable("connection lost", method=GET.full_name, attempts=1)

    async with site() as here:
        await here.tell("a", "b")
        for name in "ab":
            here.at(name).answer = lose
        with pytest.raises(Unavailable, match="connection lost"):
            await here.call()
    assert received == ["a"]


async def test_call_that_nobody_takes() -> None:
    """When every endpoint turned the call down unsent, that is the failure."""

    async def refuse(call: Call) -> str:
        raise Unavailable("the connection is gone", sent=False, method=GET.full_name, attempts=call.attempt)

    async with site() as here:
        await here.tell("a", "b", "c")
        for name in "abc":
            here.at(name).answer = refuse
        with pytest.raises(Unavailable) as caught:
            await here.call()
        assert caught.value.sent is False


async def test_all_unreachable() -> None:
    """When no instance can be reached the call fails fast, and says where they were."""
    async with site(on_connect=fail) as here:
        await here.tell("a", "b")
        for _ in range(2):
            start = asyncio.get_running_loop().time()
            with pytest.raises(Unavailable) as caught:
                await here.call()
            assert asyncio.get_running_loop().time() - start < 0.6
            assert caught.value.message == "cannot connect to catalog at a:1, b:1 (instances from registry://here)"
            assert (caught.value.remote, caught.value.sent) == (False, False)


async def test_many_unreachable() -> None:
    """Of many addresses the message names a few."""
    async with site(on_connect=fail) as here:
        await here.tell(*(f"n{number}" for number in range(8)))
        with pytest.raises(Unavailable, match=r"at n0:1, n1:1, n2:1, n3:1, n4:1 and 3 more"):
            await here.call()


async def test_silent_network() -> None:
    """When no connection comes about, but none fails either, the deadline ends the call."""
    async with site(on_connect=nothing) as here:
        await here.tell("a", "b")
        with pytest.raises(DeadlineExceeded) as caught:
            await here.call(timeout=0.5)
        assert (caught.value.remote, caught.value.sent) == (False, False)
        assert asyncio.get_running_loop().time() == pytest.approx(0.5, abs=0.01)


async def test_one_of_many_answers() -> None:
    """A call that begins with dead and silent instances goes on to the one that lives, within its deadline."""
    async with site(on_connect=nothing) as here:
        await here.tell(*(f"n{number}" for number in range(20)))
        for name, transport in here.transports.items():
            transport.on_connect = (lambda t: t.become(ready=True)) if name == "n7:1" else nothing
        assert await here.call(timeout=5) == "a"


async def test_instance_that_appears_while_a_call_waits() -> None:
    """A call that waits for connections takes the first instance that is ready, known from the start or not."""
    async with site(on_connect=nothing) as here:
        await here.tell("a")
        call = asyncio.ensure_future(here.call())
        await asyncio.sleep(1)
        here.watch.tell(instance("a"), instance("b"))
        await asyncio.sleep(0.3)
        here.at("b").become(ready=True)
        assert await call == "a"


@pytest.mark.parametrize("balancer", BALANCERS)
async def test_only_ready_ones_are_picked(balancer: BalancerName) -> None:
    """While any endpoint is ready, no other is picked, whatever states they go through."""
    rng = random.Random(5)
    async with site(balancer, on_connect=nothing) as here:
        await here.tell(*"abcdefgh")
        for _ in range(500):
            transport = here.at(rng.choice("abcdefgh"))
            transport.become(ready=rng.random() < 0.3, failed=rng.random() < 0.3)
            ready = {t for t in here.transports.values() if t.ready}
            endpoint = here.pool.pick(0.0)
            if ready:
                assert endpoint is not None
                assert endpoint.transport in ready
            else:
                assert endpoint is None


@pytest.mark.parametrize(
    ("balancer", "dead"),
    [
        ("peak_ewma", 0),
        ("peak_ewma", 1),
        ("peak_ewma", 3),
        ("round_robin", 0),
        ("round_robin", 1),
        ("round_robin", 3),
    ],
)
async def test_even_shares_among_the_living(balancer: BalancerName, dead: int) -> None:
    """The ready endpoints share evenly, dead ones beside them or not."""
    async with site(balancer, on_connect=nothing) as here:
        await here.tell(*"abcdef")
        for name in "abcdef"[dead:]:
            here.at(name).become(ready=True)
        picks: Counter[str] = Counter()
        for _ in range(6000):
            endpoint = here.pool.pick(0.0)
            assert endpoint is not None
            picks[endpoint.instance.id] += 1
        fair = 6000 / (6 - dead)
        assert sorted(picks) == list("abcdef"[dead:])
        assert min(picks.values()) > 0.8 * fair
        assert max(picks.values()) < 1.2 * fair


async def test_ten_thousand_instances() -> None:
    """Connections are opened only to instances that a pick has looked at."""
    async with site() as here:
        await here.tell(*(f"n{number}" for number in range(10_000)))
        assert sum(transport.connects for transport in here.transports.values()) == 0
        for _ in range(50):
            await here.call()
        assert sum(transport.ready for transport in here.transports.values()) <= 3 + 2 * 50


async def test_stream_holds_its_endpoint() -> None:
    """A stream counts as in flight until it ends, and not only until it begins."""
    async with Network() as network:
        network.add(Service("echo", servicers=[Echo(Blocked(replies=1))]))
        async with network.connect("echo") as channel:
            reply = EchoClient(channel).UnaryStream(text("a"))
            await anext(reply)
            assert [endpoint.pending for endpoint in channel.pool.endpoints] == [1]
            del reply
            assert [endpoint.pending for endpoint in channel.pool.endpoints] == [0]


async def test_closing_ends_calls_in_flight() -> None:
    """Closing a channel cancels what is in flight on it, and closes every connection."""
    async with site() as here:
        await here.tell("a", "b")
        for name in "ab":
            here.at(name).answer = _hang
        calls = [asyncio.ensure_future(here.call()) for _ in range(4)]
        await asyncio.sleep(0.01)
        await here.channel.close()
        assert here.at("a").closed
        assert here.at("b").closed
        assert here.watch.closed
        for call in calls:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)


async def _hang(call: Call) -> str:
    await asyncio.get_running_loop().create_future()
    return "never"


async def test_closing_closes_what_still_finishes() -> None:
    """That includes the connection of an instance that had vanished, but had calls to finish."""
    async with site() as here:
        await here.tell("a")
        here.at("a").answer = _hang
        call = asyncio.ensure_future(here.call())
        await asyncio.sleep(0.01)
        await here.tell("b")
        await here.channel.close()
        assert here.at("a").closed
        call.cancel()


@pytest.mark.parametrize("known", [True, False])
async def test_closing_ends_calls_that_wait(known: bool) -> None:
    """A call that waits for instances or for a connection ends when its channel is closed."""
    async with site(on_connect=nothing) as here:
        if known:
            await here.tell("a")
        call = asyncio.ensure_future(here.call(timeout=1000))
        await asyncio.sleep(0.1)
        await here.channel.close()
        await asyncio.wait([call], timeout=1.0)
        assert call.done()
        with pytest.raises((Unavailable, Cancelled), match="closed"):
            await call


async def test_call_on_a_closed_channel() -> None:
    """A call on a closed channel fails at once and says so."""
    async with site() as here:
        await here.tell("a")
        await here.channel.close()
        with pytest.raises((Unavailable, Cancelled), match="the channel to catalog is closed") as caught:
            await here.call()
        assert not caught.value.sent


async def test_closing_twice() -> None:
    """A channel may be closed again."""
    async with site() as here:
        await here.tell("a")
        await here.channel.close()
        await here.channel.close()


async def test_without_async_with() -> None:
    """A channel works without `async with` too: the first call opens it."""
    here = Site()
    here.watch.tell(instance("a"))
    assert await here.call() == "a"
    await here.channel.close()


async def test_cancelled_while_it_waits() -> None:
    """A call cancelled while it waits for an instance leaves nothing in flight."""
    async with site(on_connect=nothing) as here:
        await here.tell("a")
        call = here.call()
        task = asyncio.ensure_future(call)
        await asyncio.sleep(0.1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert call.call.outcome.code is Code.CANCELLED
        assert [endpoint.pending for endpoint in here.pool.endpoints] == [0]


async def test_handler_that_raises_something_else() -> None:
    """Whatever a transport raises, the call is not in flight any more."""

    async def explode(call: Call) -> str:
        raise ZeroDivisionError

    async with site() as here:
        await here.tell("a")
        here.at("a").answer = explode
        with pytest.raises(ZeroDivisionError):
            await here.call()
        assert [endpoint.pending for endpoint in here.pool.endpoints] == [0]


async def test_readiness_that_comes_and_goes() -> None:
    """A connection that breaks takes its endpoint out of use until it is back."""
    async with site(on_connect=nothing) as here:
        await here.tell("a", "b")
        here.at("a").become(ready=True)
        here.at("b").become(ready=True)
        here.at("a").become(failed=True)
        assert {_picked(here) for _ in range(20)} == {"b"}
        here.at("a").become(ready=True)
        assert {_picked(here) for _ in range(50)} == {"a", "b"}


def _picked(here: Site) -> str:
    endpoint = here.pool.pick(0.0)
    assert endpoint is not None
    return endpoint.instance.id


async def test_failure_of_the_watch_itself(caplog: pytest.LogCaptureFixture) -> None:
    """A watch that breaks is logged; the instances known last stay in use."""
    async with site() as here:
        await here.tell("a")
        here.watch.fail(RuntimeError("a defect"))
        await asyncio.sleep(0.001)
        assert await here.call() == "a"
    assert "following catalog in registry://here failed" in caplog.text


async def test_errors_are_of_the_family() -> None:
    """Whatever keeps a call from being made is an RpcError with its method."""
    async with site() as here:
        here.watch.tell()
        with pytest.raises(RpcError) as caught:
            await here.call()
        assert caught.value.method == "shop.Catalog/Get"


class Counting(Pool):
    """Counts how often it goes through its suspects."""

    looks = 0

    def _review(self, now: float) -> None:
        self.looks += 1
        super()._review(now)

    def _plan(self) -> None:
        self.looks += 1
        super()._plan()


async def many_suspects(count: int) -> Counting:
    """A pool of connected endpoints, all out of use by their breakers."""
    settings = ClientSettings()
    rng = random.Random(1)
    pool = Counting("catalog", Told(), lambda _: FakeTransport(ready=True), settings, where="registry://here", rng=rng)
    pool.apply({str(number): instance(str(number)) for number in range(count)})
    pool.pick(0.0)
    for endpoint in pool.endpoints:
        for _ in range(settings.breaker.consecutive):
            permit = endpoint.begin(0.0)
            endpoint.failed(0.0, permit, 0.1, Outcome(Code.UNAVAILABLE), Treatment.FAILURE, 0.1)
            pool.judge(endpoint, 0.0)
    pool.looks = 0
    return pool


async def test_a_change_of_one_endpoint_looks_at_no_other() -> None:
    """With a thousand suspects, what becomes due is looked for once, and not again for each of them."""
    pool = await many_suspects(100)
    for endpoint in pool.endpoints:
        pool.probe(endpoint, 1.0)
    assert pool.looks == 0
    pool.pick(9.9)  # the sweep is not due yet, and most of the breakers are
    assert pool.looks == 2
    await pool.aclose()


async def test_an_ejected_endpoint_is_looked_at_by_the_sweep_alone() -> None:
    """That its breaker's wait is over as well is nothing to look at with every pick."""
    pool = await many_suspects(3)
    for endpoint in pool.endpoints:
        endpoint.host.eject(0.0)
    pool.pick(10.5)  # a sweep, and every breaker's wait is over
    pool.looks = 0
    for step in range(100):
        pool.pick(10.6 + step / 100)
    assert pool.looks == 0
    await pool.aclose()
