"""Every test runs on both wires and on every arity it is about, and none may leave anything behind."""

from __future__ import annotations

import asyncio
import dataclasses
import gc
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import pytest
import pytest_asyncio

from framework import Call, Code, Handler, Interceptor, Method, Outcome, Reply, Service, Settings, connect
from framework.client.dropin import Channel
from framework.config import Drain, ServerSettings
from framework.policy import ClientSettings
from framework.rpc import StreamReply, UnaryReply
from framework.server.pipeline import ErrorMap, Pipeline
from framework.testing import Network
from framework.testing.memory import MemoryTransport
from tests.invariants.echo import Behaviour, Echo, EchoClient, Requests, repeat, text

T = TypeVar("T")

PATIENCE = 5.0
"""Seconds after which something that should happen at once is said not to happen."""

NO_WAIT = Drain(delay=0.0, grace=0.0, streams=0.0)


@dataclass(frozen=True)
class Arity:
    """Which sides stream."""

    method: str
    client_streaming: bool
    server_streaming: bool


ARITIES = {
    "unary_unary": Arity("UnaryUnary", False, False),
    "unary_stream": Arity("UnaryStream", False, True),
    "stream_unary": Arity("StreamUnary", True, False),
    "stream_stream": Arity("StreamStream", True, True),
}
WIRES = ["grpc", "direct", "memory"]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Only calls with one request and one reply take the direct way."""
    there = Path(__file__).parent

    def other(item: pytest.Item) -> bool:
        given = getattr(item, "callspec", None)
        if given is None or there not in item.path.parents or given.params.get("wire") != "direct":
            return False
        return bool(given.params.get("arity", "unary_unary") != "unary_unary")

    config.hook.pytest_deselected(items=[item for item in items if other(item)])
    items[:] = [item for item in items if not other(item)]


async def soon(awaitable: Awaitable[T]) -> T:
    """The result of something that is about to happen."""
    return await asyncio.wait_for(awaitable, PATIENCE)


async def until(condition: Callable[[], Any]) -> None:
    """Return once the condition holds, which it is about to."""
    loop = asyncio.get_running_loop()
    end = loop.time() + PATIENCE
    while not condition():
        if loop.time() > end:
            raise TimeoutError
        await asyncio.sleep(0.005)


def recording(outcomes: list[Outcome]) -> Interceptor:
    """An interceptor that keeps how calls ended."""

    def interceptor(method: Method[Any, Any], next: Handler) -> Handler:
        if method.service.startswith("grpc."):  # another test may ask after an instance that had this port before
            return next

        async def handler(call: Call) -> Reply:
            call.on_end(outcomes.append)
            return await next(call)

        return handler

    return interceptor


Ending = tuple[Code, bool, bool]
"""Code, remote and sent of an outcome."""


def ending(outcome: Outcome) -> Ending:
    return outcome.code, outcome.remote, outcome.sent


@dataclass
class World:
    """An echo service, a client of it, and what has become of the calls between them."""

    arity: Arity
    channel: Channel
    pipeline: Pipeline
    servicer: Echo
    called: list[Outcome] = field(default_factory=list)
    served: list[Outcome] = field(default_factory=list)

    def serve(self, behave: Behaviour) -> None:
        """What the servicer does from now on."""
        self.servicer.behave = behave

    def start(
        self, *requests: str, source: Any = None, timeout: float | None = None, metadata: Any = ()
    ) -> UnaryReply[Any] | StreamReply[Any]:
        """A call; `source` is sent instead of the requests when the client streams."""
        messages: Requests = [text(request) for request in requests or ("a",)]
        call = getattr(EchoClient(self.channel), self.arity.method)
        argument = (
            (messages if source is None else source) if self.arity.client_streaming else text((*requests, "a")[0])
        )
        reply: UnaryReply[Any] | StreamReply[Any] = call(argument, timeout=timeout, metadata=metadata)
        return reply

    async def call(self, *requests: str, source: Any = None, timeout: float | None = None) -> list[str]:
        """All replies of a call."""
        return await collect(self.start(*requests, source=source, timeout=timeout))

    async def endings(self, count: int = 1) -> tuple[list[Ending], list[Ending]]:
        """How the calls ended, at the client and at the server, once `count` have ended at both."""
        await until(lambda: len(self.called) >= count and len(self.served) >= count)
        return [ending(outcome) for outcome in self.called], [ending(outcome) for outcome in self.served]

    @property
    def in_memory(self) -> bool:
        """No network is between the two."""
        return isinstance(self.channel.pool.endpoints[0].transport, MemoryTransport)

    @property
    def idle(self) -> bool:
        """No call is in flight on either side."""
        return not self.pipeline.calls and not any(endpoint.pending for endpoint in self.channel.pool.endpoints)


async def collect(reply: UnaryReply[Any] | StreamReply[Any], got: list[str] | None = None) -> list[str]:
    """The texts of all replies; those before a failure stand in `got`."""
    got = [] if got is None else got
    if isinstance(reply, StreamReply):
        async for message in reply:
            got.append(message.value)
    else:
        got.append((await reply).value)
    return got


@pytest.fixture(scope="session", autouse=True)
def cheap_collections() -> Iterator[None]:
    """Every test here collects garbage; what was there before the first is none."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(params=WIRES)
