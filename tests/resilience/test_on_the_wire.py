"""What matters most about retries and hedges, over grpc as well as in memory: the two engines behave differently."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from google.protobuf.wrappers_pb2 import StringValue

from framework import Code, DeadlineExceeded, ResourceExhausted, RpcError, Unavailable
from framework.errors import MessageTooLarge
from framework.policy import BackoffSettings, BreakerSettings, HedgeSettings, RetrySettings
from tests.invariants.echo import EchoClient, text
from tests.resilience.lab import ARITIES, QUICK, Lab, cancelled, fails, hangs, lab, says, soon

SOON = HedgeSettings(delay=0.05)

pytestmark = pytest.mark.parametrize("wire", ["grpc", "direct", "memory"])


async def test_retry_after_unavailable(wire: str) -> None:
    """Made again elsewhere, and the server is told which attempt it is."""
    async with lab(wire=wire) as here:
        here.script(fails(), fails(), says("third"))
        reply = here.start()
        assert (await reply).value == "third"
        assert len(set(here.peers)) == 3
        assert [seen.previous for seen in here.calls] == [None, "1", "2"]
        assert (reply.call.attempt, reply.call.peer) == (3, here.peers[2])


@pytest.mark.parametrize("method", ARITIES)
async def test_not_idempotent(wire: str, method: str) -> None:
    """Never twice."""
    async with lab(wire=wire, idempotent=False) as here:
        here.script(fails(), says())
        error = await here.fail(method)
        assert (type(error), error.sent, len(here.calls)) == (Unavailable, True, 1)


@pytest.mark.parametrize("method", ARITIES)
@pytest.mark.parametrize("idempotent", [True, False])
async def test_stream_and_unary_idempotent(wire: str, method: str, idempotent: bool) -> None:
    """A failure before the headers is retried where the requests are one message and the method is idempotent."""
    async with lab(wire=wire, idempotent=idempotent, retry=QUICK) as here:
        here.script(fails(Code.INTERNAL), says())
        if idempotent and not method.startswith("Stream"):
            assert await here.call(method) == "done"
            assert len(here.calls) == 2
        else:
            assert (await here.fail(method)).code is Code.INTERNAL
            assert len(here.calls) == 1


@pytest.mark.parametrize("method", ARITIES)
@pytest.mark.parametrize("idempotent", [True, False])
async def test_instance_that_dies(wire: str, method: str, idempotent: bool) -> None:
    """What it was working on runs a second time only if it is idempotent; afterwards nobody goes there."""
    async with lab(wire=wire, idempotent=idempotent, retry=QUICK) as here:
        here.script(hangs(), says())
        call = asyncio.ensure_future(_outcome(here, method))
        await soon(lambda: here.calls and here.calls[0].texts)
        dead = here.peers[0]
        here.kill(dead)
        if idempotent and not method.startswith("Stream"):
            assert await call == "done"
            assert len(here.calls) == 2
        else:
            assert await call == (Code.UNAVAILABLE, True)
            assert len(here.calls) == 1
        assert [await here.call(method) for _ in range(20)] == ["done"] * 20
        assert dead not in here.peers[1:]


async def _outcome(here: Lab, method: str, request: str = "a") -> str | tuple[Code, bool]:
    try:
        return await here.call(method, request)
    except RpcError as error:
        return error.code, error.sent


@pytest.mark.parametrize("method", ARITIES)
async def test_instance_that_dies_under_load(wire: str, method: str) -> None:
    """No call that is not idempotent runs twice, and only those fail that the dead instance had."""
    async with lab(wire=wire, idempotent=False) as here:
        here.script(says(after=0.02))
        tasks = []
        for number in range(120):
            tasks.append(asyncio.ensure_future(_outcome(here, method, str(number))))
            if number == 60:
                dead = here.peers[-1]
                here.kill(dead)
            await asyncio.sleep(0.001)
        outcomes = await asyncio.gather(*tasks)
        assert set(outcomes) <= {"done", (Code.UNAVAILABLE, True)}
        seen = [seen.texts[0] for seen in here.calls if seen.texts]
        assert len(seen) == len(set(seen))
        assert outcomes.count("done") >= 90


async def test_pushback(wire: str) -> None:
    """The server says when, in its trailers, and the client obeys; idempotent or not."""
    async with lab(wire=wire, idempotent=False) as here:
        here.script(fails(Code.RESOURCE_EXHAUSTED, pushback="250"), says())
        assert await here.call() == "done"
        assert 0.25 <= here.calls[1].moment - here.calls[0].moment <= 0.35


@pytest.mark.parametrize("said", ["-1", "abc"])
async def test_pushback_that_forbids(wire: str, said: str) -> None:
    """So is it when the server asks not to."""
    async with lab(wire=wire) as here:
        here.script(fails(pushback=said), says())
        error = await here.fail()
        assert (len(here.calls), error.note) == (1, "not retried: the server asked not to")


@pytest.mark.parametrize("pause", [0.0, 0.05])
@pytest.mark.parametrize("what", [{"header": True}, {"replies": 1}], ids=["headers", "a reply"])
async def test_commitment(wire: str, what: dict[str, Any], pause: float) -> None:
    """Case 23: a stream whose headers have arrived is not retried."""
    async with lab(wire=wire) as here:
        here.script(fails(pause=pause, **what), says())
        stream = here.start("UnaryStream")
        if "replies" in what:
            assert (await anext(stream)).value == "0"
        with pytest.raises(Unavailable, match="broken"):
            await anext(stream)
        assert len(here.calls) == 1


async def test_hedge_wins(wire: str) -> None:
    """Case 26: the first attempt is cancelled, which its server sees."""
    async with lab(wire=wire, hedge=SOON) as here:
        here.script(hangs(), says("hedge"))
        reply = here.start()
        assert (await reply).value == "hedge"
        assert (reply.call.peer, reply.call.attempt) == (here.peers[1], 2)
        assert [seen.previous for seen in here.calls] == [None, "1"]
        assert here.peers[0] != here.peers[1]
        await soon(lambda: here.calls[0].cancelled)
        assert not here.calls[1].cancelled
        assert [one.host.failures for one in here.endpoints] == [0, 0, 0]


async def test_first_wins(wire: str) -> None:
    """The hedge is cancelled, which its server sees."""
    async with lab(wire=wire, hedge=SOON) as here:
        here.script(says("first", after=0.15), hangs())
        assert await here.call() == "first"
        await soon(lambda: here.calls[1].cancelled)
        assert not here.calls[0].cancelled


async def test_fatal_failure_of_a_hedge(wire: str) -> None:
    """It ends the call, and the first attempt with it."""
    async with lab(wire=wire, hedge=SOON) as here:
        here.script(hangs(), fails(Code.NOT_FOUND))
        assert (await here.fail()).code is Code.NOT_FOUND
        await soon(lambda: here.calls[0].cancelled)


async def test_one_fails_while_the_other_is_out(wire: str) -> None:
    """The call waits for the one that is out."""
    async with lab(wire=wire, hedge=SOON, retry=RetrySettings(attempts=1)) as here:
        here.script(fails(after=0.1), says("hedge", after=0.2))
        assert await here.call() == "hedge"
        here.script(says("first", after=0.2), fails())
        assert await here.call() == "first"


async def test_all_of_a_race_fail(wire: str) -> None:
    """Retries take over."""
    async with lab(wire=wire, hedge=SOON, retry=QUICK) as here:
        here.script(fails(after=0.1), fails(after=0.1), says("third"))
        assert await here.call() == "third"
        here.script(fails(after=0.1), fails(after=0.1), fails())
        error = await here.fail()
        assert (error.attempts, list(error.endpoints)) == (3, here.peers)


async def test_deadline_of_a_race(wire: str) -> None:
    """It ends all that are out, on both sides."""
    async with lab(wire=wire, hedge=SOON) as here:
        here.script(hangs())
        error = await here.fail(timeout=0.3)
        assert isinstance(error, DeadlineExceeded)
        assert (len(here.calls), error.attempts) == (2, 2)
        await soon(lambda: all(seen.cancelled for seen in here.calls))


@pytest.mark.parametrize("moment", [0.02, 0.1])
async def test_cancelled_race(wire: str, moment: float) -> None:
    """By the caller, before and after the hedge: the servers see it, and nothing is left."""
    async with lab(wire=wire, hedge=SOON) as here:
        here.script(hangs())
        task = asyncio.ensure_future(here.call())
        await soon(lambda: len(here.calls) == (2 if moment > 0.05 else 1))
        await cancelled(task)
        await soon(lambda: all(seen.cancelled for seen in here.calls))


async def test_cancelled_in_a_backoff(wire: str) -> None:
    """Nothing is sent any more."""
    async with lab(wire=wire, retry=RetrySettings(backoff=BackoffSettings(initial=5, maximum=5))) as here:
        here.script(fails(), says())
        task = asyncio.ensure_future(here.call())
        await soon(lambda: here.calls)
        await asyncio.sleep(0.05)
        await cancelled(task)
        assert (len(here.calls), here.idle) == (1, True)


async def test_attempt_timeout(wire: str) -> None:
    """The attempt that took too long is cancelled, and the call is made again."""
    async with lab(wire=wire, attempt_timeout=0.2) as here:
        here.script(hangs(), says("second"))
        assert await here.call() == "second"
        await soon(lambda: here.calls[0].cancelled)


async def test_oversize_message(wire: str) -> None:
    """It is RESOURCE_EXHAUSTED, is not retried, and no breaker hears of it."""
    if wire == "memory":
        pytest.skip("the network in memory has no limit of size")
    async with lab(wire=wire, max_message=2000, retry=QUICK) as here:
        for _ in range(10):
            error = await here.fail(request="x" * 5000)
            assert isinstance(error, ResourceExhausted)
        assert [(one.host.failures, one.breaker.row) for one in here.endpoints] == [(0, 0)] * 3
        here.script(says("y" * 5000))
        for _ in range(10):
            assert isinstance(await here.fail(), ResourceExhausted)
        assert len(here.calls) == 10
        assert [(one.host.failures, one.breaker.row) for one in here.endpoints] == [(0, 0)] * 3
        here.script(says())
        assert await here.call() == "done"


async def test_failing_instance_is_taken_out(wire: str) -> None:
    """After five calls."""
    async with lab(wire=wire, retry=QUICK, balancer="round_robin") as here:
        bad = here.endpoints[0].instance.address
        here.own[bad] = fails()
        assert [await here.call() for _ in range(40)] == ["done"] * 40
        assert here.peers.count(bad) == 5


async def test_hanging_instance_is_taken_out(wire: str) -> None:
    """After five calls that others answered, or nobody."""
    async with lab(wire=wire, retry=RetrySettings(attempts=1), balancer="round_robin") as here:
        await here.history(0.005)
        mute = here.endpoints[0].instance.address
        here.own[mute] = hangs()
        for _ in range(30):
            await asyncio.gather(here.call(timeout=0.1), return_exceptions=True)
        assert here.peers.count(mute) == 5


@pytest.mark.parametrize("method", ["StreamUnary", "StreamStream"])
@pytest.mark.parametrize("sent", [True, False])
async def test_requests_that_fail_of_another_call(wire: str, method: str, sent: bool) -> None:
    """What the caller's iterator raises is no failure of the endpoint, and an iterator is not read a second time."""
    lost = Unavailable("no instance of stock", sent=sent, method="stock.v1.Stock/Get")

    async def requests() -> AsyncIterator[StringValue]:
        yield text("a")
        raise lost

    async with lab(wire=wire) as here:
        here.script(says())
        for _ in range(12):
            with pytest.raises(Unavailable) as caught:
                await collected(here.client, method, requests())
            assert caught.value is lost
        assert len(here.calls) <= 12
        assert [endpoint.breaker.closed and endpoint.available for endpoint in here.endpoints] == [True] * 3
        assert await here.call(method) == "done"


