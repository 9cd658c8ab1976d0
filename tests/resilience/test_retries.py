"""Calls that fail and are made again, in virtual time."""

from __future__ import annotations

import asyncio
import itertools
import random
from typing import Any

import pytest

from framework import Call, ClientSettings, Code, DeadlineExceeded, Instance, MethodSettings, Unavailable
from framework.call import OK, Idempotency, Method, current
from framework.client.balancer import BALANCERS
from framework.client.channel import ServiceChannel
from framework.client.pool import Pool
from framework.errors import BY_CODE
from framework.policy import FAILURES, BackoffSettings, BalancerName, BudgetSettings, RetrySettings
from framework.rpc import UnaryReply
from tests.client.simulation import FakeTransport
from tests.client.test_pool import Told
from tests.resilience.lab import ARITIES, IDEMPOTENT, NO_HEDGE, PREVIOUS, QUICK, Lab, cancelled, fails, hangs, lab, says

pytestmark = pytest.mark.virtual_time

NOT_OK = [code for code in Code if code is not Code.OK]


def gaps(here: Lab) -> list[float]:
    """Milliseconds between the calls that the instances saw."""
    return [1000 * (b.moment - a.moment) for a, b in itertools.pairwise(here.calls)]


async def test_idempotent_call_is_made_again_elsewhere() -> None:
    """After UNAVAILABLE, a backoff later, on another instance, which is told that it is the second attempt."""
    async with lab() as here:
        here.script(fails(), says("second"))
        reply = here.start()
        assert (await reply).value == "second"
        first, second = here.calls
        assert first.peer != second.peer
        assert [first.previous, second.previous] == [None, "1"]
        assert 80 <= gaps(here)[0] <= 120
        assert (reply.call.attempt, reply.call.peer) == (2, second.peer)


@pytest.mark.parametrize("method", ARITIES)
async def test_call_that_is_not_idempotent_never_runs_twice(method: str) -> None:
    """Whatever its arity: what may have reached a server is not sent again, and the error says why."""
    async with lab(idempotent=False) as here:
        here.script(fails(), says())
        error = await here.fail(method)
        assert len(here.calls) == 1
        assert (type(error), error.sent, error.attempts) == (Unavailable, True, 1)
        if method != "StreamStream":  # that one has its headers when its requests have been read, and so has begun
            assert error.endpoints == (here.peers[0],)
            assert error.note.startswith("not retried: ")


@pytest.mark.parametrize("method", ARITIES)
async def test_call_that_is_idempotent_runs_twice_unless_its_requests_are_a_stream(method: str) -> None:
    """An iterable is read once: nobody has the requests any more."""
    async with lab() as here:
        here.script(fails(), says())
        if method.startswith("Stream"):
            error = await here.fail(method)
            note = "not retried: its requests were sent as a stream" if method == "StreamUnary" else ""
            assert (len(here.calls), error.note) == (1, note)
        else:
            assert await here.call(method) == "done"
            assert [seen.texts for seen in here.calls] == [["a"], ["a"]]


@pytest.mark.parametrize("method", ARITIES)
async def test_lost_connection_is_a_failure_after_sending(method: str) -> None:
    """A call in flight on an instance that dies is not made again unless it is idempotent."""
    for idempotent in (False, True):
        async with lab(idempotent=idempotent) as here:
            here.script(hangs(), says())
            call = asyncio.ensure_future(_outcome(here, method))
            await asyncio.sleep(0.01)
            next(hosted for hosted in here.hosted if hosted.name == here.peers[0]).disconnect()
            again = idempotent and not method.startswith("Stream")
            assert await call == ("done" if again else Code.UNAVAILABLE)
            assert len(here.calls) == (2 if again else 1)


async def _outcome(here: Lab, method: str, timeout: float | None = None) -> str | Code:
    try:
        return await here.call(method, timeout=timeout)
    except BY_CODE[Code.UNAVAILABLE] as error:
        return error.code


@pytest.mark.parametrize("code", NOT_OK, ids=lambda code: code.name)
async def test_codes_that_are_retried(code: Code) -> None:
    """Those with which an instance says that it is broken, and no others."""
    async with lab() as here:
        here.script(fails(code), says())
        if code in FAILURES:
            assert await here.call() == "done"
        else:
            assert (await here.fail()).code is code
        assert len(here.calls) == (2 if code in FAILURES else 1)


