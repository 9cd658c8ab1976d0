"""What answers instead of a service that does not, in virtual time."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest
from google.protobuf.wrappers_pb2 import StringValue

from framework import Call, ClientSettings, Code, ConfigError, FailedPrecondition, NotFound, RpcError, Service
from framework.call import Handler, Method, Outcome, Reply
from framework.errors import BY_CODE
from framework.policy import BulkheadSettings, RetrySettings
from framework.rpc import UnaryReply
from framework.testing import Network
from tests.invariants.echo import Blocked, Echo, EchoClient, EchoMethods, raising, text
from tests.resilience.lab import IDEMPOTENT, NO_HEDGE, QUICK, cancelled

pytestmark = pytest.mark.virtual_time

ONCE = ClientSettings(retry=RetrySettings(attempts=1), hedge=NO_HEDGE, methods=IDEMPOTENT)
CANNOT_ANSWER = {
    Code.UNAVAILABLE,
    Code.INTERNAL,
    Code.UNKNOWN,
    Code.DATA_LOSS,
    Code.DEADLINE_EXCEEDED,
    Code.RESOURCE_EXHAUSTED,
}


class Fallback:
    """Answers, and keeps what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, RpcError]] = []

    async def __call__(self, request: Any, error: RpcError) -> StringValue:
        self.asked.append((request.value, error))
        return text("instead")


def client(network: Network, behave: Any, answer: Any, settings: ClientSettings = ONCE, **more: Any) -> EchoClient:
    """A client of a service that behaves like this, with a fallback for its first method."""
    network.add(Service("echo", servicers=[Echo(behave)]))
    return EchoClient(network.connect("echo", fallbacks={"UnaryUnary": answer}, settings=settings, **more))


@pytest.mark.parametrize("code", [code for code in Code if code is not Code.OK], ids=lambda code: code.name)
async def test_failures_that_it_is_for(network: Network, code: Code) -> None:
    """Those that say that the service cannot answer; never those for which the request is to blame, or the caller."""
    answer = Fallback()
    echo = client(network, raising(BY_CODE[code]("because")), answer)
    if code in CANNOT_ANSWER:
        assert (await echo.UnaryUnary(text("a"))).value == "instead"
        [(request, error)] = answer.asked
        assert (request, error.code, error.message) == ("a", code, "because")
    else:
        with pytest.raises(BY_CODE[code], match="because"):
            await echo.UnaryUnary(text("a"))
        assert answer.asked == []


async def test_only_after_the_final_failure(network: Network) -> None:
    """The retries come first."""
    count = 0

    async def behave(requests: Any, context: Any) -> Any:
        nonlocal count
        count += 1
        if count:
            raise RpcError("broken")
        yield

    answer = Fallback()
    settings = ClientSettings(retry=QUICK, hedge=NO_HEDGE, methods=IDEMPOTENT)
    assert (await client(network, behave, answer, settings).UnaryUnary(text("a"))).value == "instead"
    assert (count, len(answer.asked), answer.asked[0][1].attempts) == (3, 1, 3)


async def test_success_needs_none(network: Network) -> None:
    """It is not asked."""
    answer = Fallback()

    async def behave(requests: Any, context: Any) -> Any:
        yield text("done")

    assert (await client(network, behave, answer).UnaryUnary(text("a"))).value == "done"
    assert answer.asked == []


async def test_failures_made_here(network: Network) -> None:
    """No instance, and no room in the bulkhead: the service cannot answer either."""
    answer = Fallback()
    nobody = EchoClient(network.connect("echo", fallbacks={"UnaryUnary": answer}, settings=ONCE))
    assert (await nobody.UnaryUnary(text("a"))).value == "instead"

    async def slow(requests: Any, context: Any) -> Any:
        await asyncio.sleep(1)
        yield text("done")

    settings = ClientSettings(bulkhead=BulkheadSettings(calls=1, queue=0), hedge=NO_HEDGE)
    echo = client(network, slow, answer, settings)
    replies = await asyncio.gather(echo.UnaryUnary(text("a")), echo.UnaryUnary(text("b")))
    assert [reply.value for reply in replies] == ["done", "instead"]


