"""What a call costs, beside bare grpc.aio: client, server, streams, and the network in memory."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import grpc.aio
from google.protobuf.struct_pb2 import Value
from google.protobuf.wrappers_pb2 import BytesValue, DoubleValue, Int64Value

from bench.echo import CPU, PAYLOAD, READ, SERVICE, STREAM, UNARY, UPLOAD, Echo
from bench.harness import Row, paired
from framework import Service, Settings, StreamReply, UnaryReply, connect
from framework.testing import Network

CALLS = 400
AT_ONCE = 8
MESSAGES = 1000

REQUEST = BytesValue(value=PAYLOAD)
COUNT = Int64Value(value=MESSAGES)

Block = Callable[[], Coroutine[Any, Any, None]]


@contextlib.asynccontextmanager
async def process(*arguments: str, module: str = "bench.echo") -> AsyncIterator[str]:
    """`bench.echo`, or another module, as a process; gives its address."""
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-m", module, *arguments, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    assert child.stdout is not None
    assert child.stdin is not None
    try:
        yield f"127.0.0.1:{int(await child.stdout.readline())}"
    finally:
        child.stdin.close()
        await child.wait()


async def repeat(call: Callable[[], Coroutine[Any, Any, Any]], calls: int = CALLS) -> None:
    """Make calls, `AT_ONCE` at a time."""

    async def worker() -> None:
        for _ in range(calls // AT_ONCE):
            await call()

    await asyncio.gather(*(worker() for _ in range(AT_ONCE)))


async def _requests() -> AsyncIterator[BytesValue]:
    for _ in range(MESSAGES):
        yield REQUEST


class Ours:
    """The three blocks over a channel of ours."""

    def __init__(self, channel: Any) -> None:
        bound = (channel.bind(method) for method in (UNARY, READ, STREAM, UPLOAD))
        self._unary, self._read, self._stream, self._upload = bound

    async def call(self) -> BytesValue:
        return await UnaryReply(self._unary, UNARY, REQUEST)

    async def unary(self) -> None:
        await repeat(self.call)

    async def read(self) -> BytesValue:
        return await UnaryReply(self._read, READ, REQUEST)

    async def hedged(self) -> None:
        await repeat(self.read)

    async def stream(self) -> None:
        count = 0
        async for _ in StreamReply(self._stream, STREAM, COUNT):
            count += 1
        assert count == MESSAGES

    async def upload(self) -> None:
        reply = await UnaryReply(self._upload, UPLOAD, _requests())
        assert reply.value == MESSAGES


class Bare:
    """The same over grpc.aio alone."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._unary: Any = channel.unary_unary(f"/{SERVICE}/Unary", BytesValue.SerializeToString, BytesValue.FromString)
        self._stream: Any = channel.unary_stream(
            f"/{SERVICE}/Stream", Int64Value.SerializeToString, BytesValue.FromString
        )
        self._upload: Any = channel.stream_unary(
            f"/{SERVICE}/Upload", BytesValue.SerializeToString, Int64Value.FromString
        )

    async def call(self) -> Any:
        return await self._unary(REQUEST)

    async def unary(self) -> None:
        await repeat(self.call)

    hedged = unary

    async def stream(self) -> None:
        count = 0
        async for _ in self._stream(COUNT):
            count += 1
        assert count == MESSAGES

    async def upload(self) -> None:
        reply = await self._upload(_requests())
        assert reply.value == MESSAGES


def own_cpu(block: Block, units: int) -> Callable[[], Coroutine[Any, Any, float]]:
    """Microseconds of this process's CPU per unit of a block."""

    async def measure() -> float:
        start = time.process_time()
        await block()
        return (time.process_time() - start) / units * 1e6

    return measure


def peer_cpu(block: Block, channel: grpc.aio.Channel, units: int) -> Callable[[], Coroutine[Any, Any, float]]:
    """Microseconds of the server process's CPU per unit of a block; the server tells its own."""
    ask: Any = channel.unary_unary(f"/{SERVICE}/Cpu", CPU.request.SerializeToString, DoubleValue.FromString)

    async def measure() -> float:
        start = (await ask(Value())).value
        await block()
        return float((await ask(Value())).value - start) / units * 1e6

    return measure


async def client() -> AsyncIterator[Row]:
    """Client CPU: everything on, beside bare grpc.aio, against the same bare server."""
    async with (
        process("bare") as address,
        connect(address, settings=Settings()) as channel,
        grpc.aio.insecure_channel(address) as raw,
    ):
        ours, bare = Ours(channel), Bare(raw)
        for name, units in (("unary", CALLS), ("hedged", CALLS), ("stream", MESSAGES), ("upload", MESSAGES)):
            yield await paired(
                f"client.{name}.cpu",
                "us/call" if units == CALLS else "us/message",
                own_cpu(getattr(ours, name), units),
                "grpc.aio",
                own_cpu(getattr(bare, name), units),
                "<= 1.12",
                pairs=61,
            )


async def server() -> AsyncIterator[Row]:
    """Server CPU: everything on, beside bare grpc.aio, under the same bare client."""
    async with (
        process("ours") as our_address,
        process("bare") as bare_address,
        grpc.aio.insecure_channel(our_address) as our_channel,
        grpc.aio.insecure_channel(bare_address) as bare_channel,
    ):
        ours, bare = Bare(our_channel), Bare(bare_channel)
        for name, units in (("unary", CALLS), ("stream", MESSAGES), ("upload", MESSAGES)):
            yield await paired(
                f"server.{name}.cpu",
                "us/call" if name == "unary" else "us/message",
                peer_cpu(getattr(ours, name), our_channel, units),
                "grpc.aio",
                peer_cpu(getattr(bare, name), bare_channel, units),
                "<= 1.12",
                pairs=61,
            )


async def memory() -> AsyncIterator[Row]:
    """A call on the network in memory, beside one over loopback with bare grpc.aio, both ends in this process."""
    from framework.call import Call

    service = Service("echo", servicers=[Echo()])
    raw_server = grpc.aio.server(options=(("grpc.so_reuseport", 0),))
    from bench.echo import bare_handlers

    raw_server.add_generic_rpc_handlers((bare_handlers(),))
    port = raw_server.add_insecure_port("127.0.0.1:0")
    await raw_server.start()

    async with Network() as network, grpc.aio.insecure_channel(f"127.0.0.1:{port}") as raw:
        network.add(service)
        channel = network.connect("echo")
        ours, bare = Ours(channel), Bare(raw)
        await ours.call()
        wire = channel.pool.endpoints[0].bind(UNARY)

        async def wire_call() -> Any:
            return await wire(Call(UNARY, REQUEST))

        async def one_by_one(call: Callable[[], Coroutine[Any, Any, Any]], calls: int) -> None:
            for _ in range(calls):
                await call()

        calls = 400
        for name, call, goal in (
            ("memory.unary.wire", wire_call, ">= 20"),
            ("memory.unary.stack", ours.call, ">= 8"),
        ):
            yield await paired(
                name,
                "us/call",
                own_cpu(lambda call=call: one_by_one(call, calls * 5), calls * 5),  # type: ignore[misc]  # bound here
                "grpc.aio on loopback",
                own_cpu(lambda: one_by_one(bare.call, calls), calls),
                goal,
                invert=True,
            )
    await raw_server.stop(0)