async def test_codes_of_the_settings() -> None:
    """Which codes are retried can be said."""
    retry = RetrySettings(codes=frozenset({Code.ABORTED}), backoff=QUICK.backoff)
    async with lab(retry=retry) as here:
        here.script(fails(Code.ABORTED), fails(Code.UNAVAILABLE), says())
        assert (await here.fail()).code is Code.UNAVAILABLE
        assert len(here.calls) == 2


async def test_waits_grow_and_are_jittered() -> None:
    """Case 21: retries 1 to 5 wait in [80,120] [160,240] [320,480] [640,960] [800,1200] ms."""
    async with lab(retry=RetrySettings(attempts=6)) as here:
        here.script(fails())
        for _ in range(10):
            here.calls.clear()
            await here.fail()
            expected = [(80, 120), (160, 240), (320, 480), (640, 960), (800, 1200)]
            assert [low <= gap <= high for gap, (low, high) in zip(gaps(here), expected, strict=True)] == [True] * 5


@pytest.mark.parametrize("idempotent", [True, False])
async def test_pushback_is_obeyed_exactly(idempotent: bool) -> None:
    """Case 22: "250" is exactly 250 ms, idempotent or not, and the wait after it is the initial one again."""
    async with lab(idempotent=idempotent, retry=RetrySettings(attempts=5)) as here:
        here.script(fails(pushback="250"), says())
        assert await here.call() == "done"
        assert gaps(here) == [pytest.approx(250, abs=0.01)]
    async with lab(retry=RetrySettings(attempts=5)) as here:
        here.script(fails(), fails(), fails(pushback="250"), fails(), says())
        assert await here.call() == "done"
        assert gaps(here)[2] == pytest.approx(250, abs=0.01)
        assert 80 <= gaps(here)[3] <= 120


@pytest.mark.parametrize("method", ["UnaryUnary", "UnaryStream"])
@pytest.mark.parametrize("said", ["-1", "abc", "1.5", ""])
async def test_pushback_that_forbids(method: str, said: str) -> None:
    """Case 22: after "-1" or what cannot be read there is no retry, and the error says that the server asked for it."""
    async with lab() as here:
        here.script(fails(pushback=said) if said else fails(Code.RESOURCE_EXHAUSTED), says())
        error = await here.fail(method)
        assert len(here.calls) == 1
        assert error.note == ("not retried: the server asked not to" if said else "")


async def test_pushback_of_an_overloaded_server() -> None:
    """RESOURCE_EXHAUSTED alone is final; with pushback it is made again, which is how servers shed."""
    async with lab(idempotent=False) as here:
        here.script(fails(Code.RESOURCE_EXHAUSTED, pushback="20"), says())
        assert await here.call() == "done"
        assert gaps(here) == [pytest.approx(20, abs=0.01)]


async def test_pushback_counts_as_an_attempt_and_costs_budget() -> None:
    """A server that always says "come back" is not asked for ever."""
    async with lab(idempotent=False) as here:
        here.script(fails(pushback="1"))
        error = await here.fail()
        assert (len(here.calls), error.note) == (3, "not retried: 3 attempts are the most")
    async with lab(idempotent=False, retry_budget=BudgetSettings(ratio=0, per_second=0)) as here:
        here.script(fails(pushback="1"))
        assert (await here.fail()).note == "not retried: the retry budget is used up"
        assert len(here.calls) == 1


async def test_attempts_are_limited_and_told() -> None:
    """Three attempts, and the error says so, with the instances in order."""
    async with lab(retry=QUICK) as here:
        here.script(fails())
        error = await here.fail()
        assert (error.attempts, list(error.endpoints)) == (3, here.peers)
        assert error.note == "not retried: 3 attempts are the most"
        assert [seen.previous for seen in here.calls] == [None, "1", "2"]
        assert f"(3 attempts: {', '.join(here.peers)}; not retried: 3 attempts are the most)" in str(error)


