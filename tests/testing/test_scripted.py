"""Scripted peers: they do what the test says, call by call, and remember what they were asked."""

from __future__ import annotations

import asyncio

import pytest

from framework import DeadlineExceeded, Internal, InvalidArgument, NotFound, Unavailable, Unimplemented, Unknown
from framework.testing import Network, Scripted
from framework.testing.scripted import Received
from tests.invariants.echo import EchoClient, EchoMethods, text


def scripted(network: Network) -> tuple[Scripted, EchoClient]:
    """A peer without a script yet, and a client of it."""
    return network.script("echo"), EchoClient(network.connect("echo"))


def now() -> float:
    """What the loop's clock says."""
    return asyncio.get_running_loop().time()


async def test_steps_in_order_and_the_last_stays(network: Network) -> None:
    """One step a call."""
    peer, client = scripted(network)
    peer.on(EchoMethods.UnaryUnary).reply(text("a")).fail(Unavailable("busy")).reply(text("b"))
    assert (await client.UnaryUnary(text("x"))).value == "a"
    with pytest.raises(Unavailable, match="busy"):
        await client.UnaryUnary(text("x"))
    assert [(await client.UnaryUnary(text("x"))).value for _ in range(3)] == ["b", "b", "b"]


async def test_script_goes_on_where_it_was(network: Network) -> None:
    """`on` gives the same script again, and steps can be added while calls are made."""
    peer, client = scripted(network)
    peer.on(EchoMethods.UnaryUnary).reply(text("a"))
    assert (await client.UnaryUnary(text("x"))).value == "a"
    peer.on(EchoMethods.UnaryUnary).reply(text("b"))
    assert [(await client.UnaryUnary(text("x"))).value for _ in range(3)] == ["a", "b", "b"]


async def test_methods_have_scripts_of_their_own(network: Network) -> None:
    """Each arity, with the messages that it can give."""
    peer, client = scripted(network)
    one, three = (text("1"),), (text("1"), text("2"), text("3"))
    peer.on(EchoMethods.UnaryUnary).reply(*one)
    peer.on(EchoMethods.UnaryStream).reply(*three)
    peer.on(EchoMethods.StreamUnary).reply(*one)
    peer.on(EchoMethods.StreamStream).reply(*three)
    assert (await client.UnaryUnary(text("x")),) == one
    assert tuple([reply async for reply in client.UnaryStream(text("x"))]) == three
    assert (await client.StreamUnary([text("x")]),) == one
    assert tuple([reply async for reply in client.StreamStream([text("x")])]) == three


async def test_stream_that_fails_after_some_replies(network: Network) -> None:
    """They arrive first, then the error does."""
    peer, client = scripted(network)
    peer.on(EchoMethods.UnaryStream).fail(Unavailable("gone"), replies=(text("1"), text("2")))
    replies = client.UnaryStream(text("x"))
    assert [(await anext(replies)).value for _ in range(2)] == ["1", "2"]
    with pytest.raises(Unavailable, match="gone"):
        await anext(replies)


@pytest.mark.virtual_time
async def test_replies_and_failures_after_a_while(network: Network) -> None:
    """Exactly so many seconds later."""
    peer, client = scripted(network)
    peer.on(EchoMethods.UnaryUnary).reply(text("a"), after=2.0).fail(NotFound("b"), after=3.0)
    await client.UnaryUnary(text("x"))
    assert now() == 2.0
    with pytest.raises(NotFound):
        await client.UnaryUnary(text("x"))
    assert now() == 5.0


@pytest.mark.virtual_time
async def test_reply_that_is_too_late(network: Network) -> None:
    """The caller's deadline comes first."""
    peer, client = scripted(network)
    peer.on(EchoMethods.UnaryUnary).reply(text("a"), after=30.0)
    with pytest.raises(DeadlineExceeded):
        await client.UnaryUnary(text("x"), timeout=4)
    assert now() == 4.0


