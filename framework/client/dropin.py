"""Stubs of grpc's own plugin on our channel: `CatalogStub(channel)`.

`Channel` is what `connect` returns: a nominal `grpc.aio.Channel`, so that generated code and its stubs accept it. The
calls such stubs make go through the whole client, and raise real `grpc.aio.AioRpcError` with ours as the cause.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Generator
from typing import Any, NoReturn

import grpc
import grpc.aio

from framework.call import Call, Metadata, Method, Outcome
from framework.client.channel import ServiceChannel
from framework.client.pool import Pool
from framework.client.stub import StreamReply, UnaryReply
from framework.details import KEY as DETAILS
from framework.details import pack
from framework.errors import Code, RpcError

_STATUS = {code.value[0]: code for code in grpc.StatusCode}


class Channel(ServiceChannel, grpc.aio.Channel):
    """A channel to one service; generated clients, and stubs of grpc's own plugin, are made with it."""

    def unary_unary(self, method: str, *codec: Any, **options: Any) -> Any:
        return self._callable(method, False, False, *codec, **options)

    def unary_stream(self, method: str, *codec: Any, **options: Any) -> Any:
        return self._callable(method, False, True, *codec, **options)

    def stream_unary(self, method: str, *codec: Any, **options: Any) -> Any:
        return self._callable(method, True, False, *codec, **options)

    def stream_stream(self, method: str, *codec: Any, **options: Any) -> Any:
        return self._callable(method, True, True, *codec, **options)

    def _callable(
        self,
        path: str,
        client_streaming: bool,
        server_streaming: bool,
        request_serializer: Callable[[Any], bytes] | None = None,
        response_deserializer: Callable[[bytes], Any] | None = None,
        _registered_method: bool | None = False,
    ) -> Callable[..., DropInCall]:
        service, _, name = path.removeprefix("/").rpartition("/")
        method: Method[Any, Any] = Method(
            service,
            name,
            object,
            object,
            client_streaming=client_streaming,
            server_streaming=server_streaming,
            encode=request_serializer or _raw,
            decode=response_deserializer or _raw,
        )
        handler = self.bind(method)
        kind: Any = StreamReply if server_streaming else UnaryReply

        def start(
            request: Any = None,
            *,
            timeout: float | None = None,
            metadata: Any = None,
            credentials: grpc.CallCredentials | None = None,
            wait_for_ready: bool | None = None,
            compression: grpc.Compression | None = None,
        ) -> DropInCall:
            if credentials is not None or compression is not None:
                raise NotImplementedError("per-call credentials and compression are not available on this channel")
            requests = None
            if client_streaming and request is None:
                request = requests = _Requests()
            return DropInCall(kind(handler, method, request, timeout, tuple(metadata or ())), requests, self.pool)

        return start

    def get_state(self, try_to_connect: bool = False) -> grpc.ChannelConnectivity:
        """READY while any endpoint is, else IDLE; SHUTDOWN once closed."""
        if self.pool.closed:
            return grpc.ChannelConnectivity.SHUTDOWN
        if try_to_connect:
            self.pool.start()
            self.pool.pick(asyncio.get_running_loop().time())
        ready = any(endpoint.available for endpoint in self.pool.endpoints)
        return grpc.ChannelConnectivity.READY if ready else grpc.ChannelConnectivity.IDLE

    async def wait_for_state_change(self, last_observed_state: grpc.ChannelConnectivity) -> None:
        """Return once `get_state` differs from the given state."""
        await self.pool.until(lambda: self.get_state() is not last_observed_state)

    async def channel_ready(self) -> None:
        """Return once a call would leave at once.

        Raises:
            Unavailable: there is no instance that can be reached.
        """
        await self.pool.wait(Call(_CHANNEL_READY, None))


_CHANNEL_READY: Method[Any, Any] = Method("channel", "ready", object, object)


def _raw(message: Any) -> Any:
    return message


class _Requests(AsyncIterator[Any]):
    """The requests of a caller who writes them one by one; a write returns when grpc asks for the next."""

    _END = object()

    def __init__(self) -> None:
        self._queue: asyncio.Queue[Any] = asyncio.Queue(1)
        self.closed = False
        self.gone = asyncio.Event()  # nobody takes requests any more: the call has ended, whether it was read or not

    async def aclose(self) -> None:
        """The wire has stopped reading."""
        self.gone.set()

    async def write(self, message: Any) -> None:
        if self.closed:
            raise asyncio.InvalidStateError("writing is done already")
        await self._queue.put(message)

    async def done_writing(self) -> None:
        if not self.closed:
            self.closed = True
            await self._queue.put(self._END)

    async def __anext__(self) -> Any:
        message = await self._queue.get()
        if message is self._END:
            raise StopAsyncIteration
        return message