async def test_caller_that_has_gone(network: Network) -> None:
    """A cancelled call has no use for an answer."""
    answer = Fallback()

    task = asyncio.ensure_future(client(network, Blocked(), answer).UnaryUnary(text("a")))
    await asyncio.sleep(0.1)
    await cancelled(task)
    assert answer.asked == []


async def test_call_is_a_success_to_whoever_looks_on(network: Network) -> None:
    """The interceptors of the user are outside: they see what the caller sees."""
    seen: list[Outcome] = []

    def watching(method: Method[Any, Any], next: Handler) -> Handler:
        async def handler(call: Call) -> Reply:
            call.on_end(seen.append)
            return await next(call)

        return handler

    echo = client(network, raising(RpcError("broken")), Fallback(), interceptors=[watching])
    await echo.UnaryUnary(text("a"))
    assert [outcome.code for outcome in seen] == [Code.OK]


async def test_it_is_logged(network: Network, caplog: pytest.LogCaptureFixture) -> None:
    """A fallback hides a failure from callers, and not from who runs the service."""
    with caplog.at_level(logging.INFO, "framework.client"):
        await client(network, raising(RpcError("broken")), Fallback()).UnaryUnary(text("a"))
    assert "echo.v1.Echo/UnaryUnary is answered by its fallback: UNKNOWN: broken" in caplog.text


async def test_fallback_that_fails(network: Network) -> None:
    """Its error is that of the call."""

    async def answer(request: Any, error: RpcError) -> Any:
        raise NotFound("nor does the fallback know") from error

    with pytest.raises(NotFound, match="nor does the fallback know"):
        await client(network, raising(RpcError("broken")), answer).UnaryUnary(text("a"))


@pytest.mark.parametrize("method", ["UnaryUnary", "UnaryStream", "StreamUnary", "StreamStream"])
async def test_fallback_that_calls_the_same_service(network: Network, method: str) -> None:
    """It fails, whichever method it calls: what is broken would be asked again and again."""
    count = 0

    async def behave(requests: Any, context: Any) -> Any:
        nonlocal count
        count += 1
        if count:
            raise RpcError("broken")
        yield

    async def answer(request: Any, error: RpcError) -> Any:
        message = text("b") if method.startswith("Unary") else [text("b")]
        reply = getattr(echo, method)(message)
        if method.endswith("Stream"):
            return await anext(reply)
        return await reply

    echo = client(network, behave, answer)
    with pytest.raises(FailedPrecondition, match=r"a fallback of echo\.v1\.Echo calls echo\.v1\.Echo/") as caught:
        await echo.UnaryUnary(text("a"))
    assert (count, caught.value.sent) == (1, False)


async def test_fallback_that_calls_another_service(network: Network) -> None:
    """That is what it is for; afterwards the service may be called again."""
    ask = Method("other.v1.Other", "Ask", StringValue, StringValue)
    other = network.script("other")
    other.on(ask).reply(text("the other"))
    channel = network.connect("other", fallbacks={"Nothing": Fallback()})

    async def answer(request: Any, error: RpcError) -> Any:
        return await UnaryReply(channel.bind(ask), ask, request)

    echo = client(network, raising(RpcError("broken")), answer)
    for _ in range(2):
        assert (await echo.UnaryUnary(text("a"))).value == "the other"
    with pytest.raises(RpcError, match="broken"):
        await echo.StreamUnary([text("a")])


async def test_method_with_a_stream_of_replies(network: Network) -> None:
    """A fallback for it is refused, in one line, when the method is bound."""
    channel = network.connect("echo", fallbacks={"UnaryStream": Fallback()})
    with pytest.raises(
        ConfigError, match=r"^a fallback for echo\.v1\.Echo/UnaryStream: only methods with one reply can have one$"
    ):
        channel.bind(EchoMethods.UnaryStream)