@pytest.mark.virtual_time
async def test_silence(network: Network) -> None:
    """A reply ends with the deadline; a stream with the time that it may be idle, without one."""
    peer, client = scripted(network)
    peer.on(EchoMethods.UnaryUnary).hang()
    peer.on(EchoMethods.UnaryStream).hang()
    with pytest.raises(DeadlineExceeded):
        await client.UnaryUnary(text("x"), timeout=3600)
    assert now() == 3600.0
    with pytest.raises(DeadlineExceeded, match="no message for 30 s"):
        await anext(client.UnaryStream(text("x")))
    assert now() == 3630.0


@pytest.mark.virtual_time
async def test_what_was_asked_is_remembered(network: Network) -> None:
    """Method, requests, metadata and what was left of the caller's time, call by call; failed ones as well."""
    peer, client = scripted(network)
    peer.on(EchoMethods.UnaryUnary).fail(Unavailable("busy"))
    peer.on(EchoMethods.StreamUnary).reply(text("x"))
    with pytest.raises(Unavailable):
        await client.UnaryUnary(text("a"), timeout=2.5, metadata=(("x-tenant", "t"), ("x-request-id", "r1")))
    await client.StreamUnary([text("b"), text("c")], timeout=7, metadata=(("x-request-id", "r2"),))
    assert peer.calls == [
        Received(EchoMethods.UnaryUnary, (text("a"),), (("x-tenant", "t"), ("x-request-id", "r1")), 2.5),
        Received(EchoMethods.StreamUnary, (text("b"), text("c")), (("x-request-id", "r2"),), 7.0),
    ]


async def test_stream_without_a_deadline(network: Network) -> None:
    """It has no time that could remain."""
    peer, client = scripted(network)
    peer.on(EchoMethods.UnaryStream).reply(text("a"))
    assert [reply.value async for reply in client.UnaryStream(text("x"))] == ["a"]
    assert [call.time_remaining for call in peer.calls] == [None]


async def test_method_that_is_not_scripted(network: Network) -> None:
    """It is UNIMPLEMENTED; one whose script is empty says so."""
    peer, client = scripted(network)
    peer.on(EchoMethods.UnaryUnary)
    with pytest.raises(Unknown, match="this scripted method has no steps"):
        await client.UnaryUnary(text("x"))
    with pytest.raises(Unimplemented):
        await client.StreamUnary([text("x")])


async def test_script_that_is_written_later(network: Network) -> None:
    """A peer may be on the network before the test says what it does, as when a fixture makes it."""
    peer, client = scripted(network)
    await asyncio.sleep(0)
    peer.on(EchoMethods.UnaryUnary).reply(text("a"))
    assert (await client.UnaryUnary(text("x"))).value == "a"


async def test_exception_that_is_no_status(network: Network, caplog: pytest.LogCaptureFixture) -> None:
    """It is INTERNAL to the caller, as from a real service."""
    peer, client = scripted(network)
    peer.on(EchoMethods.UnaryUnary).fail(ValueError("a secret"))
    with pytest.raises(Internal) as caught:
        await client.UnaryUnary(text("x"))
    assert "secret" not in caught.value.message
    assert "a secret" in caplog.text


async def test_details_and_metadata_of_a_failure(network: Network) -> None:
    """Both arrive, and the failure is the peer's."""
    peer, client = scripted(network)
    error = InvalidArgument("no", details=[text("why")], metadata=(("x-hint", "h"),))
    peer.on(EchoMethods.UnaryUnary).fail(error)
    with pytest.raises(InvalidArgument) as caught:
        await client.UnaryUnary(text("x"))
    assert (list(caught.value.details), caught.value.remote) == ([text("why")], True)
    assert ("x-hint", "h") in caught.value.metadata


async def test_two_peers(network: Network) -> None:
    """Each has calls of its own."""
    peers = [network.script("echo"), network.script("other")]
    for number, peer in enumerate(peers):
        peer.on(EchoMethods.UnaryUnary).reply(text(str(number)))
    replies = [(await EchoClient(network.connect(name)).UnaryUnary(text(name))).value for name in ("echo", "other")]
    assert replies == ["0", "1"]
    assert [[call.requests for call in peer.calls] for peer in peers] == [[(text("echo"),)], [(text("other"),)]]
