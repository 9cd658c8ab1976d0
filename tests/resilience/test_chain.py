"""Calls that are made while another one is being served: who retries, and how much time is left."""

from __future__ import annotations

import math

import pytest

from framework import Context, RpcError, Unavailable
from tests.invariants.echo import text
from tests.resilience.lab import QUICK, Lab, Step, fails, lab, says

pytestmark = pytest.mark.parametrize("wire", ["grpc", "direct", "memory"])


def through(back: Lab, errors: list[RpcError]) -> Step:
    """Ask the service behind; what it fails with is passed on."""

    async def step(context: Context):  # type: ignore[no-untyped-def]  # a generator
        try:
            yield text(await back.call())
        except RpcError as error:
            errors.append(error)
            raise Unavailable("the service behind is broken") from error

    return step


async def test_one_layer_retries(wire: str) -> None:
    """Who has retried says so with the failure: three attempts behind, one in front, and not 9 calls in all."""
    async with lab(3, wire=wire, retry=QUICK) as back, lab(3, wire=wire, retry=QUICK) as front:
        errors: list[RpcError] = []
        back.script(fails())
        front.script(through(back, errors))
        await front.fail()
        assert (len(front.calls), len(back.calls)) == (1, 3)
        assert [error.attempts for error in errors] == [3]


async def test_what_was_not_sent_goes_elsewhere_even_so(wire: str) -> None:
    """It costs nobody anything: the service behind is still reached when an instance of it dies."""
    async with lab(3, wire=wire, retry=QUICK) as back, lab(3, wire=wire, retry=QUICK) as front:
        front.script(fails(), through(back, []))
        back.script(says("behind"))
        back.kill(back.endpoints[0].instance.address)
        for _ in range(10):
            front.script(fails(), through(back, []))
            assert await front.call() == "behind"


async def test_retry_by_somebody_elses_client(wire: str) -> None:
    """It says so in grpc's own key, which our client cannot send."""
    if wire != "memory":
        pytest.skip("grpc takes it out of what it is given")
    async with lab(1, wire=wire, retry=QUICK) as back, lab(1, wire=wire, retry=QUICK) as front:
        errors: list[RpcError] = []
        back.script(fails())
        front.script(through(back, errors), says())
        front.own[front.endpoints[0].instance.address] = through(back, errors)
        reply = front.start()
        reply.call.metadata = (("grpc-previous-rpc-attempts", "1"),)
        with pytest.raises(Unavailable):
            await reply
        assert errors[0].attempts == 1


async def test_deadline_along_the_chain(wire: str) -> None:
    """Case 28: of 300 ms, 100 spent in the middle: at most 200 are left behind it."""
    async with lab(1, wire=wire, idempotent=False) as back, lab(1, wire=wire, idempotent=False) as front:
        behind = through(back, [])

        async def late(context: Context):  # type: ignore[no-untyped-def]  # a generator
            async for message in says(after=0.1)(context):
                del message
            async for message in behind(context):
                yield message

        front.script(late)
        assert await front.call(timeout=0.3) == "done"
        remaining = back.calls[0].remaining
        assert remaining is not None
        assert 0.1 < remaining <= 0.2


async def test_no_deadline_above(wire: str) -> None:
    """Case 28: then the call behind has its own, the default of its method, and not 0."""
    async with lab(1, wire=wire, idempotent=False) as back, lab(1, wire=wire, idempotent=False) as front:
        front.script(through(back, []))
        assert await front.call(timeout=math.inf) == "done"
        assert front.calls[0].remaining is None
        assert back.calls[0].remaining == pytest.approx(10.0, abs=0.2)