def wire(request: pytest.FixtureRequest) -> str:
    """What the call travels on."""
    return str(request.param)


@pytest.fixture(params=ARITIES)
def arity(request: pytest.FixtureRequest) -> Arity:
    """How the method streams."""
    return ARITIES[request.param]


def only(**which: bool) -> pytest.MarkDecorator:
    """Only the arities with these attributes."""
    names = [
        name for name, arity in ARITIES.items() if all(getattr(arity, key) == value for key, value in which.items())
    ]
    return pytest.mark.parametrize("arity", names, indirect=True)


uploading = only(client_streaming=True)
streaming = only(server_streaming=True)


@asynccontextmanager
async def open_world(
    wire: str,
    arity: Arity,
    *,
    behave: Behaviour = repeat,
    errors: ErrorMap | None = None,
    settings: ClientSettings | None = None,
    interceptors: tuple[Interceptor, ...] = (),
) -> AsyncIterator[World]:
    """A service and a client of it, on a wire; at the end nothing may be left of any call."""
    called: list[Outcome] = []
    served: list[Outcome] = []
    servicer = Echo(behave)
    service = Service("echo", servicers=[servicer], errors=errors, interceptors=[recording(served), *interceptors])
    own = dataclasses.replace(settings or ClientSettings(), direct=wire == "direct")
    if wire == "memory":
        async with Network() as network:
            hosted = network.add(service)
            async with network.connect("echo", interceptors=[recording(called)], settings=own) as channel:
                await channel.channel_ready()
                async with nothing_left(world := World(arity, channel, hosted.pipeline, servicer, called, served)):
                    yield world
        return
    everything = Settings(registry="none", server=ServerSettings(drain=NO_WAIT), client=own)
    async with service.running(everything) as server:
        address = f"127.0.0.1:{server.port}"
        async with connect(address, interceptors=[recording(called)], settings=everything) as channel:
            await channel.channel_ready()
            if wire == "direct":
                await until(lambda: channel.pool.endpoints[0].transport.direct.connection)  # type: ignore[attr-defined]  # of grpc
            async with nothing_left(world := World(arity, channel, server.pipeline, servicer, called, served)):
                yield world


@asynccontextmanager
async def nothing_left(world: World) -> AsyncIterator[None]:
    """At the end no call is in flight, no task is left, and no exception was lost."""
    loop = asyncio.get_running_loop()
    lost: list[dict[str, Any]] = []
    loop.set_exception_handler(lambda loop, context: None if _of_another_loop(context) else lost.append(context))
    before = asyncio.all_tasks()
    yield
    gc.collect()

    def left() -> set[asyncio.Task[Any]]:
        now = asyncio.all_tasks() - before
        return {task for task in now if task is not asyncio.current_task() and not _of_grpc_server(task)}

    try:
        await until(lambda: world.idle and not left())
    except TimeoutError:
        pytest.fail(f"in flight: {world.pipeline.calls}, {world.channel.pool.endpoints}; tasks: {left()}")
    await asyncio.sleep(0)
    assert lost == []


def _of_another_loop(context: dict[str, Any]) -> bool:
    """grpc.aio's poller tells the newest loop of events, those of the loop of the test before as well."""
    return "PollerCompletionQueue" in repr(context.get("handle"))


def _of_grpc_server(task: asyncio.Task[Any]) -> bool:
    """grpc.aio's own wait for the next RPC."""
    return "_request_call" in repr(task) or "_server_main_loop" in repr(task)


@pytest_asyncio.fixture
async def world(wire: str, arity: Arity) -> AsyncIterator[World]:
    """An echo service and a client of it."""
    async with open_world(wire, arity) as world:
        yield world


@pytest.fixture(autouse=True)
def no_complaints(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Neither grpc nor asyncio has anything to complain about."""
    yield
    assert [line for line in complaints(caplog, logging.WARNING) if not line.startswith("framework")] == []


def complaints(caplog: pytest.LogCaptureFixture, level: int) -> list[str]:
    """What was logged from this level on: the logger, and the message."""
    loud = [record for record in caplog.get_records("call") if record.levelno >= level]
    lines = [f"{record.name}: {record.getMessage()}" for record in loud]
    return [line for line in lines if "PollerCompletionQueue" not in line]  # see _of_another_loop
