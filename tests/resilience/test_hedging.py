"""Idempotent calls that are made a second time when the first has no answer yet, in virtual time."""

from __future__ import annotations

import asyncio
import gc
import random
import weakref
from collections import Counter
from contextvars import ContextVar
from typing import Any

import pytest

from framework import Call, Code, DeadlineExceeded, Unavailable
from framework.call import Idempotency, Method, current
from framework.client.breaker import State
from framework.client.channel import ServiceChannel
from framework.client.pool import Pool
from framework.discovery import Instance
from framework.policy import BudgetSettings, BulkheadSettings, ClientSettings, HedgeSettings, RetrySettings
from framework.rpc import UnaryReply
from tests.client.simulation import FakeTransport
from tests.client.test_pool import Told
from tests.invariants.echo import text
from tests.resilience.lab import QUICK, Lab, cancelled, fails, hangs, lab, says

pytestmark = pytest.mark.virtual_time

HALF = HedgeSettings(delay=0.5, attempts=4)
SOON = HedgeSettings(delay=0.1)
NO_RETRY = RetrySettings(attempts=1)


def moments(here: Lab) -> list[Any]:
    """Milliseconds at which the calls arrived, since the first."""
    return [pytest.approx(1000 * (seen.moment - here.calls[0].moment), abs=0.1) for seen in here.calls]


async def test_one_more_after_each_delay() -> None:
    """Case 25: four attempts, 500 ms apart: 1, 2, 3 and 4 in flight at 1, 501, 1001 and 1501 ms, and no more."""
    async with lab(6, hedge=HALF) as here:
        here.script(hangs())
        call = asyncio.ensure_future(here.fail(timeout=3))
        in_flight = []
        await asyncio.sleep(0.001)
        for _ in range(5):
            in_flight.append((len(here.calls), sum(endpoint.pending for endpoint in here.endpoints)))
            await asyncio.sleep(0.5)
        assert in_flight == [(1, 1), (2, 2), (3, 3), (4, 4), (4, 4)]
        error = await call
        assert len(set(here.peers)) == 4
        assert [seen.previous for seen in here.calls] == [None, "1", "2", "3"]
        assert all(seen.cancelled for seen in here.calls)
        assert (type(error), set(error.endpoints)) == (DeadlineExceeded, set(here.peers))


async def test_failure_that_is_not_fatal_sends_the_next_at_once() -> None:
    """Case 25: the first fails after 100 ms: the next begins at 100, and the one after it at 600."""
    async with lab(6, hedge=HALF) as here:
        here.script(fails(after=0.1), hangs())
        assert (await here.fail(timeout=3)).code is Code.DEADLINE_EXCEEDED
        assert moments(here) == [0, 100, 600, 1100]


async def test_fatal_failure_is_the_error() -> None:
    """An attempt that fails with a code not to be retried ends the call, and the others are cancelled."""
    async with lab(6, hedge=HALF) as here:
        here.script(hangs(), hangs(), fails(Code.NOT_FOUND, after=0.1))
        error = await here.fail(timeout=10)
        assert error.code is Code.NOT_FOUND
        assert asyncio.get_running_loop().time() == pytest.approx(1.1, abs=0.01)
        await asyncio.sleep(5)
        assert [seen.cancelled for seen in here.calls] == [True, True, False]


async def test_hedge_wins() -> None:
    """Case 26: the reply of the hedge counts; the server sees the first one cancelled, which is not held against it."""
    async with lab(hedge=SOON) as here:
        here.script(hangs(), says("hedge", after=0.02))
        reply = here.start()
        assert (await reply).value == "hedge"
        assert asyncio.get_running_loop().time() == pytest.approx(0.12, abs=0.001)
        await asyncio.sleep(0.001)
        assert [seen.cancelled for seen in here.calls] == [True, False]
        assert here.calls[0].peer != here.calls[1].peer
        assert (reply.call.peer, reply.call.attempt) == (here.calls[1].peer, 2)
        loser = next(one for one in here.endpoints if one.instance.address == here.calls[0].peer)
        assert (loser.host.failures, loser.host.successes, loser.pending) == (0, 0, 0)
        assert repr(loser.breaker) == "<Breaker closed: 0 of 0 failed, 0 in a row>"