@pytest.mark.parametrize("balancer", BALANCERS)
async def test_attempts_go_to_instances_not_tried_yet(balancer: BalancerName) -> None:
    """As long as there are any, whatever the balancer would rather have."""
    own = ClientSettings(
        balancer=balancer,
        retry=RetrySettings(attempts=5, backoff=QUICK.backoff),
        retry_budget=BudgetSettings(per_second=1000),
        methods={"UnaryUnary": MethodSettings(idempotent=True, breaker=False, hedge=NO_HEDGE)},
    )
    async with lab(5, own) as here:
        here.script(fails())
        for _ in range(20):
            here.calls.clear()
            await here.fail()
            assert len(set(here.peers)) == 5


async def test_the_only_instance_is_tried_again() -> None:
    """Better than nothing."""
    async with lab(1, retry=QUICK) as here:
        here.script(fails(), fails(), says())
        assert await here.call() == "done"
        assert len(here.calls) == 3


@pytest.mark.parametrize("pause", [0.0, 0.01])
@pytest.mark.parametrize("what", [{"header": True}, {"replies": 1}], ids=["headers", "a reply"])
async def test_stream_is_committed_with_its_headers(what: dict[str, Any], pause: float) -> None:
    """Case 23: headers, then UNAVAILABLE: no retry, a moment later or at once."""
    async with lab() as here:
        here.script(fails(pause=pause, **what), says())
        assert (await here.fail("UnaryStream")).code is Code.UNAVAILABLE
        assert len(here.calls) == 1


async def test_stream_that_fails_before_its_headers() -> None:
    """It is made again like any other call, and its replies are those of the attempt that was answered."""
    async with lab() as here:
        here.script(fails(), says("second"))
        stream = here.start("UnaryStream")
        assert [message.value async for message in stream] == ["second"]
        assert (len(here.calls), here.calls[1].previous, stream.call.attempt) == (2, "1", 2)


async def test_header_and_trailer_are_those_of_the_last_attempt() -> None:
    """What a failed attempt sent is not mixed into it."""
    async with lab() as here:
        here.script(fails(header=True), says())
        reply = here.start()
        await reply
        assert await reply.initial_metadata() == ()


async def test_no_time_for_a_backoff() -> None:
    """Case 24: 50 ms are left and the backoff is 80 at least: the last error, at once."""
    async with lab() as here:
        here.script(fails(after=0.05), says())
        loop = asyncio.get_running_loop()
        start = loop.time()
        error = await here.fail(timeout=0.1)
        assert loop.time() - start == pytest.approx(0.05, abs=0.001)
        assert (error.code, len(here.calls)) == (Code.UNAVAILABLE, 1)
        assert error.note == "not retried: 50 ms are left, too little for another attempt"


async def test_no_time_for_an_answer() -> None:
    """What is left must be enough for the backoff and for the usual latency of the method."""
    async with lab() as here:
        await here.history(0.2)
        for timeout, attempts in ((0.29, 1), (0.4, 2)):
            here.script(fails(), says(after=0.2))
            await asyncio.gather(here.call(timeout=timeout), return_exceptions=True)
            assert len(here.calls) == attempts


async def test_every_attempt_has_what_is_left_of_the_deadline() -> None:
    """The deadline is that of the call, not of the attempt."""
    async with lab() as here:
        here.script(fails(after=0.1), fails(after=0.1), hangs())
        error = await here.fail(timeout=1.0)
        assert asyncio.get_running_loop().time() == pytest.approx(1.0, abs=0.01)
        assert (type(error), error.attempts, list(error.endpoints)) == (DeadlineExceeded, 3, here.peers)
        remaining = [seen.remaining for seen in here.calls]
        waits = [seen.moment for seen in here.calls]
        assert remaining == [pytest.approx(1.0 - moment, abs=0.002) for moment in waits]


async def test_deadline_of_the_call_is_final() -> None:
    """A call whose time is over is not made again."""
    async with lab() as here:
        here.script(hangs())
        error = await here.fail(timeout=0.5)
        assert (type(error), error.attempts, len(here.calls), error.note) == (DeadlineExceeded, 1, 1, "")


