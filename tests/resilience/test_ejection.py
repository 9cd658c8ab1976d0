"""Endpoints that are taken out of use for what they do, and come back: a pool's suspects, panics, probes and sweeps."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections import Counter
from contextlib import AsyncExitStack
from typing import Any

import pytest

from framework import ClientSettings, Code, MethodSettings, Unavailable
from framework.client.breaker import State
from framework.client.endpoint import Endpoint
from framework.policy import (
    BreakerSettings,
    BudgetSettings,
    BulkheadSettings,
    OutlierSettings,
    RetrySettings,
)
from tests.resilience.lab import ARITIES, IDEMPOTENT, NO_HEDGE, QUICK, Lab, cancelled, fails, hangs, lab, says

pytestmark = pytest.mark.virtual_time

OFF = BreakerSettings(consecutive=0, failure_rate=0.0)
NO_RETRY = RetrySettings(attempts=1)
PLAIN: dict[str, Any] = {"retry": NO_RETRY, "balancer": "round_robin"}


def now() -> float:
    return asyncio.get_running_loop().time()


def names(here: Lab) -> list[str]:
    """The instances."""
    return [hosted.name for hosted in here.hosted]


def at(here: Lab, peer: str) -> Endpoint:
    return next(endpoint for endpoint in here.endpoints if endpoint.instance.address == peer)


def states(here: Lab) -> list[State]:
    """Of the breakers."""
    return [at(here, peer).breaker.state(now()) for peer in names(here)]


def in_use(here: Lab, picks: int = 60) -> set[str]:
    """Who is picked, without a call."""
    found = {endpoint.instance.address for _ in range(picks) if (endpoint := here.channel.pool.pick(now()))}
    return {peer for peer in names(here) if peer in found}


async def until_called(here: Lab, peer: str) -> float:
    """Calls go on until this instance gets one; when that was."""
    while (await calls(here, 3))[peer] == 0:  # noqa: ASYNC110  # virtual time
        await asyncio.sleep(0.2)
    return now()


async def calls(here: Lab, count: int, method: str = "UnaryUnary") -> Counter[str]:
    """So many calls one after the other, whatever becomes of them; who got how many."""
    here.calls.clear()
    for _ in range(count):
        await asyncio.gather(here.call(method, timeout=1000), return_exceptions=True)
    return Counter(here.peers)


@pytest.mark.parametrize("method", ARITIES)
@pytest.mark.parametrize("balancer", ["peak_ewma", "round_robin", "least_loaded", "weighted"])
async def test_five_failures_in_a_row(method: str, balancer: str) -> None:
    """An instance that fails every call gets five and no more, whatever the arity and the balancer."""
    async with lab(3, retry=NO_RETRY, balancer=balancer) as here:
        bad = names(here)[0]
        here.own[bad] = fails()
        counts: Counter[str] = Counter()
        for _ in range(60):
            counts += await calls(here, 1, method)
        assert counts[bad] <= 5
        if balancer != "peak_ewma":  # that one avoids it before
            assert counts[bad] == 5
            assert states(here) == [State.OPEN, State.CLOSED, State.CLOSED]
            assert in_use(here) == set(names(here)[1:])


async def test_visible_errors_of_idempotent_calls() -> None:
    """With retries nobody notices an instance that fails every call."""
    async with lab(5, retry=QUICK) as here:
        here.own[names(here)[0]] = fails()
        results = await asyncio.gather(*(here.call() for _ in range(50)), return_exceptions=True)
        for _ in range(200):
            results.append(await here.call())
        assert results == ["done"] * 250


async def test_probe_that_succeeds() -> None:
    """After its wait the instance gets one call, and when that is answered all that are due to it."""
    async with lab(3, **PLAIN) as here:
        bad = names(here)[0]
        here.own[bad] = fails()
        await calls(here, 30)
        assert states(here)[0] is State.OPEN
        await asyncio.sleep(4.9)
        assert (await calls(here, 30))[bad] == 0
        await asyncio.sleep(5.2)
        here.own[bad] = says(after=0.5)
        tasks = [asyncio.ensure_future(here.call()) for _ in range(30)]
        await asyncio.sleep(0.1)
        assert Counter(here.peers)[bad] == 1
        assert states(here)[0] is State.HALF_OPEN
        await asyncio.gather(*tasks)
        assert states(here)[0] is State.CLOSED
        assert (await calls(here, 30))[bad] == 10


async def test_probe_that_fails() -> None:
    """Case 19: each failed probe doubles the wait; an instance that has recovered begins at the first again."""
    async with lab(3, **PLAIN) as here:
        bad = names(here)[0]
        here.own[bad] = fails()
        await calls(here, 30)
        opened = now()
        for least, most in ((5, 10), (10, 20), (20, 40), (40, 80)):
            probed = await until_called(here, bad)
            assert least <= probed - opened <= most + 0.3
            opened = probed
        here.own.clear()
        await until_called(here, bad)
        assert states(here)[0] is State.CLOSED
        here.own[bad] = fails()
        await calls(here, 30)
        opened = now()
        assert 5 <= await until_called(here, bad) - opened <= 10.3


async def test_probe_that_never_ends() -> None:
    """Case 15: after the longest wait it counts as failed, and another one is sent later."""
    settings = BreakerSettings(probe_wait=3.0, open=5.0)
    async with lab(3, breaker=settings, **PLAIN) as here:
        bad = names(here)[0]
        here.own[bad] = fails()
        await calls(here, 30)
        here.own[bad] = hangs()
        here.calls.clear()
        probes: list[tuple[float, asyncio.Future[str]]] = []
        while len(probes) < 2:
            task = asyncio.ensure_future(here.call(timeout=1000))
            await asyncio.sleep(0.1)
            if not task.done():
                probes.append((now(), task))
        assert 3 + 10 <= probes[1][0] - probes[0][0] <= 3 + 20.2
        await asyncio.gather(*(cancelled(task) for _, task in probes))


async def test_probe_that_is_cancelled() -> None:
    """Given up before anybody would have had an answer: its permit is free again, and the next call is the probe."""
    async with lab(3, **PLAIN) as here:
        await here.history(0.1)
        bad = names(here)[0]
        here.own[bad] = fails()
        await calls(here, 30)
        await asyncio.sleep(10)
        del here.own[bad]
        here.calls.clear()
        tasks = [asyncio.ensure_future(here.call()) for _ in range(6)]
        await asyncio.sleep(0.05)
        assert here.peers.count(bad) == 1
        await cancelled(tasks[here.peers.index(bad)])
        assert states(here)[0] is State.HALF_OPEN
        assert (await calls(here, 6))[bad] >= 1
        assert states(here)[0] is State.CLOSED
        await asyncio.gather(*tasks, return_exceptions=True)


async def test_calls_that_began_before_it_opened() -> None:
    """Case 16: what they end with changes nothing, neither success nor failure."""
    async with lab(3, **PLAIN) as here:
        bad = names(here)[0]
        here.own[bad] = says(after=11)
        early = [asyncio.ensure_future(here.call(timeout=20)) for _ in range(9)]
        await asyncio.sleep(0.1)
        here.own[bad] = fails()
        await calls(here, 30)
        assert states(here)[0] is State.OPEN
        assert await asyncio.gather(*early) == ["done"] * 9
        assert states(here)[0] is State.OPEN
        assert at(here, bad).breaker.available(now())  # its wait is over: a probe may go


@pytest.mark.parametrize("code", [Code.NOT_FOUND, Code.INVALID_ARGUMENT, Code.ABORTED, Code.UNAUTHENTICATED])
async def test_answers_that_are_errors(code: Code) -> None:
    """They are answers: nothing is held against the instance."""
    async with lab(3, **PLAIN) as here:
        here.script(fails(code))
        await calls(here, 100)
        assert states(here) == [State.CLOSED] * 3
        assert [at(here, peer).host.failures for peer in names(here)] == [0, 0, 0]


async def test_exhausted_instance() -> None:
    """Case 17: RESOURCE_EXHAUSTED in a row opens nothing, but counts for the rate, and fails the probe."""
    async with lab(3, **PLAIN) as here:
        bad = names(here)[0]
        here.own[bad] = fails(Code.RESOURCE_EXHAUSTED)
        await calls(here, 3 * 19)
        assert states(here)[0] is State.CLOSED
        await calls(here, 3)
        assert states(here)[0] is State.OPEN
        await asyncio.sleep(10)
        assert (await calls(here, 12))[bad] == 1
        assert states(here)[0] is State.OPEN


async def test_rate_of_failures() -> None:
    """Every second call fails: five in a row is never reached, half of twenty is."""
    async with lab(3, **PLAIN) as here:
        bad = names(here)[0]
        odd = iter(range(1000))

        def half(context: Any) -> Any:
            return (fails() if next(odd) % 2 else says())(context)

        here.own[bad] = half
        await calls(here, 3 * 19)
        assert states(here)[0] is State.CLOSED
        await calls(here, 3)
        assert states(here)[0] is State.OPEN


async def test_hanging_instance() -> None:
    """Five calls that were given up long after all others are answered take it out, whoever gave them up."""
    async with lab(3, **PLAIN) as here:
        await here.history(0.01)
        mute = names(here)[0]
        here.own[mute] = hangs()
        here.calls.clear()
        for _ in range(30):
            await asyncio.gather(here.call(timeout=0.2), return_exceptions=True)
        assert Counter(here.peers)[mute] == 5
        assert states(here) == [State.OPEN, State.CLOSED, State.CLOSED]


async def test_hanging_instance_among_many() -> None:
    """With few calls, one in eight of which hang, what hangs does not become what is usual: five, and it is out."""
    async with lab(8, retry=RetrySettings(attempts=1), hedge=NO_HEDGE, balancer="round_robin") as here:
        await here.history(0.005)
        mute = names(here)[0]
        here.own[mute] = hangs()
        for _ in range(15):
            await asyncio.gather(*(here.call(timeout=0.1) for _ in range(8)), return_exceptions=True)
            await asyncio.sleep(0.1)
        assert here.peers.count(mute) == 5


async def test_hanging_instance_with_an_attempt_timeout() -> None:
    """So do five attempts that timed out; the calls themselves succeed elsewhere."""
    async with lab(3, balancer="round_robin", attempt_timeout=0.1, retry=QUICK) as here:
        mute = names(here)[0]
        here.own[mute] = hangs()
        here.calls.clear()
        assert [await here.call() for _ in range(30)] == ["done"] * 30
        assert Counter(here.peers)[mute] == 5


async def test_impatient_callers() -> None:
    """Calls that are given up sooner than most are answered say nothing about the instance."""
    async with lab(3, **PLAIN) as here:
        await here.history(0.1)
        for _ in range(40):
            await asyncio.gather(here.call(timeout=0.02), return_exceptions=True)
        for _ in range(40):
            task = asyncio.ensure_future(here.call())
            await asyncio.sleep(0.02)
            await cancelled(task)
        assert states(here) == [State.CLOSED] * 3
        assert [at(here, peer).host.failures for peer in names(here)] == [0, 0, 0]


async def test_failures_made_here() -> None:
    """A full bulkhead, a message that cannot be sent, an endpoint that is gone: nothing is held against anybody."""
    async with lab(2, bulkhead=BulkheadSettings(calls=1, queue=0), **PLAIN) as here:
        here.script(says(after=1))
        under_way = asyncio.ensure_future(here.call())
        await asyncio.sleep(0.1)
        for _ in range(50):
            assert (await here.fail()).code is Code.RESOURCE_EXHAUSTED
        await under_way
        for _ in range(50):
            with pytest.raises(Exception, match="UnaryUnary"):
                await here.client.UnaryUnary("no message")  # type: ignore[arg-type]  # on purpose
        assert states(here) == [State.CLOSED] * 2
        assert [(at(here, peer).host.failures, at(here, peer).breaker.row) for peer in names(here)] == [(0, 0)] * 2


async def test_method_that_does_not_count() -> None:
    """`breaker = false` for a method: its failures do not speak against the endpoint, its successes for it."""
    own = {"UnaryUnary": MethodSettings(breaker=False)}
    async with lab(3, ClientSettings(methods=own, retry=NO_RETRY, balancer="round_robin")) as here:
        here.script(fails())
        await calls(here, 100)
        assert states(here) == [State.CLOSED] * 3
        await calls(here, 15, "UnaryStream")
        assert states(here) == [State.OPEN] * 3


async def test_breaker_that_is_off() -> None:
    """Nothing opens."""
    off = ClientSettings.parse({"breaker": "off", "outlier": "off"}, "client")
    async with lab(3, breaker=off.breaker, outlier=off.outlier, **PLAIN) as here:
        here.script(fails())
        assert set((await calls(here, 300)).values()) == {100}
        assert states(here) == [State.CLOSED] * 3


async def test_slow_instance() -> None:
    """Where the settings say what slow is, half of twenty calls being so open the breaker."""
    async with lab(3, breaker=BreakerSettings(slow=0.5), **PLAIN) as here:
        here.own[names(here)[0]] = says(after=0.6)
        await asyncio.gather(*(here.call() for _ in range(60)))
        assert states(here) == [State.OPEN, State.CLOSED, State.CLOSED]


async def test_streams_that_break_count() -> None:
    """A stream that dies half way is a failure of its endpoint."""
    async with lab(3, **PLAIN) as here:
        bad = names(here)[0]
        here.own[bad] = fails(replies=2, pause=0.01)
        await calls(here, 30, "UnaryStream")
        assert states(here)[0] is State.OPEN
        assert (at(here, bad).host.failures, at(here, bad).host.successes) == (5, 0)


async def test_streams_that_are_closed_do_not() -> None:
    """Nobody is to blame when the reader has had enough."""
    async with lab(3, **PLAIN) as here:
        here.script(fails(replies=2, pause=1000))
        for _ in range(40):
            async with here.start("UnaryStream") as stream:
                await anext(stream)
        assert states(here) == [State.CLOSED] * 3
        assert [at(here, peer).host.failures for peer in names(here)] == [0, 0, 0]


async def test_long_stream_as_the_probe() -> None:
    """With its first reply the instance is back, though the stream goes on; it gets its share at once."""
    settings = BreakerSettings(probe_wait=3.0)
    async with lab(3, breaker=settings, **PLAIN) as here:
        bad = names(here)[0]
        here.own[bad] = fails()
        await calls(here, 30)
        here.script(fails(replies=1, pause=1000))
        here.own.clear()
        await asyncio.sleep(10)
        async with AsyncExitStack() as streams:
            for _ in range(12):
                stream = await streams.enter_async_context(here.start("UnaryStream"))
                assert (await anext(stream)).value == "0"
            assert states(here) == [State.CLOSED] * 3
            assert Counter(here.peers)[bad] >= 3
            await asyncio.sleep(20)
            assert states(here) == [State.CLOSED] * 3


async def test_few_of_many_streams_that_are_closed_fail() -> None:
    """Each that begins ends the row of failures, and counts for its instance among the others."""
    async with lab(3, **PLAIN) as here:
        for number in range(80):
            here.script(fails() if number % 8 < 2 else fails(replies=2, pause=1000))
            with contextlib.suppress(Unavailable):
                async with here.start("UnaryStream") as stream:
                    await anext(stream)
        assert states(here) == [State.CLOSED] * 3
        hosts = [at(here, peer).host for peer in names(here)]
        assert [sum(host.failures for host in hosts), sum(host.successes for host in hosts)] == [20, 60]


async def test_panic(caplog: pytest.LogCaptureFixture) -> None:
    """With fewer than half left all are used, which is logged once; half is no panic."""
    async with lab(4, **PLAIN) as here:
        first, second, third, fourth = names(here)
        here.own = {first: fails(), second: fails()}
        await calls(here, 40)
        assert in_use(here) == {third, fourth}
        here.own[third] = fails()
        await calls(here, 30)
        assert states(here) == [State.OPEN] * 3 + [State.CLOSED]
        assert in_use(here) == {first, second, third, fourth}
        assert caplog.text.count("3 of 4 endpoints of echo are suspect: all are used") == 1


async def test_panic_ends() -> None:
    """When one has recovered, the others are suspects again."""
    async with lab(4, **PLAIN) as here:
        first, second, third, fourth = names(here)
        here.own = {first: fails(), second: fails(), third: fails()}
        await calls(here, 60)
        assert len(in_use(here)) == 4
        here.own = {first: fails(), second: fails()}
        while states(here)[2] is not State.CLOSED:
            await calls(here, 4)
            await asyncio.sleep(0.1)
        await calls(here, 8)
        assert {third, fourth} <= in_use(here)
        assert len(in_use(here)) < 4


@pytest.mark.parametrize("count", [1, 2, 5])
async def test_never_all_out(count: int) -> None:
    """A client fails open: when every instance fails, every one is still called."""
    async with lab(count, **PLAIN) as here:
        here.script(fails())
        await calls(here, 10 * count)
        assert states(here) == [State.OPEN] * count
        assert set(await calls(here, 10 * count)) == set(names(here))
        here.script(says())
        for _ in range(count * 3):
            assert await here.call() == "done"


async def test_calls_of_a_panic_do_not_close_a_breaker() -> None:
    """They are made although it is open, and count neither way; its wait goes on."""
    async with lab(1, **PLAIN) as here:
        here.script(fails())
        await calls(here, 5)
        here.script(says())
        await calls(here, 20)
        assert states(here) == [State.OPEN]
        await asyncio.sleep(10)
        await calls(here, 1)
        assert states(here) == [State.CLOSED]


async def test_suspects_are_told() -> None:
    """An error of a service says which of its endpoints are out of use and why; one of the request does not."""
    async with lab(4, retry=QUICK, balancer="round_robin") as here:
        bad = names(here)[0]
        here.own[bad] = fails()
        await calls(here, 40)
        here.script(fails())
        error = await here.fail()
        assert f"out of use: {bad} (5 failures in a row)" in error.note
        assert str(error).endswith(f"(3 attempts: {', '.join(error.endpoints)}; {error.note})")
        here.script(fails(Code.NOT_FOUND))
        assert (await here.fail()).note == ""


async def test_comings_and_goings_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    """One line when an endpoint goes out of use, with the reason, and one when it is back."""
    async with lab(3, **PLAIN) as here:
        bad = names(here)[0]
        here.own[bad] = fails()
        with caplog.at_level(logging.INFO, "framework.client"):
            await calls(here, 30)
            here.own.clear()
            await asyncio.sleep(10)
            await calls(here, 30)
        told = [record.getMessage() for record in caplog.records if record.name == "framework.client"]
        assert told == [
            f"{bad} of echo is out of use: 5 failures in a row",
            f"{bad} of echo is in use again",
        ]


async def test_suspect_that_leaves() -> None:
    """An instance that the registry drops is no suspect any more; one that comes back begins anew."""
    async with lab(3, **PLAIN) as here:
        bad = names(here)[0]
        here.own[bad] = fails()
        await calls(here, 30)
        pool = here.channel.pool
        everything = {endpoint.instance.id: endpoint.instance for endpoint in here.endpoints}
        pool.apply({name: one for name, one in everything.items() if name != bad})
        assert pool.suspects(now()) == ""
        pool.apply(everything)
        assert states(here) == [State.CLOSED] * 3
        assert in_use(here) == set(names(here))


async def test_suspect_that_reconnects() -> None:
    """A connection that is lost and back changes nothing about a suspect: it waits for its probe."""
    async with lab(3, **PLAIN) as here:
        bad = names(here)[0]
        here.own[bad] = fails()
        await calls(here, 30)
        here.hosted[0].disconnect()
        here.hosted[0].reconnect()
        assert in_use(here) == set(names(here)[1:])


async def test_panic_counts_connected_ones() -> None:
    """Those that are not connected are no help: two suspects of three are a panic when the third is gone."""
    async with lab(4, **PLAIN) as here:
        first, second, third, fourth = names(here)
        here.own = {first: fails(), second: fails()}
        await calls(here, 40)
        assert in_use(here) == {third, fourth}
        here.hosted[3].disconnect()
        assert in_use(here) == {first, second, third}
        here.hosted[3].reconnect()
        assert in_use(here) == {third, fourth}


FIVE: dict[str, Any] = {
    "retry": NO_RETRY,
    "balancer": "round_robin",
    "breaker": OFF,
    "outlier": OutlierSettings(ejection_max=100),
}


async def sweep(here: Lab, load: int = 0) -> None:
    """Some calls, and the time until the next sweep passes."""
    await calls(here, load)
    await asyncio.sleep(10)
    here.channel.pool.pick(now())


async def test_one_of_five_fails() -> None:
    """Case 10: one instance whose calls fail is ejected at the next sweep, for 30 seconds."""
    async with lab(5, **FIVE) as here:
        here.channel.pool.pick(now())
        bad = names(here)[0]
        here.own[bad] = fails()
        assert set((await calls(here, 500)).values()) == {100}
        await sweep(here)
        assert in_use(here) == set(names(here)[1:])
        out = now()
        del here.own[bad]
        while bad not in in_use(here):
            await sweep(here, 20)
        assert now() - out == pytest.approx(30, abs=0.1)


async def test_two_of_five_fail() -> None:
    """Case 11: at most 10%, and one at least: exactly one is ejected, and stays the only one."""
    async with lab(5, **FIVE) as here:
        here.channel.pool.pick(now())
        here.own = dict.fromkeys(names(here)[:2], fails())
        for _ in range(2):
            await sweep(here, 500)
            assert sum(endpoint.host.ejected for endpoint in here.endpoints) == 1
            assert len(in_use(here)) == 4


async def test_ejections_grow() -> None:
    """Case 12: without decay the third takes 90 s; none takes longer than the longest."""
    async with lab(5, **FIVE) as here:
        here.channel.pool.pick(now())
        bad = names(here)[0]
        here.own[bad] = fails()
        times = []
        for _ in range(4):
            while not at(here, bad).host.ejected:
                await sweep(here, 500)
            out = now()
            while at(here, bad).host.ejected:
                await asyncio.sleep(1)
                here.channel.pool.pick(now())
            times.append(now() - out)
        assert times == [pytest.approx(seconds, abs=1.5) for seconds in (30, 60, 90, 100)]


async def test_ejection_and_breaker() -> None:
    """Case 10: two of five failing hide from ejection by success rate, and the breakers catch both."""
    async with lab(5, **{**FIVE, "breaker": BreakerSettings()}) as here:
        here.own = dict.fromkeys(names(here)[:2], fails())
        assert sorted((await calls(here, 500)).values())[:2] == [5, 5]
        assert in_use(here) == set(names(here)[2:])


async def test_ejected_and_told(caplog: pytest.LogCaptureFixture) -> None:
    """In the log, and in errors."""
    async with lab(5, **FIVE) as here:
        here.channel.pool.pick(now())
        bad = names(here)[0]
        here.own[bad] = fails()
        await sweep(here, 500)
        assert f"{bad} of echo is out of use: it fails more often than the others" in caplog.text
        here.script(fails())
        assert (await here.fail()).note.endswith(f"out of use: {bad} (an outlier)")


async def test_other_settings_while_calls_are_in_flight() -> None:
    """Breakers go by them from the next call on; what is known of endpoints stays, and every call ends as it should."""
    async with lab(3, **PLAIN) as here:
        bad = names(here)[0]
        here.script(says(after=1))
        under_way = [asyncio.ensure_future(here.call()) for _ in range(6)]
        await asyncio.sleep(0.1)
        strict = ClientSettings(
            breaker=BreakerSettings(consecutive=2), retry=NO_RETRY, balancer="round_robin", hedge=NO_HEDGE
        )
        here.channel.apply(strict)
        here.own[bad] = fails()
        assert await asyncio.gather(*under_way) == ["done"] * 6
        here.script(says())
        assert (await calls(here, 30))[bad] == 2
        here.channel.apply(ClientSettings(breaker=OFF, retry=NO_RETRY, balancer="round_robin", hedge=NO_HEDGE))
        assert (await calls(here, 30))[bad] == 0  # it is out until its wait is over
        await asyncio.sleep(10)
        del here.own[bad]
        assert (await calls(here, 30))[bad] == 10


async def test_new_instance_that_never_answers() -> None:
    """Case 2: it is picked exactly once while the others are answering."""
    async with lab(4, retry=NO_RETRY) as here:
        mute = names(here)[0]
        here.own[mute] = hangs()
        tasks = [asyncio.ensure_future(here.call(timeout=9)) for _ in range(3)]
        for _ in range(300):
            tasks.append(asyncio.ensure_future(here.call(timeout=9)))
            await asyncio.sleep(0.005)
        assert Counter(here.peers)[mute] == 1
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert results.count("done") == 302


async def test_thirty_percent_of_errors() -> None:
    """An instance that fails three calls of ten costs nearly no idempotent call, and is out within two sweeps."""
    rng = random.Random(3)
    async with lab(5, retry=QUICK, balancer="round_robin", retry_budget=BudgetSettings()) as here:
        bad = names(here)[0]
        here.own[bad] = lambda context: (fails() if rng.random() < 0.3 else says())(context)
        failed = done = 0
        while now() < 20.5:
            results = await asyncio.gather(*(here.call() for _ in range(10)), return_exceptions=True)
            failed += sum(isinstance(result, Unavailable) for result in results)
            done += results.count("done")
            await asyncio.sleep(0.05)
        assert failed <= 0.001 * done
        assert bad not in in_use(here)


async def test_many_things_at_once() -> None:
    """Failing, hanging, cancelled, late, hedged, retried, other settings: in the end nothing is in flight."""
    rng = random.Random(5)
    settings = [
        ClientSettings(methods=IDEMPOTENT, retry=QUICK, attempt_timeout=attempt_timeout, bulkhead=bulkhead)
        for attempt_timeout in (None, 0.2)
        for bulkhead in (BulkheadSettings(), BulkheadSettings(calls=5, queue=5))
    ]
    async with lab(5, settings[0]) as here:
        await here.history(0.01)
        steps = [
            says(after=0.01),
            says(after=0.3),
            fails(),
            fails(after=0.1),
            hangs(),
            fails(pushback="20"),
            fails(Code.NOT_FOUND),
        ]
        here.script(lambda context: rng.choice(steps)(context))
        tasks = []
        for _ in range(600):
            task = asyncio.ensure_future(here.call(rng.choice(ARITIES), timeout=rng.choice([0.05, 0.5, 2])))
            tasks.append(task)
            if rng.random() < 0.2:
                asyncio.get_running_loop().call_later(rng.random(), task.cancel)
            if rng.random() < 0.02:
                here.channel.apply(rng.choice(settings))
            if rng.random() < 0.02:
                hosted = rng.choice(here.hosted)
                hosted.disconnect()
                asyncio.get_running_loop().call_later(rng.random(), hosted.reconnect)
            await asyncio.sleep(rng.random() / 50)
        results = await asyncio.gather(*tasks, return_exceptions=True)
        kinds = Counter(type(result).__name__ for result in results)
        assert set(kinds) <= {
            "str",
            "CancelledError",
            "DeadlineExceeded",
            "Unavailable",
            "NotFound",
            "ResourceExhausted",
        }
        assert kinds["str"] > 100
        for hosted in here.hosted:
            hosted.reconnect()
        assert [endpoint.pending for endpoint in here.endpoints] == [0] * 5
        here.script(says())
        assert await here.call() == "done"