async def test_first_wins() -> None:
    """The hedge is the one that is cancelled."""
    async with lab(hedge=SOON) as here:
        here.script(says("first", after=0.15), hangs())
        assert await here.call() == "first"
        await asyncio.sleep(0.001)
        assert [seen.cancelled for seen in here.calls] == [False, True]
        assert [endpoint.host.failures for endpoint in here.endpoints] == [0, 0, 0]


async def test_metadata_is_that_of_the_winner() -> None:
    """Headers and trailers too."""
    async with lab(hedge=SOON) as here:
        own = {peer: _says_who(peer) for peer in (hosted.name for hosted in here.hosted)}
        here.own = own
        reply = here.start()
        await reply
        assert await reply.initial_metadata() == (("peer", here.calls[1].peer),)


def _says_who(peer: str) -> Any:
    """Sends its name as a header; who is asked first takes long."""
    asked: list[int] = []

    async def step(context: Any) -> Any:
        first = context.time_remaining() > 9.95
        asked.append(1)
        await asyncio.sleep(1.0 if first else 0.0)
        await context.send_initial_metadata((("peer", peer),))
        yield text(peer)

    return step


async def test_budget_is_empty() -> None:
    """Case 27: no hedge."""
    async with lab(hedge=SOON, retry_budget=BudgetSettings(ratio=0, per_second=0)) as here:
        here.script(says(after=1), says())
        assert await here.call() == "done"
        assert len(here.calls) == 1


async def test_budget_is_shared_with_retries() -> None:
    """What hedges have spent, retries do not have."""
    async with lab(hedge=SOON, retry=QUICK, retry_budget=BudgetSettings(ratio=0, per_second=1, ttl=2)) as here:
        for _ in range(2):
            here.script(says(after=0.15), hangs())
            await here.call()
            assert len(here.calls) == 2
        here.script(fails(), says())
        assert (await here.fail()).note == "not retried: the retry budget is used up"
        here.script(says(after=0.2), hangs())
        await here.call()
        assert len(here.calls) == 1


async def test_hedges_begin_where_nearly_all_calls_have_ended() -> None:
    """The delay is the percentile that leaves `extra_load`."""
    async with lab(hedge=HedgeSettings()) as here:
        await here.history(0.01)
        here.script(says(after=1.0), says())
        await here.call()
        first, second = here.calls
        assert 0.010 <= second.moment - first.moment <= 0.011


async def test_no_hedge_before_there_is_history() -> None:
    """Nothing is known to be slow after 19 calls."""
    async with lab(hedge=HedgeSettings()) as here:
        await here.history(0.01, calls=19)
        here.script(says(after=1.0))
        await here.call()
        assert len(here.calls) == 1


@pytest.mark.parametrize("extra_load", [0.02, 0.1])
async def test_extra_load(extra_load: float) -> None:
    """Of many calls, no larger share is made twice than the settings say."""
    rng = random.Random(1)
    budget = BudgetSettings(ratio=1, per_second=1000)
    async with lab(5, hedge=HedgeSettings(extra_load=extra_load), retry_budget=budget) as here:
        loop = asyncio.get_running_loop()

        async def caller() -> None:
            while loop.time() < 10:
                await here.call()
                await asyncio.sleep(rng.expovariate(20))

        def varying(context: Any) -> Any:
            return says(after=rng.lognormvariate(-4, 0.5))(context)

        here.script(varying)
        await asyncio.gather(*(caller() for _ in range(20)))
        hedges = sum(seen.previous is not None for seen in here.calls)
        calls = len(here.calls) - hedges
        assert 0.5 * extra_load <= hedges / calls <= 1.2 * extra_load


@pytest.mark.parametrize("method", ["UnaryUnary", "UnaryStream", "StreamUnary", "StreamStream"])
async def test_what_is_not_hedged(method: str) -> None:
    """Only a method that is idempotent and has one message each way is."""
    for idempotent in (False, True):
        async with lab(hedge=SOON, idempotent=idempotent) as here:
            here.script(says(after=1))
            assert await here.call(method) == "done"
            assert len(here.calls) == (2 if idempotent and method == "UnaryUnary" else 1)


async def test_nowhere_to_go() -> None:
    """The instance that has the call is not sent it again."""
    async with lab(1, hedge=SOON) as here:
        here.script(says(after=1))
        assert await here.call() == "done"
        assert len(here.calls) == 1
    async with lab(2, hedge=HedgeSettings(delay=0.1, attempts=5)) as here:
        here.script(says(after=1))
        await here.call()
        assert len(here.calls) == 2