@pytest.mark.parametrize("idempotent", [True, False])
async def test_attempt_timeout(idempotent: bool) -> None:
    """An attempt that takes too long is given up; the call is made again if it is idempotent, with all of its time."""
    async with lab(idempotent=idempotent, attempt_timeout=0.2) as here:
        here.script(hangs(), says(after=0.15))
        if idempotent:
            assert await here.call(timeout=1.0) == "done"
            assert [seen.cancelled for seen in here.calls] == [True, False]
            assert here.calls[1].remaining == pytest.approx(0.2, abs=0.001)
        else:
            error = await here.fail(timeout=1.0)
            assert asyncio.get_running_loop().time() == pytest.approx(0.2, abs=0.01)
            assert (error.code, len(here.calls)) == (Code.DEADLINE_EXCEEDED, 1)
            assert error.note.startswith("not retried: it may have been executed")


async def test_attempt_timeout_longer_than_the_deadline() -> None:
    """Then the deadline ends the call, once."""
    async with lab(attempt_timeout=0.5) as here:
        here.script(hangs())
        assert (await here.fail(timeout=0.3)).code is Code.DEADLINE_EXCEEDED
        assert asyncio.get_running_loop().time() == pytest.approx(0.3, abs=0.01)
        assert len(here.calls) == 1


async def test_budget() -> None:
    """A client without success has `per_second * ttl` retries; then calls fail with their own error, which says why."""
    async with lab(retry=QUICK, retry_budget=BudgetSettings(ratio=0.5, per_second=1, ttl=4)) as here:
        here.script(fails())
        errors = [await here.fail() for _ in range(3)]
        assert [error.attempts for error in errors] == [3, 3, 1]
        assert [error.code for error in errors] == [Code.UNAVAILABLE] * 3
        assert errors[2].note.startswith("not retried: the retry budget is used up")
        here.script(says())
        assert [await here.call() for _ in range(4)] == ["done"] * 4
        here.script(fails())
        assert [(await here.fail()).attempts for _ in range(2)] == [3, 1]  # 4 successes have earned two


async def test_budget_of_all_methods() -> None:
    """Case 20, at the client: 10 a second and a tenth of what succeeds, whichever method asks, and no more."""
    settings = BudgetSettings(ratio=0.1, per_second=10, ttl=1)
    methods = {name: MethodSettings(idempotent=True, breaker=False) for name in ARITIES}
    at_once = RetrySettings(attempts=10, backoff=BackoffSettings(initial=0, maximum=0))
    async with lab(retry=at_once, retry_budget=settings, methods=methods) as here:
        here.script(says())
        await asyncio.gather(*(here.call() for _ in range(1000)))
        here.script(fails())
        for number in range(30):
            await here.fail("UnaryStream" if number % 2 else "UnaryUnary")
        assert asyncio.get_running_loop().time() < 0.1
        assert len(here.calls) - 30 == 110


async def test_retries_that_wait_are_paid_for() -> None:
    """A retry costs when it is decided on, and not when its backoff is over."""
    async with lab(retry_budget=BudgetSettings(ratio=0, per_second=1, ttl=2)) as here:
        here.script(*[fails()] * 5, says())
        results = await asyncio.gather(*(here.call() for _ in range(5)), return_exceptions=True)
        assert results.count("done") == 2
        assert asyncio.get_running_loop().time() <= 0.13


@pytest.mark.parametrize(("attempt", "made"), [(1, 3), (2, 1)])
async def test_one_layer_of_a_chain_retries(attempt: int, made: int) -> None:
    """What is called while a retry is being served is not retried: three layers would make 27 of one call."""
    async with lab(retry=QUICK) as here:
        here.script(fails())
        serving = Call(Method("a.A", "Serve", str, str), "")
        serving.attempt = attempt
        token = current.set(serving)
        try:
            error = await here.fail()
        finally:
            current.reset(token)
        assert len(here.calls) == made
        assert error.note == (
            "not retried: 3 attempts are the most"
            if attempt == 1
            else "not retried: the call being served is a retry itself"
        )


async def test_task_left_behind_by_a_retry_may_retry() -> None:
    """The chain stops with the call being served, not with what it left behind."""
    async with lab(retry=QUICK) as here:
        here.script(fails(), says())
        serving = Call(Method("a.A", "Serve", str, str), "")
        serving.attempt = 2
        serving.end(OK)
        token = current.set(serving)
        try:
            assert await here.call() == "done"
        finally:
            current.reset(token)


