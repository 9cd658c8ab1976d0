"""What a handler is given beside its request, with the names of grpc.aio's context."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from google.protobuf.wrappers_pb2 import StringValue

from framework import Code, Context, Method, NotFound, RpcError, Unknown
from framework.server.context import ServerCall, incoming_call
from tests.invariants.conftest import ARITIES, World, open_world, soon
from tests.invariants.echo import Behaviour, raising, repeat, text

METHOD = Method("test.Echo", "Unary", StringValue, StringValue)


@pytest.fixture(params=["grpc", "memory"])
def wire(request: pytest.FixtureRequest) -> str:
    """What the call travels on."""
    return str(request.param)


async def asked(wire: str, question: Any) -> Any:
    """What a handler finds out about its context."""
    found: list[Any] = []

    async def behave(requests: AsyncIterator[StringValue], context: Context) -> AsyncIterator[StringValue]:
        found.append(question(context))
        async for request in requests:
            yield request

    async with open_world(wire, ARITIES["unary_stream"], behave=behave) as world:
        await world.call()
    return found[0]


def test_names_of_grpc() -> None:
    """Every public name of `grpc.aio.ServicerContext` is there."""
    names = {name for name in dir(grpc.aio.ServicerContext) if not name.startswith("_")}
    assert names - set(dir(Context)) == set()


async def test_peer(wire: str) -> None:
    """The address of the caller."""
    expected = "ipv4:127.0.0.1:" if wire == "grpc" else "memory:"
    assert (await asked(wire, lambda context: context.peer())).startswith(expected)


async def test_identity_without_tls(wire: str) -> None:
    """Without TLS nobody says who they are."""
    assert await asked(wire, lambda context: context.peer_identity_key()) is None
    assert await asked(wire, lambda context: context.peer_identities()) is None
    assert "x509_common_name" not in await asked(wire, lambda context: dict(context.auth_context()))


async def test_nobody(wire: str) -> None:
    """Where nothing asks who a caller is, nobody is known."""
    assert await asked(wire, lambda context: context.identity) is None


async def test_metadata(wire: str) -> None:
    """Metadata is pairs, which make a mapping."""
    assert await asked(wire, lambda context: "user-agent" in dict(context.invocation_metadata()) or wire == "memory")


async def test_state_that_is_read_back(wire: str) -> None:
    """Code, details and trailers that were set can be read."""

    def look(context: Context) -> Any:
        before = (context.code(), context.details(), context.trailing_metadata())
        context.set_code(grpc.StatusCode.OK)
        context.set_details("fine")
        context.set_trailing_metadata((("a", "b"),))
        return before, (context.code(), context.details(), tuple(context.trailing_metadata()))

    assert await asked(wire, look) == ((Code.OK, "", ()), (Code.OK, "fine", (("a", "b"),)))


async def test_done_callbacks(wire: str) -> None:
    """Callbacks are called with the context once the call has ended, well or not."""
    done: list[tuple[bool, bool]] = []

    def watching(then: Behaviour) -> Behaviour:
        async def behave(requests: Any, context: Context) -> AsyncIterator[StringValue]:
            context.add_done_callback(lambda one: done.append((one is context, one.done())))
            async for reply in then(requests, context):
                yield reply

        return behave

    async with open_world(wire, ARITIES["unary_stream"], behave=watching(repeat)) as world:
        await world.call()
        world.serve(watching(raising(NotFound("gone"))))
        with pytest.raises(NotFound):
            await world.call()
        await world.endings(2)
    assert done == [(True, True)] * 2


async def test_cancelled(wire: str) -> None:
    """A context knows that its caller has gone."""
    contexts: list[Context] = []
    waits = asyncio.Event()

    async def behave(requests: Any, context: Context) -> AsyncIterator[StringValue]:
        contexts.append(context)
        waits.set()
        await asyncio.get_running_loop().create_future()
        yield text("never")

    async with open_world(wire, ARITIES["unary_stream"], behave=behave) as world:
        call = asyncio.ensure_future(world.call())
        await soon(waits.wait())
        assert (contexts[0].cancelled(), contexts[0].done()) == (False, False)
        call.cancel()
        await world.endings()
        assert (contexts[0].cancelled(), contexts[0].done()) == (True, True)


@pytest.mark.parametrize("code", [grpc.StatusCode.NOT_FOUND, Code.NOT_FOUND, 5], ids=repr)
async def test_codes_of_abort(wire: str, code: Any) -> None:
    """A code may be grpc's, ours or a number."""
    assert isinstance(await _aborted(wire, code), NotFound)


async def test_abort_with_ok(wire: str) -> None:
    """A call cannot be aborted with OK: that is a mistake of the handler's, INTERNAL to the caller."""
    assert (await _aborted(wire, Code.OK)).code is Code.INTERNAL


async def _aborted(wire: str, code: Any) -> RpcError:
    async def behave(requests: Any, context: Context) -> AsyncIterator[StringValue]:
        yield text("not seen when there is one reply")
        await context.abort(code, "gone")

    async with open_world(wire, ARITIES["unary_unary"], behave=behave) as world:
        return await _failure(world)


async def _failure(world: World) -> RpcError:
    try:
        await world.call()
    except RpcError as error:
        return error
    raise AssertionError("the call did not fail")


async def test_abort_with_status(wire: str) -> None:
    """`abort_with_status` takes what grpc's helpers make."""

    class Status(grpc.Status):
        code, details, trailing_metadata = grpc.StatusCode.NOT_FOUND, "gone", (("why", "eaten"),)

    async def behave(requests: Any, context: Context) -> AsyncIterator[StringValue]:
        yield text("a")
        await context.abort_with_status(Status())

    async with open_world(wire, ARITIES["unary_stream"], behave=behave) as world:
        error = await _failure(world)
    assert (type(error), error.message, error.metadata) == (NotFound, "gone", (("why", "eaten"),))


async def test_compression(wire: str) -> None:
    """Compression may be asked for; the reply is the same."""

    async def behave(requests: AsyncIterator[StringValue], context: Context) -> AsyncIterator[StringValue]:
        context.set_compression(grpc.Compression.Gzip)
        async for request in requests:
            context.disable_next_message_compression()
            yield request

    async with open_world(wire, ARITIES["unary_stream"], behave=behave) as world:
        assert await world.call("x" * 10_000) == ["x" * 10_000]


@pytest.mark.parametrize("arity", ["unary_unary", "unary_stream"])
async def test_write_in_a_handler_that_yields(wire: str, arity: str) -> None:
    """`context.write` is for handlers that neither return nor yield their replies: INTERNAL, and nothing hangs."""

    async def behave(requests: Any, context: Context) -> AsyncIterator[StringValue]:
        await context.write(text("a"))
        yield text("b")

    async with open_world(wire, ARITIES[arity], behave=behave) as world:
        assert (await soon(_failure(world))).code is Code.INTERNAL


async def test_unknown_code_from_elsewhere(wire: str) -> None:
    """UNKNOWN is an error like any other."""
    async with open_world(wire, ARITIES["unary_unary"], behave=raising(Unknown("what"))) as world:
        assert repr(await _failure(world)) == "<Unknown 'what' remote sent=True attempts=1>"


def test_a_served_call_has_all_that_a_call_has() -> None:
    """Its constructor sets every attribute by itself, for speed; none is forgotten."""
    call = incoming_call(METHOD, (), deadline=None, peer="")
    slots = [name for kind in ServerCall.__mro__ for name in getattr(kind, "__slots__", ()) if name != "__weakref__"]
    assert [name for name in slots if not hasattr(call, name)] == []