async def test_no_time_left() -> None:
    """A hedge that could not end before the deadline is not sent."""
    async with lab(hedge=SOON) as here:
        await here.history(0.05)
        here.script(hangs())
        await here.fail(timeout=0.14)
        assert len(here.calls) == 1


@pytest.mark.parametrize(
    ("code", "pushback"),
    [
        *((Code.UNAVAILABLE, "-1"), (Code.UNAVAILABLE, "50")),
        *((Code.RESOURCE_EXHAUSTED, "-1"), (Code.RESOURCE_EXHAUSTED, "50"), (Code.RESOURCE_EXHAUSTED, "")),
    ],
)
async def test_server_that_asks_not_to(code: Code, pushback: str) -> None:
    """After a pushback, or a server without room, no more hedges are sent; the call waits for those that are out."""
    async with lab(6, hedge=HALF) as here:
        here.script(says("first", after=2.0), fails(code, pushback=pushback), says("late"))
        assert await here.call(timeout=5) == "first"
        assert len(here.calls) == 2
    async with lab(6, hedge=HALF) as here:
        here.script(fails(code, after=1.0, pushback=pushback), says("hedge", after=1.0), says("late", after=5.0))
        assert await here.call(timeout=5) == "hedge"


@pytest.mark.parametrize(("pushback", "calls"), [("-1", 2), ("", 2), ("50", 3)])
async def test_no_server_has_room(pushback: str, calls: int) -> None:
    """When the last one that is out has failed, retries take over: they go by what that one said."""
    async with lab(6, hedge=SOON, retry=QUICK) as here:
        full = fails(Code.RESOURCE_EXHAUSTED, after=0.15, pushback=pushback)
        here.script(full, full, says("third"))
        if calls == 3:
            assert await here.call(timeout=5) == "third"
        else:
            assert (await here.fail(timeout=5)).code is Code.RESOURCE_EXHAUSTED
        assert len(here.calls) == calls


async def test_all_fail() -> None:
    """Then retries take over, with a backoff, up to the attempts of the settings; the error knows all of them."""
    async with lab(hedge=SOON, retry=QUICK) as here:
        here.script(fails(after=0.15), fails(after=0.1), fails())
        error = await here.fail()
        assert (type(error), error.attempts, list(error.endpoints)) == (Unavailable, 3, here.peers)
        assert error.note.startswith("not retried: 3 attempts are the most")
        assert [seen.previous for seen in here.calls] == [None, "1", "2"]
    async with lab(hedge=SOON, retry=QUICK) as here:
        here.script(fails(after=0.15), fails(after=0.1), says("third"))
        reply = here.start()
        assert (await reply).value == "third"
        assert (reply.call.attempt, reply.call.peer) == (3, here.peers[2])


async def test_one_fails_while_the_other_is_out() -> None:
    """The call waits for the one that is out: a failure is no answer."""
    scripts = [says("first", after=0.5), fails()], [fails(after=0.2), says("hedge", after=0.5)]
    for script in scripts:
        async with lab(hedge=SOON, retry=NO_RETRY) as here:
            here.script(*script)
            assert await here.call() in ("first", "hedge")
            assert len(here.calls) == 2


async def test_chain_stop() -> None:
    """Nothing is hedged on behalf of a call that is a retry itself."""
    async with lab(hedge=SOON) as here:
        here.script(says(after=1))
        serving = Call(Method("a.A", "Serve", str, str), "")
        serving.attempt = 2
        token = current.set(serving)
        try:
            await here.call()
        finally:
            current.reset(token)
        assert len(here.calls) == 1


@pytest.mark.parametrize("moment", [0.05, 0.1, 0.15, 0.55])
async def test_cancelled_at_any_moment(moment: float) -> None:
    """Before, at and after the hedge: everything that is out is cancelled, at the servers too."""
    limits = BulkheadSettings(calls=1, queue=0)
    async with lab(6, hedge=HedgeSettings(delay=0.1, attempts=4), bulkhead=limits) as here:
        here.script(hangs())
        reply = here.start()
        task = asyncio.ensure_future(reply)
        await asyncio.sleep(moment)
        await cancelled(task)
        await asyncio.sleep(0.001)
        assert (here.idle, [seen.cancelled for seen in here.calls]) == (True, [True] * len(here.calls))
        assert reply.call.outcome.code is Code.CANCELLED
        begun = len(here.calls)
        await asyncio.sleep(5)
        assert len(here.calls) == begun
        here.script(says())
        assert await here.call() == "done"  # there is room again