async def collected(client: EchoClient, method: str, requests: AsyncIterator[StringValue]) -> None:
    """All replies of a call with these requests."""
    reply = getattr(client, method)(requests)
    if method == "StreamUnary":
        await reply
    else:
        async for _ in reply:
            pass


@pytest.mark.parametrize("method", ["UnaryUnary", "UnaryStream"])
async def test_messages_too_large_for_the_client(wire: str, method: str) -> None:
    """They say nothing about the endpoint that sends them."""
    if wire == "memory":
        pytest.skip("messages have any size there")
    breaker = BreakerSettings(minimum=4)
    async with lab(wire=wire, retry=QUICK, max_message=1024, breaker=breaker) as here:
        here.script(says("x" * 2000))
        errors = [await here.fail(method) for _ in range(24)]
        assert {type(error) for error in errors} == {MessageTooLarge}
        assert [endpoint.breaker.closed for endpoint in here.endpoints] == [True] * 3


async def test_reply_of_a_hedge_that_is_too_large(wire: str) -> None:
    """It would be from the others as well: that is the error, and nobody waits for them."""
    if wire == "memory":
        pytest.skip("messages have any size there")
    async with lab(wire=wire, max_message=1024, hedge=HedgeSettings(delay=0.05)) as here:
        here.script(hangs(), says("x" * 2000))
        assert isinstance(await here.fail(timeout=10), MessageTooLarge)
        assert len(here.calls) == 2
