"""How many calls of one method may be out at a time, in virtual time."""

from __future__ import annotations

import asyncio
import random

import pytest

from framework import Call, ClientSettings, Code, DeadlineExceeded, MethodSettings, ResourceExhausted
from framework.call import Method
from framework.client.bulkhead import Bulkhead
from framework.policy import BulkheadSettings
from tests.resilience.lab import ARITIES, NO_HEDGE, cancelled, fails, hangs, lab, says

pytestmark = pytest.mark.virtual_time

GET = Method("shop.Catalog", "Get", str, str)
ONE = BulkheadSettings(calls=1, queue=10)


async def enter(bulkhead: Bulkhead, call: Call | None = None) -> None:
    """As the client does."""
    if bulkhead.out < bulkhead.calls:
        bulkhead.out += 1
    else:
        await bulkhead.wait(call or Call(GET, ""))


def leave(bulkhead: Bulkhead) -> None:
    """As the client does."""
    bulkhead.out -= 1
    bulkhead.let_in()


async def occupy(bulkhead: Bulkhead, seconds: float, call: Call | None = None) -> None:
    """Be let in, stay, and leave."""
    await enter(bulkhead, call)
    try:
        await asyncio.sleep(seconds)
    finally:
        leave(bulkhead)


async def test_no_more_than_there_is_room_for() -> None:
    """The others wait, and have their turn in the order in which they came."""
    async with lab(1, bulkhead=BulkheadSettings(calls=2, queue=10)) as here:
        here.script(says(after=1))
        calls = [asyncio.ensure_future(here.call(request=str(number))) for number in range(6)]
        for second in range(3):
            await asyncio.sleep(0.5)
            assert len(here.calls) == 2 * second + 2
            await asyncio.sleep(0.5)
        assert await asyncio.gather(*calls) == ["done"] * 6
        assert [seen.texts for seen in here.calls] == [[str(number)] for number in range(6)]


async def test_line_that_is_full() -> None:
    """One call more fails at once: it was not sent, is not retried, feeds no statistics, and says which setting."""
    async with lab(1, bulkhead=BulkheadSettings(calls=1, queue=1)) as here:
        here.script(says(after=1))
        calls = [asyncio.ensure_future(here.call()) for _ in range(2)]
        await asyncio.sleep(0.1)
        error = await here.fail()
        assert asyncio.get_running_loop().time() == pytest.approx(0.1)
        assert (type(error), error.sent, error.remote) == (ResourceExhausted, False, False)
        assert "1 calls are out and 1 wait; `bulkhead` in the client's settings" in error.message
        assert error.method == "echo.v1.Echo/UnaryUnary"
        await asyncio.gather(*calls)
        assert [(one.host.failures, one.host.successes) for one in here.endpoints] == [(0, 2)]


async def test_deadline_passes_in_the_line() -> None:
    """The call was not sent; whose deadline it was is told."""
    async with lab(1, bulkhead=ONE) as here:
        here.script(says(after=1))
        under_way = asyncio.ensure_future(here.call())
        await asyncio.sleep(0.1)
        error = await here.fail(timeout=0.5)
        assert asyncio.get_running_loop().time() == pytest.approx(0.6)
        assert (type(error), error.sent, error.remote) == (DeadlineExceeded, False, False)
        assert isinstance(error, DeadlineExceeded)
        assert not error.inherited
        assert await under_way == "done"
        assert len(here.calls) == 1


async def test_waiting_takes_from_the_time_of_the_call() -> None:
    """The deadline is that of the call, the line included."""
    async with lab(1, bulkhead=ONE) as here:
        here.script(says(after=1))
        await asyncio.gather(here.call(), here.call(timeout=3))
        assert here.calls[1].remaining == pytest.approx(2.0, abs=0.01)


async def test_cancelled_in_the_line() -> None:
    """Whoever stands behind moves up."""
    async with lab(1, bulkhead=ONE) as here:
        here.script(says(after=1))
        first, second, third = (asyncio.ensure_future(here.call(request=name)) for name in "abc")
        await asyncio.sleep(0.5)
        await cancelled(second)
        assert (await first, await third) == ("done", "done")
        assert [seen.texts for seen in here.calls] == [["a"], ["c"]]


async def test_cancelled_at_the_moment_in_which_room_is_made() -> None:
    """In either order: the room goes to the next in the line, and nobody is told of a defect."""
    for leaves_first in (True, False):
        bulkhead = Bulkhead(ONE)
        await enter(bulkhead)
        waits = asyncio.ensure_future(occupy(bulkhead, 1))
        behind = asyncio.ensure_future(occupy(bulkhead, 1))
        await asyncio.sleep(0)
        if leaves_first:
            leave(bulkhead)
            waits.cancel()
        else:
            waits.cancel()
            leave(bulkhead)
        results = await asyncio.gather(waits, behind, return_exceptions=True)
        assert [type(result) for result in results] == [asyncio.CancelledError, type(None)]
        assert repr(bulkhead) == "<Bulkhead 0 of 1 out, 0 waiting>"


async def test_deadline_at_the_moment_in_which_room_is_made() -> None:
    """The same with a deadline: the call may be late, but no room is lost."""
    bulkhead = Bulkhead(ONE)
    holder = asyncio.ensure_future(occupy(bulkhead, 1))
    await asyncio.sleep(0)
    late = [asyncio.ensure_future(occupy(bulkhead, 1, Call(GET, "", deadline=1.0))) for _ in range(3)]
    results = await asyncio.gather(holder, *late, return_exceptions=True)
    assert {type(result) for result in results} <= {type(None), DeadlineExceeded}
    await asyncio.wait_for(occupy(bulkhead, 0), 1)
    assert repr(bulkhead) == "<Bulkhead 0 of 1 out, 0 waiting>"