async def test_cancelled_when_the_first_has_failed() -> None:
    """While only a hedge is out."""
    async with lab(hedge=SOON) as here:
        here.script(fails(), hangs())
        task = asyncio.ensure_future(here.call())
        await asyncio.sleep(0.05)
        assert len(here.calls) == 2
        await cancelled(task)
        await asyncio.sleep(0.001)
        assert (here.idle, here.calls[1].cancelled) == (True, True)


async def test_answer_and_hedge_at_the_same_moment() -> None:
    """The answer wins, and nothing is left of the hedge."""
    async with lab(hedge=SOON) as here:
        here.script(says("first", after=0.1), hangs())
        assert await here.call() == "first"
        await asyncio.sleep(1)
        assert here.idle


async def test_all_answer_at_the_same_moment() -> None:
    """One reply."""
    async with lab(6, hedge=HedgeSettings(delay=0.1, attempts=3)) as here:
        here.script(says("a", after=0.3), says("b", after=0.2), says("c", after=0.1))
        assert await here.call() in ("a", "b", "c")
        await asyncio.sleep(0)


async def test_one_call_takes_one_room() -> None:
    """Of the bulkhead: however often it is sent."""
    async with lab(hedge=SOON, bulkhead=BulkheadSettings(calls=2, queue=0)) as here:
        here.script(says(after=0.5), says(after=0.5), says(after=1))
        assert list(await asyncio.gather(here.call(), here.call())) == ["done", "done"]
        assert len(here.calls) == 4


async def test_attempt_timeout_of_a_hedged_call() -> None:
    """An attempt that timed out is one that failed: the next begins."""
    async with lab(hedge=HedgeSettings(delay=1.0), attempt_timeout=0.2, retry=NO_RETRY) as here:
        here.script(hangs(), says("second", after=0.1))
        assert await here.call(timeout=5) == "second"
        assert moments(here) == [0, 200]


async def test_first_attempt_that_was_not_sent() -> None:
    """It goes elsewhere at no cost, and the hedge is still there for an answer that does not come."""
    picks: Counter[str] = Counter()

    async def refuse(call: Call) -> str:
        raise Unavailable("the connection is gone", sent=False)

    def answering(name: str) -> Any:
        async def answer(call: Call) -> str:
            picks[name] += 1
            future = asyncio.get_running_loop().create_future()
            call.give_up = lambda: future.set_exception(Unavailable("given up"))
            if picks.total() == 1:
                await future
            return name

        return answer

    settings = ClientSettings(hedge=SOON, retry_budget=BudgetSettings(ratio=0, per_second=1, ttl=1))
    for seed in range(10):
        picks.clear()
        transports = {f"e{n}": FakeTransport() for n in range(4)}
        pool = Pool(
            "catalog",
            Told(),
            lambda one, to=transports: to[one.id],  # type: ignore[misc]  # bound to this turn of the loop
            settings,
            where="here",
            rng=random.Random(seed),
        )
        pool.apply({name: Instance(name, "catalog", f"{name}:1") for name in transports})
        for name, transport in transports.items():
            transport.answer = refuse if name in ("e0", "e1") else answering(name)
        channel = ServiceChannel(pool, settings, rng=random.Random(seed))
        method = Method("shop.Catalog", "Get", str, str, idempotency=Idempotency.IDEMPOTENT)
        start = asyncio.get_running_loop().time()
        assert await UnaryReply(channel.bind(method), method, "a") in ("e2", "e3")
        assert asyncio.get_running_loop().time() - start == pytest.approx(0.1, abs=0.001)
        assert sorted(picks.values()) == [1, 1]
        await channel.close()


