"""How much a call matters, and how often it was made, travels along the whole chain of calls."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc.aio
import pytest
from google.protobuf.wrappers_pb2 import StringValue

from framework import Call, Context, Criticality, NotFound, ServerSettings, Service, Settings, Unavailable
from framework.call import current
from framework.interceptors.criticality import KEY
from framework.interceptors.inherit import inherit
from framework.server.context import incoming_call
from framework.server.server import Server
from tests.invariants.conftest import NO_WAIT
from tests.invariants.echo import Echo, EchoMethods, text

METHOD = EchoMethods.UnaryUnary


def sent(call: Call, default: str | None = None) -> tuple[Any, Any]:
    """What the interceptor makes of a call: what it is, and what it sends."""
    handled: list[Call] = []

    async def handler(call: Call) -> None:
        handled.append(call)

    inherit(None, None, default)(METHOD, handler)(call).close()  # type: ignore[attr-defined]  # a coroutine
    return call.criticality, dict(call.metadata).get(KEY)


async def test_nobody_says_anything() -> None:
    """Nothing is sent."""
    assert sent(Call(METHOD, None)) == (None, None)


async def test_the_policy() -> None:
    """What the policy of the method says is sent."""
    assert sent(Call(METHOD, None), "SHEDDABLE") == (Criticality.SHEDDABLE, "SHEDDABLE")


async def test_the_call_that_is_served_goes_before_the_policy() -> None:
    """A batch that calls for a payment is still a batch; a call that said nothing leaves it to the policy."""
    parent = Call(METHOD, None)
    token = current.set(parent)
    try:
        assert sent(Call(METHOD, None), "CRITICAL_PLUS") == (Criticality.CRITICAL_PLUS, "CRITICAL_PLUS")
        parent.criticality = Criticality.SHEDDABLE
        assert sent(Call(METHOD, None), "CRITICAL_PLUS") == (Criticality.SHEDDABLE, "SHEDDABLE")
        explicit = Call(METHOD, None, ((KEY, "SHEDDABLE_PLUS"),))
        assert sent(explicit, "CRITICAL_PLUS") == (Criticality.SHEDDABLE_PLUS, "SHEDDABLE_PLUS")
        assert explicit.metadata == ((KEY, "SHEDDABLE_PLUS"),)
    finally:
        current.reset(token)


@pytest.mark.parametrize(
    ("metadata", "expected"),
    [
        ((), (None, 1)),
        (((KEY, "SHEDDABLE"), ("grpc-previous-rpc-attempts", "2")), (Criticality.SHEDDABLE, 3)),
        (((KEY, "VERY"), ("grpc-previous-rpc-attempts", "many")), (None, 1)),
        ((("grpc-previous-rpc-attempts", "-1"),), (None, 1)),
        ((("grpc-previous-rpc-attempts", "9" * 5000),), (None, 1)),
        ((("grpc-previous-rpc-attempts", ""),), (None, 1)),
    ],
)
def test_what_the_server_reads(metadata: Any, expected: tuple[Criticality | None, int]) -> None:
    """Words that it does not know are as if nothing had been said."""
    call = incoming_call(METHOD, metadata, deadline=None, peer="")
    assert (call.criticality, call.attempt) == expected


def test_the_request_id_is_the_first_one() -> None:
    """Or a new one, when nobody has given it."""
    pairs = (("x-request-id", "a"), ("x-request-id", "b"))
    assert incoming_call(METHOD, pairs, deadline=None, peer="").request_id == "a"
    assert incoming_call(METHOD, (), deadline=None, peer="").request_id


class Notes:
    """What a handler saw, and how it fails."""

    def __init__(self, error: Exception | None = None) -> None:
        self.seen: list[tuple[Criticality, int]] = []
        self.error = error

    async def __call__(self, requests: AsyncIterator[StringValue], context: Context) -> AsyncIterator[StringValue]:
        self.seen.append((context.criticality, context.call.attempt))
        async for request in requests:
            yield request
        if self.error is not None:
            raise self.error


@asynccontextmanager
async def serving(behave: Notes) -> AsyncIterator[tuple[Server, grpc.aio.UnaryUnaryMultiCallable[bytes, bytes]]]:
    """A server, and its unary method under a bare client."""
    settings = Settings(registry="none", server=ServerSettings(drain=NO_WAIT))
    async with (
        Service("echo", servicers=[Echo(behave)]).running(settings) as server,
        grpc.aio.insecure_channel(server.address, options=(("grpc.enable_retries", 0),)) as channel,
    ):
        yield server, channel.unary_unary(METHOD.path)


async def test_handlers_see_it() -> None:
    """`context.criticality` is CRITICAL when the caller does not say, and the attempt is the first."""
    async with serving(notes := Notes()) as (_, call):
        await call(text("a").SerializeToString())
        await call(
            text("a").SerializeToString(),
            metadata=((KEY, "SHEDDABLE_PLUS"), ("grpc-previous-rpc-attempts", "1")),
        )
    assert notes.seen == [(Criticality.CRITICAL, 1), (Criticality.SHEDDABLE_PLUS, 2)]


def caused(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


def failed(attempts: int) -> Unavailable:
    """A call that a handler made, and that failed after so many attempts."""
    return Unavailable("down", remote=True, attempts=attempts, method="c.C/Get")


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (failed(3), "-1"),
        (caused(Unavailable("C is down"), failed(2)), "-1"),
        (caused(NotFound("no such thing"), failed(2)), "-1"),
        (ExceptionGroup("", [failed(2)]), "-1"),
        (failed(1), None),
        (caused(Unavailable("C is down"), failed(1)), None),
        (Unavailable("busy", attempts=3), None),
        (ValueError("broken"), None),
    ],
    ids=["escaped", "cause", "other code", "group", "once", "cause once", "its own", "no call"],
)
async def test_who_was_retried_is_not_retried_again(error: Exception, expected: str | None) -> None:
    """A failure that has been retried further down asks the caller not to multiply that."""
    async with serving(Notes(error)) as (_, call):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call(text("a").SerializeToString())
    assert dict(caught.value.trailing_metadata() or ()).get("grpc-retry-pushback-ms") == expected