async def test_cancelled_in_a_backoff() -> None:
    """Nothing is sent any more, and nothing is in flight."""
    async with lab(retry=RetrySettings(backoff=BackoffSettings(initial=5, maximum=5))) as here:
        here.script(fails(), says())
        reply = here.start()
        task = asyncio.ensure_future(reply)
        await asyncio.sleep(1)
        await cancelled(task)
        assert reply.call.outcome is not None
        assert (reply.call.outcome.code, len(here.calls), here.idle) == (Code.CANCELLED, 1, True)
        await asyncio.sleep(60)
        assert len(here.calls) == 1


async def test_channel_closed_in_a_backoff() -> None:
    """The call ends when its backoff does, and says that the channel is closed."""
    async with lab() as here:
        here.script(fails(), says())
        task = asyncio.ensure_future(here.fail())
        await asyncio.sleep(0.05)
        await here.channel.close()
        error = await task
        assert "is closed" in error.message
        assert (error.sent, error.attempts, len(here.calls)) == (True, 1, 1)


async def test_other_settings_while_a_call_waits() -> None:
    """A call in its backoff goes on as it began; the next one goes by the new settings."""
    async with lab() as here:
        here.script(fails(), fails(), says())
        under_way = asyncio.ensure_future(here.call())
        await asyncio.sleep(0.05)
        off = ClientSettings(retry=RetrySettings(attempts=1), hedge=NO_HEDGE, methods=IDEMPOTENT)
        here.channel.apply(off)
        error = await here.fail()
        assert (error.attempts, error.note) == (1, "")
        assert await under_way == "done"


def channel_of(*transports: FakeTransport, budget: BudgetSettings) -> ServiceChannel:
    """A channel over transports that the test plays."""
    settings = ClientSettings(retry_budget=budget, hedge=NO_HEDGE)
    made = iter(transports)
    pool = Pool("catalog", Told(), lambda instance: next(made), settings, where="here", rng=random.Random(1))
    pool.apply({f"e{n}": Instance(f"e{n}", "catalog", f"e{n}:1") for n in range(len(transports))})
    return ServiceChannel(pool, settings, rng=random.Random(1))


@pytest.mark.parametrize("idempotent", [True, False])
@pytest.mark.parametrize("client_streaming", [True, False])
async def test_call_that_was_not_sent_costs_nothing(idempotent: bool, client_streaming: bool) -> None:
    """It goes to another instance at once, without budget, backoff or a word to the server, also as a stream."""
    seen: list[Call] = []

    async def refuse(call: Call) -> str:
        raise Unavailable("the connection is gone", sent=False)

    async def accept(call: Call) -> str:
        seen.append(call)
        return "done"

    transports = [FakeTransport() for _ in range(4)]
    for transport in transports:
        transport.answer = refuse
    transports[-1].answer = accept
    channel = channel_of(*transports, budget=BudgetSettings(ratio=0, per_second=0))
    level = Idempotency.IDEMPOTENT if idempotent else Idempotency.UNKNOWN
    method = Method("shop.Catalog", "Get", str, str, client_streaming=client_streaming, idempotency=level)
    for _ in range(5):
        assert await UnaryReply(channel.bind(method), method, "a") == "done"
    assert asyncio.get_running_loop().time() == 0.0
    assert [call.get(PREVIOUS) for call in seen] == [None] * 5
    await channel.close()


async def test_instance_that_did_not_get_a_call_is_not_slow() -> None:
    """Failures made here say nothing about an endpoint: neither a connection that is gone nor a mistake of the user."""
    transport = FakeTransport()
    channel = channel_of(transport, budget=BudgetSettings())
    method = Method("shop.Catalog", "Get", str, str)

    async def broken(call: Call) -> str:
        raise ValueError("a mistake")

    async def refuse(call: Call) -> str:
        raise Unavailable("the connection is gone", sent=False)

    [endpoint] = channel.pool.endpoints
    for answer in (broken, refuse):
        transport.answer = answer
        with pytest.raises((ValueError, Unavailable)):
            await UnaryReply(channel.bind(method), method, "a")
        assert (endpoint.cost(0.0), endpoint.host.failures, endpoint.pending) == (0.0, 0, 0)
    await channel.close()
