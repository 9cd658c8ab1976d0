"""The client that `connectconformance` tests: told over standard input what to call, it says what came of it.

    python -m tests.http.conformance.client direct|grpc

Source: https://github.com/connectrpc/conformance/blob/main/docs/testing_clients.md
"""

from __future__ import annotations

import asyncio
import base64
import math
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from framework import Method, RpcError, Settings, connect
from framework.call import Metadata
from framework.client.dropin import Channel
from framework.options import method_of
from framework.policy import BreakerSettings, ClientSettings
from framework.rpc import StreamReply, UnaryReply
from tests.http.conformance.server import SERVICE, message, metadata

METHODS: dict[str, Method[Any, Any]] = {descriptor.name: method_of(descriptor) for descriptor in SERVICE.methods}
FULL_DUPLEX = 5


def headers(pairs: Metadata) -> list[Any]:
    found: dict[str, list[str]] = {}
    for key, value in pairs:
        text = base64.b64encode(value).decode().rstrip("=") if isinstance(value, bytes) else value
        found.setdefault(key, []).append(text)
    return [message("Header")(name=key, value=values) for key, values in found.items()]


class Requests:
    """What a call sends, as its test says; and how the call is cancelled.

    Attributes:
        sent: how many were taken.
        turn: set when the next may be sent.
    """

    def __init__(self, order: Any, method: Method[Any, Any], cancel: Callable[[], object]) -> None:
        self._order = order
        self._kind = method.request
        self._cancel = cancel
        self.sent = 0
        self.turn = asyncio.Event()
        self.turn.set()

    def one(self) -> Any:
        return self._kind.FromString(self._order.request_messages[0].value)

    async def all(self) -> AsyncIterator[Any]:
        order, cancel = self._order, self._order.cancel
        for packed in order.request_messages:
            await asyncio.sleep(order.request_delay_ms / 1000)
            await self.turn.wait()
            if order.stream_type == FULL_DUPLEX:
                self.turn.clear()
            self.sent += 1
            yield self._kind.FromString(packed.value)
        await self.turn.wait()
        if cancel.HasField("before_close_send"):
            self._cancel()
            await asyncio.Event().wait()
        self.closed()

    def closed(self) -> None:
        """All is sent."""
        cancel = self._order.cancel
        if self._order.HasField("cancel") and cancel.WhichOneof("cancel_timing") in (None, "after_close_send_ms"):
            asyncio.get_running_loop().call_later(cancel.after_close_send_ms / 1000, self._cancel)


async def made(channel: Channel, order: Any, result: Any) -> None:
    """Make the call; what came of it is in `result`."""
    method = METHODS[order.method]
    timeout = order.timeout_ms / 1000 if order.HasField("timeout_ms") else math.inf
    task = asyncio.current_task()
    assert task is not None
    requests = Requests(order, method, task.cancel)
    given = requests.all() if method.client_streaming else requests.one()
    if not method.client_streaming:
        requests.closed()
    handler, more = channel.bind(method), metadata(order.request_headers)
    reply_of: Any = (StreamReply if method.server_streaming else UnaryReply)(handler, method, given, timeout, more)
    trailer: Metadata = ()
    try:
        if method.server_streaming:
            async with reply_of as stream:
                async for reply in stream:
                    result.payloads.append(reply.payload)
                    requests.turn.set()
                    if len(result.payloads) == order.cancel.after_num_responses:
                        task.cancel()
            trailer = stream.trailing_metadata()
        else:
            reply = await reply_of
            if hasattr(reply, "payload"):
                result.payloads.append(reply.payload)
            trailer = await reply_of.trailing_metadata()
    except RpcError as error:
        result.error.code, result.error.message = error.code, error.message
        for detail in error.details:
            packed = result.error.details.add()
            if detail.DESCRIPTOR.full_name == "google.protobuf.Any":
                packed.MergeFromString(detail.SerializeToString())
            else:
                packed.Pack(detail)
        trailer = error.metadata
    except asyncio.CancelledError:
        task.uncancel()
        result.error.code = 1
    result.response_headers.extend(headers(reply_of.call.header))
    result.response_trailers.extend(headers(trailer))
    if result.HasField("error"):
        result.num_unsent_requests = len(order.request_messages) - requests.sent if method.client_streaming else 0


class Channels:
    """One for each server and limit, connected."""

    def __init__(self, direct: bool) -> None:
        self._direct = direct
        self._open: dict[Any, asyncio.Task[Channel]] = {}

    async def to(self, order: Any) -> Channel:
        where = (f"{order.host}:{order.port}", order.message_receive_limit)
        if where not in self._open:
            self._open[where] = asyncio.create_task(self._connect(*where))
        return await self._open[where]

    async def _connect(self, address: str, limit: int) -> Channel:
        never = BreakerSettings(consecutive=0, failure_rate=0.0)
        client = ClientSettings(direct=self._direct, max_message=limit or 4 << 20, breaker=never)
        channel = connect(address, settings=Settings(registry="none", client=client))
        await channel.channel_ready()
        transport: Any = channel.pool.endpoints[0].transport
        async with asyncio.timeout(5):
            while self._direct and transport.direct.connection is None:  # noqa: ASYNC110  # there is no event for it
                await asyncio.sleep(0.001)
        return channel

    async def aclose(self) -> None:
        for opening in self._open.values():
            await (await opening).close()


async def answer(channels: Channels, order: Any) -> Any:
    told = message("ClientCompatResponse")(test_name=order.test_name)
    try:
        await made(await channels.to(order), order, told.response)
        told.response.SetInParent()
    except Exception as error:
        told.error.message = repr(error)
    return told


async def main() -> None:
    channels = Channels({"direct": True, "grpc": False}[sys.argv[1]])
    standard = asyncio.StreamReader(limit=1 << 26)
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(standard), sys.stdin)

    async def tell(coming: Awaitable[Any]) -> None:
        data = (await coming).SerializeToString()
        sys.stdout.buffer.write(len(data).to_bytes(4, "big") + data)
        sys.stdout.buffer.flush()

    async with asyncio.TaskGroup() as tasks:
        while size := await standard.read(4):
            order = await standard.readexactly(int.from_bytes(size, "big"))
            tasks.create_task(tell(answer(channels, message("ClientCompatRequest").FromString(order))))
    await channels.aclose()


if __name__ == "__main__":
    asyncio.run(main())