@pytest.mark.parametrize("seed", range(20))
async def test_whatever_happens(seed: int) -> None:
    """Never more than there is room for, all of it free at the end, and nobody left in the line."""
    rng = random.Random(seed)
    bulkhead = Bulkhead(BulkheadSettings(calls=3, queue=5))
    most = 0

    async def call() -> None:
        nonlocal most
        await asyncio.sleep(rng.randrange(50) / 10)
        deadline = asyncio.get_running_loop().time() + rng.randrange(1, 20) / 10
        await enter(bulkhead, Call(GET, "", deadline=deadline))
        most = max(most, bulkhead.out)
        try:
            await asyncio.sleep(rng.randrange(10) / 10)
        finally:
            leave(bulkhead)

    tasks = [asyncio.ensure_future(call()) for _ in range(60)]
    for task in rng.sample(tasks, 30):
        asyncio.get_running_loop().call_later(rng.randrange(60) / 10, task.cancel)
    results = await asyncio.gather(*tasks, return_exceptions=True)
    expected = {type(None), asyncio.CancelledError, DeadlineExceeded, ResourceExhausted}
    assert {type(result) for result in results} <= expected
    assert (most, repr(bulkhead)) == (3, "<Bulkhead 0 of 3 out, 0 waiting>")


@pytest.mark.parametrize("method", ARITIES)
async def test_streams_of_replies_are_not_counted(method: str) -> None:
    """They may stay open for days."""
    async with lab(1, bulkhead=BulkheadSettings(calls=1, queue=0)) as here:
        here.script(says(after=1))
        results = await asyncio.gather(*(here.call(method) for _ in range(3)), return_exceptions=True)
        assert results.count("done") == (3 if method.endswith("Stream") else 1)


async def test_each_method_has_its_own() -> None:
    """One slow method does not take the room of another."""
    async with lab(1, bulkhead=BulkheadSettings(calls=1, queue=0)) as here:
        here.script(hangs(), says())
        slow = asyncio.ensure_future(here.call("UnaryUnary"))
        await asyncio.sleep(0.1)
        assert await here.call("StreamUnary") == "done"
        await cancelled(slow)


async def test_room_is_given_back_however_a_call_ends() -> None:
    """Failed, expired, cancelled, or never sent."""
    async with lab(1, bulkhead=BulkheadSettings(calls=1, queue=0), idempotent=False) as here:
        here.script(fails(), hangs(), hangs(), says())
        assert (await here.fail()).code is Code.UNAVAILABLE
        assert (await here.fail(timeout=0.1)).code is Code.DEADLINE_EXCEEDED
        task = asyncio.ensure_future(here.call())
        await asyncio.sleep(0.1)
        await cancelled(task)
        with pytest.raises(Exception, match=r"echo\.v1\.Echo/UnaryUnary"):
            await here.client.UnaryUnary("no message")  # type: ignore[arg-type]  # on purpose
        here.hosted[0].disconnect()
        assert (await here.fail()).code is Code.UNAVAILABLE
        here.hosted[0].reconnect()
        assert await here.call() == "done"


async def test_room_is_kept_in_a_backoff() -> None:
    """A call that waits for its retry is still out."""
    async with lab(1, bulkhead=BulkheadSettings(calls=1, queue=0)) as here:
        here.script(fails(), says())
        call = asyncio.ensure_future(here.call())
        await asyncio.sleep(0.05)
        assert (await here.fail()).code is Code.RESOURCE_EXHAUSTED
        assert await call == "done"


async def test_no_limit() -> None:
    """`calls` of 0 is none, and so is what "off" says."""
    off = ClientSettings.parse({"bulkhead": "off"}, "client").bulkhead
    async with lab(1, bulkhead=off) as here:
        here.script(says(after=1))
        assert await asyncio.gather(*(here.call() for _ in range(3000))) == ["done"] * 3000
        assert asyncio.get_running_loop().time() < 1.1


async def test_other_settings_while_calls_wait() -> None:
    """Calls that wait are let in where more may be out now; those that are out still count."""
    async with lab(1, bulkhead=ONE) as here:
        here.script(says(after=1))
        old = [asyncio.ensure_future(here.call()) for _ in range(3)]
        await asyncio.sleep(0.5)
        here.channel.apply(ClientSettings(bulkhead=BulkheadSettings(calls=5, queue=0), hedge=NO_HEDGE))
        await asyncio.sleep(0)
        new = [asyncio.ensure_future(here.call()) for _ in range(5)]
        assert await asyncio.gather(*old) == ["done"] * 3
        found = await asyncio.gather(*new, return_exceptions=True)
        assert [type(one).__name__ for one in found] == ["str", "str", *["ResourceExhausted"] * 3]
        assert asyncio.get_running_loop().time() == pytest.approx(1.5, abs=0.01)


async def test_method_of_its_own_settings() -> None:
    """What is said for a method holds for it alone."""
    own = {"UnaryUnary": MethodSettings(bulkhead=BulkheadSettings(calls=1, queue=0))}
    async with lab(1, ClientSettings(methods=own)) as here:
        here.script(says(after=1))
        for method, done in (("UnaryUnary", 1), ("StreamUnary", 3)):
            results = await asyncio.gather(*(here.call(method) for _ in range(3)), return_exceptions=True)
            assert results.count("done") == done
