"""Instances of one service that do what a test says, call by call, and what they have seen; in memory or over grpc."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from google.protobuf.wrappers_pb2 import StringValue

from framework import ClientSettings, Code, Context, MethodSettings, RpcError, Service, Settings, connect
from framework.client.dropin import Channel
from framework.client.endpoint import Endpoint
from framework.config import Drain, ServerSettings
from framework.errors import BY_CODE
from framework.policy import BackoffSettings, HedgeSettings, LimiterSettings, RetrySettings
from framework.rpc import StreamReply, UnaryReply
from framework.server.pipeline import Pipeline
from framework.testing import Network
from framework.testing.network import Hosted
from tests.invariants.echo import Echo, EchoClient, text

ARITIES = ["UnaryUnary", "UnaryStream", "StreamUnary", "StreamStream"]
"""The methods of the service."""

PREVIOUS = "x-previous-rpc-attempts"
PUSHBACK = "grpc-retry-pushback-ms"

IDEMPOTENT = {name: MethodSettings(idempotent=True) for name in ARITIES}
NO_HEDGE = HedgeSettings(extra_load=0.0)
NO_LIMIT = LimiterSettings(maximum=0)
UNLIMITED = Settings(server=ServerSettings(limiter=NO_LIMIT))
"""It is the clients that are looked at here."""

QUICK = RetrySettings(backoff=BackoffSettings(initial=0.001, maximum=0.001))
"""Retries that hardly wait."""

Step = Callable[[Context], AsyncIterator[StringValue]]
"""What an instance does with a call whose requests it has read."""


def says(reply: str = "done", *, after: float = 0.0) -> Step:
    """Answer."""

    async def step(context: Context) -> AsyncIterator[StringValue]:
        await asyncio.sleep(after)
        yield text(reply)

    return step


def fails(
    code: Code = Code.UNAVAILABLE,
    *,
    after: float = 0.0,
    pushback: str = "",
    header: bool = False,
    replies: int = 0,
    pause: float = 0.0,
) -> Step:
    """Fail, after response headers or replies and a pause, if there are to be any."""

    async def step(context: Context) -> AsyncIterator[StringValue]:
        await asyncio.sleep(after)
        if header:
            await context.send_initial_metadata((("early", "yes"),))
        for number in range(replies):
            yield text(str(number))
        await asyncio.sleep(pause)
        raise BY_CODE[code]("broken", metadata=((PUSHBACK, pushback),) if pushback else ())

    return step


def hangs() -> Step:
    """Never answer."""

    async def step(context: Context) -> AsyncIterator[StringValue]:
        await asyncio.get_running_loop().create_future()
        yield text("never")

    return step


@dataclass
class Seen:
    """One call that an instance was sent."""

    peer: str
    moment: float
    texts: list[str]
    metadata: Mapping[str, str | bytes]
    remaining: float | None
    cancelled: bool = False

    @property
    def previous(self) -> str | bytes | None:
        """What it was told of earlier attempts."""
        return self.metadata.get(PREVIOUS)


class Relay:
    """A cable between a client and a server that can be cut."""

    def __init__(self, port: int) -> None:
        self._to = port
        self._server: asyncio.Server | None = None
        self._writers: list[asyncio.StreamWriter] = []
        self._pumps: list[asyncio.Task[None]] = []

    async def start(self) -> int:
        """Listen; the port."""
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection("127.0.0.1", self._to)
        self._writers += [writer, back]
        self._pumps += [asyncio.ensure_future(_pump(reader, back)), asyncio.ensure_future(_pump(there, writer))]

    def cut(self) -> None:
        """Every connection is reset, and no new one is accepted."""
        if self._server is not None:
            self._server.close()
        for writer in self._writers:
            writer.transport.abort()
        for pump in self._pumps:
            pump.cancel()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(65536):
            writer.write(data)
        writer.close()


@dataclass
class Lab:
    """A client of some instances.

    Attributes:
        calls: what the instances were sent, in order.
        own: by name of an instance, what it does instead of the common script.
        relays: by name of an instance, its cable, where grpc is the wire.
    """

    channel: Channel
    client: EchoClient
    hosted: list[Hosted] = field(default_factory=list)
    pipelines: list[Pipeline] = field(default_factory=list)
    calls: list[Seen] = field(default_factory=list)
    own: dict[str, Step] = field(default_factory=dict)
    relays: dict[str, Relay] = field(default_factory=dict)
    steps: deque[Step] = field(default_factory=lambda: deque([says()]))

    def script(self, *steps: Step) -> None:
        """What the instances do from now on, one step a call whoever is sent it; the last one stays."""
        self.steps = deque(steps)
        self.calls.clear()

    def behaviour(self, peer: str) -> Any:
        """What one instance does."""

        async def behave(requests: AsyncIterator[StringValue], context: Context) -> AsyncIterator[StringValue]:
            step = self.own.get(peer) or (self.steps.popleft() if len(self.steps) > 1 else self.steps[0])
            moment = asyncio.get_running_loop().time()
            seen = Seen(peer, moment, [], dict(context.invocation_metadata()), context.time_remaining())
            self.calls.append(seen)
            try:
                async for request in requests:
                    seen.texts.append(request.value)
                async for reply in step(context):
                    yield reply
            except asyncio.CancelledError:
                seen.cancelled = True
                raise

        return behave

    def kill(self, peer: str) -> None:
        """The instance is gone for this client, and what was in flight with it."""
        if self.relays:
            self.relays[peer].cut()
        else:
            next(hosted for hosted in self.hosted if hosted.name == peer).disconnect()

    def start(self, method: str = "UnaryUnary", request: str = "a", timeout: float | None = None, **more: Any) -> Any:
        """A call that is not made yet."""
        message = [text(request)] if method.startswith("Stream") else text(request)
        return getattr(self.client, method)(message, timeout=timeout, **more)

    async def call(self, method: str = "UnaryUnary", request: str = "a", timeout: float | None = None) -> str:
        """The text of the reply, or of the last of them."""
        return await last(self.start(method, request, timeout))

    async def fail(self, method: str = "UnaryUnary", request: str = "a", timeout: float | None = None) -> RpcError:
        """The error of a call that must fail."""
        try:
            reply = await self.call(method, request, timeout)
        except RpcError as error:
            return error
        raise AssertionError(f"answered with {reply!r}")

    async def history(self, seconds: float = 0.01, calls: int = 40) -> None:
        """So many calls are answered, each after so long; then everything is forgotten but by the client."""
        self.script(says(after=seconds))
        await asyncio.gather(*(self.call() for _ in range(calls)))
        self.calls.clear()

    @property
    def endpoints(self) -> tuple[Endpoint, ...]:
        """What the client knows."""
        return self.channel.pool.endpoints

    @property
    def peers(self) -> list[str]:
        """Who was called, in order."""
        return [seen.peer for seen in self.calls]

    @property
    def idle(self) -> bool:
        """Nothing is in flight on either side."""
        return not any(endpoint.pending for endpoint in self.endpoints) and not any(
            pipeline.calls for pipeline in self.pipelines
        )


async def last(reply: UnaryReply[StringValue] | StreamReply[StringValue]) -> str:
    """The text of the only reply, or of the last one."""
    if isinstance(reply, StreamReply):
        value = ""
        async for message in reply:
            value = message.value
        return value
    return (await reply).value


async def soon(condition: Callable[[], Any], seconds: float = 5.0) -> None:
    """Return once the condition holds."""
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110  # grpc has no event for most of it
            await asyncio.sleep(0.005)


@asynccontextmanager
async def lab(
    count: int = 3, settings: ClientSettings | None = None, *, wire: str = "memory", idempotent: bool = True, **own: Any
) -> AsyncIterator[Lab]:
    """A client whose connections to all instances are ready; at the end nothing may be in flight.

    Args:
        count: instances.
        settings: of the client; with `idempotent`, all methods are.
        own: more of the settings.
    """
    chosen = settings or ClientSettings(**{"methods": IDEMPOTENT if idempotent else {}, "hedge": NO_HEDGE, **own})
    chosen = dataclasses.replace(chosen, direct=wire == "direct")
    here = Lab(None, None)  # type: ignore[arg-type]  # set below
    async with AsyncExitStack() as stack:
        if wire == "memory":
            network = await stack.enter_async_context(Network())
            for number in range(1, count + 1):
                name = f"memory:echo-{number}"
                here.hosted.append(
                    network.add(Service("echo", servicers=[Echo(here.behaviour(name))], settings=UNLIMITED))
                )
            channel = network.connect("echo", settings=chosen)
        else:
            everything = Settings(
                registry="none",
                server=ServerSettings(drain=Drain(delay=0, grace=0, streams=0), limiter=NO_LIMIT),
                client=chosen,
            )
            addresses = []
            for _ in range(count):
                servicer = Echo()
                service = Service("echo", servicers=[servicer])
                server = await stack.enter_async_context(service.running(everything))
                relay = Relay(server.port)
                addresses.append(f"127.0.0.1:{await relay.start()}")
                here.relays[addresses[-1]] = relay
                stack.callback(relay.cut)
                servicer.behave = here.behaviour(addresses[-1])
                here.pipelines.append(server.pipeline)
            channel = connect(f"static://{','.join(addresses)}", settings=everything)
        here.channel = await stack.enter_async_context(channel)
        here.client = EchoClient(channel)
        await channel.channel_ready()
        for endpoint in channel.pool.endpoints:
            endpoint.transport.connect()
        async with asyncio.timeout(10):
            await channel.pool.until(lambda: all(endpoint.transport.ready for endpoint in channel.pool.endpoints))
        if wire == "direct":
            transports: list[Any] = [endpoint.transport for endpoint in channel.pool.endpoints]
            await soon(lambda: all(transport.direct.connection for transport in transports))
        here.pipelines += [hosted.pipeline for hosted in here.hosted]
        tasks = asyncio.all_tasks()
        yield here
        try:
            await soon(lambda: here.idle and not _left(tasks))
        except TimeoutError:
            raise AssertionError(f"left over: {here.endpoints}, {here.pipelines}, {_left(tasks)}") from None


def _left(before: set[asyncio.Task[Any]]) -> list[asyncio.Task[Any]]:
    """Tasks that were not there before, but the one that looks, and grpc.aio's own."""
    return [
        task
        for task in asyncio.all_tasks() - before
        if task is not asyncio.current_task() and "_request_call" not in repr(task) and "_serve" not in repr(task)
    ]


async def cancelled(task: asyncio.Future[Any]) -> None:
    """Cancel a task, and see that it is."""
    task.cancel()
    try:
        await task
    except asyncio.CancelledError:
        return
    raise AssertionError(f"{task!r} was not cancelled")