@pytest.mark.parametrize("given_up", [False, True])
async def test_first_attempt_that_finds_no_other_endpoint(given_up: bool) -> None:
    """It looks for one until the hedge has its answer: that is the reply, at once. Who cancels has cancelled both."""
    transports = {name: FakeTransport() for name in ("e0", "e1")}
    pool = Pool(
        *("catalog", Told(), lambda one: transports[one.id], ClientSettings()), where="here", rng=random.Random(1)
    )
    pool.apply({name: Instance(name, "catalog", f"{name}:1") for name in transports})
    seen: list[Call] = []

    async def answer(call: Call) -> str:
        seen.append(call)
        if len(seen) > 1:
            await asyncio.sleep(0.1)
            return "hedge"
        await asyncio.sleep(0.15)
        for transport in transports.values():
            transport.become()
        raise Unavailable("the connection is gone", sent=False)

    for transport in transports.values():
        transport.answer = answer
    settings = ClientSettings(hedge=SOON)
    method = Method("shop.Catalog", "Get", str, str, idempotency=Idempotency.IDEMPOTENT)
    async with ServiceChannel(pool, settings, rng=random.Random(1)) as channel:
        start, tasks = asyncio.get_running_loop().time(), asyncio.all_tasks()
        call = asyncio.ensure_future(_made(channel, method))
        await asyncio.sleep(0.16)
        assert not call.done()
        if given_up:
            await cancelled(call)
        else:
            assert await call == "hedge"
            assert asyncio.get_running_loop().time() - start == pytest.approx(0.2, abs=0.001)
        await asyncio.sleep(0.001)
        assert asyncio.all_tasks() - tasks - {pool._follower} == set()
        assert [endpoint.pending for endpoint in pool.endpoints] == [0, 0]


async def _made(channel: ServiceChannel, method: Method[str, str]) -> str:
    return await UnaryReply(channel.bind(method), method, "a", 3.0)


async def test_hanging_instance_is_found_by_its_hedges() -> None:
    """An instance that never answers is out of use after five calls that another one answered instead."""
    async with lab(3, hedge=HedgeSettings(), balancer="round_robin", retry_budget=BudgetSettings(ratio=1)) as here:
        await here.history(0.01)
        mute = here.hosted[0].name
        here.own[mute] = hangs()
        for _ in range(30):
            assert await here.call() == "done"
        assert here.peers.count(mute) == 5
        [endpoint] = [one for one in here.endpoints if one.instance.address == mute]
        assert endpoint.breaker.state(asyncio.get_running_loop().time()) is State.OPEN


async def test_delay_that_has_become_shorter() -> None:
    """A call is hedged when its own delay has passed, and not when that of a slower one before it has."""
    async with lab(5, hedge=HedgeSettings(), bulkhead=BulkheadSettings(calls=0)) as here:
        await here.history(1.0)
        here.script(hangs(), says(after=0.01))
        before = asyncio.ensure_future(here.call())
        await asyncio.sleep(0.001)
        assert len(here.calls) == 1
        await asyncio.gather(*(here.call() for _ in range(3000)))
        await asyncio.sleep(0.2)  # the delay is looked up now and then
        here.script(says("late", after=0.5), says("hedge"))
        start = asyncio.get_running_loop().time()
        assert await here.call() == "hedge"
        assert asyncio.get_running_loop().time() - start < 0.012
        await before


async def test_hedge_that_fails_sends_the_next_at_once() -> None:
    """The first hangs, the hedge fails with a code to retry: the next hedge begins at once and its reply counts."""
    async with lab(6, hedge=HALF) as here:
        here.script(hangs(), fails(after=0.1), says("third", after=0.02))
        assert (await here.start(timeout=10)).value == "third"
        assert moments(here) == [0, 500, 600]


async def test_timer_keeps_no_caller_alive() -> None:
    """While there are always calls to watch, what the first of them had in its context is let go all the same."""

    class Thing:
        pass

    async def call(thing: Any) -> None:
        known.set(thing)
        await here.call(timeout=0.2)  # the loop keeps a timer that was cancelled until its time has come

    known: ContextVar[Any] = ContextVar("known")
    async with lab(6, hedge=SOON) as here:
        here.script(says(after=0.06))
        first = Thing()
        left = weakref.ref(first)
        tasks = [asyncio.ensure_future(call(first))]
        del first
        for _ in range(20):
            await asyncio.sleep(0.03)
            tasks.append(asyncio.ensure_future(call(None)))
        tasks[0] = tasks[-1]
        gc.collect()
        assert left() is None
        await asyncio.gather(*tasks)