class DropInCall:
    """A call as grpc.aio's stubs return it: started at once, with the names of `grpc.aio.Call`."""

    def __init__(self, reply: Any, requests: _Requests | None, pool: Pool) -> None:
        self._reply = reply
        self._pool = pool
        self._call: Call = reply.call
        self._requests = requests
        self._streaming = isinstance(reply, StreamReply)
        self._ended = asyncio.Event()
        self._cancelled = False
        ended = self._ended  # not self: a callback that knew this object would keep it alive, and the call with it
        self._call.on_end(lambda outcome: ended.set())
        if requests is not None:
            self._call.on_end(lambda outcome: requests.gone.set())
        start = reply._start() if self._streaming else reply._run()
        self._task: asyncio.Task[Any] = asyncio.ensure_future(start)
        self._task.add_done_callback(_retrieve)

    def __await__(self) -> Generator[Any, None, Any]:
        return self._unary().__await__()

    async def _unary(self) -> Any:
        try:
            return await asyncio.shield(self._task)
        except RpcError as error:
            self._raise(error)
        except asyncio.CancelledError:
            self.cancel()
            raise

    def __aiter__(self) -> AsyncIterator[Any]:
        return self._messages()

    async def _messages(self) -> AsyncIterator[Any]:
        while (message := await self.read()) is not grpc.aio.EOF:
            yield message

    async def read(self) -> Any:
        """The next reply, or `grpc.aio.EOF`."""
        try:
            await asyncio.shield(self._task)
            return await anext(self._reply)
        except StopAsyncIteration:
            if self._cancelled:
                raise asyncio.CancelledError from None
            return grpc.aio.EOF
        except RpcError as error:
            self._raise(error)
        except asyncio.CancelledError:
            self.cancel()
            raise

    async def write(self, request: Any) -> None:
        """Send one request; waits while the connection is full."""
        if self._requests is None:
            raise grpc.aio.UsageError("the requests of this call come from an iterator")
        await self._unless_gone(self._requests, self._requests.write(request))

    async def done_writing(self) -> None:
        """Say that no more requests follow."""
        if self._requests is None:
            raise grpc.aio.UsageError("the requests of this call come from an iterator")
        await self._unless_gone(self._requests, self._requests.done_writing())

    async def _unless_gone(self, requests: _Requests, work: Coroutine[Any, Any, None]) -> None:
        """Grpc takes the next request only while the call lives."""
        if self._ended.is_set() or requests.gone.is_set():
            work.close()
            raise asyncio.InvalidStateError("the call has ended")
        working, ending = asyncio.ensure_future(work), asyncio.ensure_future(requests.gone.wait())
        try:
            await asyncio.wait((working, ending), return_when=asyncio.FIRST_COMPLETED)
            if not working.done():
                raise asyncio.InvalidStateError("the call has ended")
            working.result()
        finally:
            working.cancel()
            ending.cancel()

    def _raise(self, error: RpcError) -> NoReturn:
        trailer: Metadata = tuple(error.metadata)
        if error.details:
            trailer = (*trailer, (DETAILS, pack(error)))
        raise grpc.aio.AioRpcError(
            _STATUS[error.code.value],
            grpc.aio.Metadata(*self._call.header),
            grpc.aio.Metadata(*trailer),
            details=error.message,
            debug_error_string=repr(error),
        ) from error

    def cancel(self) -> bool:
        if self.done():
            return False
        self._cancelled = True
        self._task.cancel()
        if self._streaming:
            stream = self._reply._stream
            if stream is not None:
                stream.cancel()
        self._call.end(Outcome(Code.CANCELLED, remote=False))  # its task may never have run
        return True

    def cancelled(self) -> bool:
        return self._cancelled

    def done(self) -> bool:
        return self._call.outcome is not None

    def add_done_callback(self, callback: Callable[[Any], None]) -> None:
        def ended(outcome: Outcome) -> None:
            callback(self)

        self._call.on_end(ended)

    def time_remaining(self) -> float | None:
        if self._call.deadline is None:
            return None
        return max(0.0, self._call.deadline - asyncio.get_running_loop().time())

    async def code(self) -> grpc.StatusCode:
        await self._ended.wait()
        outcome = self._call.outcome
        return _STATUS[outcome.code.value] if outcome is not None else grpc.StatusCode.UNKNOWN

    async def details(self) -> str:
        await self._ended.wait()
        outcome = self._call.outcome
        return getattr(outcome.error, "message", "") if outcome is not None else ""

    async def debug_error_string(self) -> str:
        return repr(self._call)

    async def initial_metadata(self) -> grpc.aio.Metadata:
        try:
            await asyncio.shield(self._task)
        except RpcError:
            return grpc.aio.Metadata()
        header = self._call.header if self._streaming else await self._reply.initial_metadata()
        return grpc.aio.Metadata(*header)

    async def trailing_metadata(self) -> grpc.aio.Metadata:
        await self._ended.wait()
        outcome = self._call.outcome
        if outcome is not None and isinstance(outcome.error, RpcError):
            return grpc.aio.Metadata(*outcome.error.metadata)
        trailer = self._call.trailer if self._streaming else await self._reply.trailing_metadata()
        return grpc.aio.Metadata(*trailer)

    async def wait_for_connection(self) -> None:
        """Return once there is a connection that the call can use."""
        try:
            await self._pool.wait(self._call)
        except RpcError as error:
            self._raise(error)

    def __repr__(self) -> str:
        return f"<DropInCall of {self._call!r}>"


def _retrieve(task: asyncio.Task[Any]) -> None:
    if not task.cancelled():
        task.exception()  # whoever awaits the call is told; nobody has to
