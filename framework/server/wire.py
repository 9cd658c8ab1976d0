"""grpc.aio below the pipeline: one RpcMethodHandler per method, raw bytes in and out.

What grpc.aio gets wrong is put right here: an upload that broke off looks complete, a failed write does not say why, a
handler's own CancelledError leaves the caller hanging, exceptions leak their text.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterable, Mapping
from typing import Any, NoReturn

import grpc
import grpc.aio

from framework.call import ABANDONED, OK, Metadata, Outcome, Stream
from framework.certificates import Material, TlsFiles
from framework.config import ServerSettings
from framework.details import ORIGIN
from framework.errors import Code, ConfigError, RpcError
from framework.identity import Peer
from framework.loop import guard_loop
from framework.metadata import unwelcome
from framework.server import context as server_context
from framework.server.context import ServerCall, incoming_call
from framework.server.gate import arrival
from framework.server.pipeline import Bound, Broken, Pipeline, internal, status_of

server_context.END_OF_STREAM = grpc.aio.EOF
GRACE = 0.5
"""Seconds that grpc has to cancel the handler of a call on which it refused to send."""

PENDING, MOST_PENDING = 20_000, 25_000
"""Calls that grpc keeps before they are handed over; of more than the first it refuses some, of more than the second
all: as CANCELLED and unseen by us, so that no caller is told to come back. So they only bound memory, of which a call
takes some 16 kB, and are more than clients have out in a burst: who is too many is for gate and limiter to say."""

LEAST_PING_INTERVAL = 900
"""Milliseconds between a client's pings, less than the second that `keepalive.interval` is at least; who pings more
often than that is cut off by grpc."""

_STATUS = {code.value[0]: code for code in grpc.StatusCode}


class GrpcWire:
    """One call of grpc.aio as a `Wire`."""

    __slots__ = ("_context", "sending")

    def __init__(self, context: Any) -> None:
        self._context = context
        self.sending: asyncio.Future[None] | None = None

    async def send_header(self, metadata: Metadata) -> None:
        self.sending = asyncio.get_running_loop().create_future()
        try:
            await self._context.send_initial_metadata(metadata)
        except grpc.aio.BaseError:
            raise Broken from None
        finally:
            self.sending.set_result(None)
            self.sending = None

    async def header_is_out(self) -> None:
        """Wait while headers are being sent: grpc would send them a second time with what comes next, and break."""
        if self.sending is not None:
            await asyncio.wait([self.sending])

    def auth_context(self) -> Mapping[str, Iterable[bytes]]:
        found: Mapping[str, Iterable[bytes]] = self._context.auth_context()
        return found

    def peer_identity(self) -> Peer | None:
        found = self._context.auth_context()
        names = found.get("x509_subject_alternative_name")
        subject = found.get("x509_common_name")
        if not names and not subject:
            return None
        spiffe = found.get("peer_spiffe_id")
        return Peer(
            tuple(_text(name) for name in names or ()),
            _text(spiffe[0]) if spiffe else "",
            _text(subject[0]) if subject else "",
        )

    def set_compression(self, compression: Any) -> None:
        self._context.set_compression(compression)

    def disable_next_message_compression(self) -> None:
        self._context.disable_next_message_compression()


def _text(value: bytes) -> str:
    return value.decode("utf-8", "replace")


class Requests(Stream[Any]):
    """The requests of a client that streams.

    Its end is confirmed before it is believed: when a call is cancelled in mid-upload, grpc.aio reports the end of the
    stream, and may do so before it cancels the handler. Sending the response headers fails on a call that is gone.
    """

    __slots__ = ("_call", "_context", "_decode")

    def __init__(self, call: ServerCall, context: Any, decode: Any) -> None:
        super().__init__()
        self._call = call
        self._context = context
        self._decode = decode

    async def __anext__(self) -> Any:
        if self.outcome is not None:
            raise StopAsyncIteration
        try:
            raw = await self._context.read()
        except grpc.aio.BaseError:
            self.end(ABANDONED)
            raise Broken from None
        if raw is not grpc.aio.EOF:
            return self._decode(raw)
        await self._confirm()
        self.end(OK)
        raise StopAsyncIteration

    async def _confirm(self) -> None:
        call = self._call
        if not call.header_sent:
            call.header_sent = True
            await call.wire.send_header(call.header)
        else:
            # Nothing can be sent that fails. Another read ends at once, and grpc reports it after the cancellation.
            with contextlib.suppress(grpc.aio.BaseError):
                await self._context.read()
            await asyncio.sleep(0)
        if call.remaining() == 0.0:
            raise Broken

    def cancel(self, reason: BaseException | None = None) -> None:
        self.end(ABANDONED if reason is None else Outcome.of(reason))

    def __del__(self) -> None:
        pass  # not reading to the end is the servicer's right; the call's end ends the upload


def _open(pipeline: Pipeline, bound: Bound, context: Any) -> ServerCall:
    remaining = context.time_remaining()
    arrived = arrival.get()
    metadata = None if arrived is None else arrived[2]
    return incoming_call(
        bound.method,
        context.invocation_metadata() if metadata is None else metadata,
        deadline=None if remaining is None else pipeline.time() + remaining,
        peer=context.peer,
        wire=GrpcWire(context),
    )


async def _abort(context: Any, call: ServerCall, error: RpcError) -> NoReturn:
    try:
        message, trailer = status_of(call, error)
    except Exception as defect:  # details that are no messages, metadata that is no text
        error = internal(call, defect)
        message, trailer = error.message, ()
    await call.wire.header_is_out()
    try:
        await context.abort(_STATUS[error.code.value], message, (*trailer, (ORIGIN, "server")))
        raise AssertionError("abort() returned")
    except grpc.aio.UsageError as failed:
        raise asyncio.CancelledError from failed  # the status is out already: the call is gone


async def _break_off(context: Any, call: ServerCall) -> NoReturn:
    """Nobody waits for an answer. If grpc does not know that, it would leave the caller without one for ever."""
    task = asyncio.current_task()
    if task is None or not task.cancelling():
        await asyncio.sleep(GRACE)  # ended by grpc's cancellation, as a rule at once
        await call.wire.header_is_out()
        try:
            await context.abort(grpc.StatusCode.CANCELLED, "the call broke off", ((ORIGIN, "server"),))
        except grpc.aio.AbortError:
            raise
        except grpc.aio.BaseError:
            pass  # it was gone after all
    raise asyncio.CancelledError


def method_handler(pipeline: Pipeline, bound: Bound) -> grpc.RpcMethodHandler[Any, Any]:
    """The method handler that grpc.aio is to serve a method with."""

    async def unary_unary(raw: bytes, context: Any) -> bytes:
        call = _open(pipeline, bound, context)
        try:
            reply = await pipeline.answer(bound, call, raw)
        except RpcError as error:
            await _abort(context, call, error)
        except asyncio.CancelledError:
            await _break_off(context, call)
        if call.trailer:
            context.set_trailing_metadata(call.trailer)
        if call.wire.sending is not None:
            await call.wire.header_is_out()
        return reply

    async def stream_unary(_: Any, context: Any) -> bytes:
        call = _open(pipeline, bound, context)
        call.request = Requests(call, context, bound.decode)
        try:
            reply = await pipeline.answer(bound, call, None)
        except RpcError as error:
            await _abort(context, call, error)
        except asyncio.CancelledError:
            await _break_off(context, call)
        finally:
            call.request = None  # which holds the call
        if call.trailer:
            context.set_trailing_metadata(call.trailer)
        if call.wire.sending is not None:
            await call.wire.header_is_out()
        return reply

    async def stream(raw: bytes | None, context: Any, call: ServerCall) -> None:
        wire = call.wire

        async def write(reply: bytes) -> None:
            call.header_sent = True
            if wire.sending is not None:
                await wire.header_is_out()
            try:
                await context.write(reply)
            except grpc.aio.BaseError:
                raise Broken from None

        try:
            await pipeline.stream(bound, call, raw, write)
        except RpcError as error:
            await _abort(context, call, error)
        except asyncio.CancelledError:
            await _break_off(context, call)
        if call.trailer:
            context.set_trailing_metadata(call.trailer)
        await wire.header_is_out()

    async def unary_stream(raw: bytes, context: Any) -> None:
        await stream(raw, context, _open(pipeline, bound, context))

    async def stream_stream(_: Any, context: Any) -> None:
        call = _open(pipeline, bound, context)
        call.request = Requests(call, context, bound.decode)
        try:
            await stream(None, context, call)
        finally:
            call.request = None

    match bound.method.client_streaming, bound.method.server_streaming:
        case False, False:
            return grpc.unary_unary_rpc_method_handler(unary_unary)
        case True, False:
            return grpc.stream_unary_rpc_method_handler(stream_unary)
        case False, True:
            return grpc.unary_stream_rpc_method_handler(unary_stream)
        case _:
            return grpc.stream_stream_rpc_method_handler(stream_stream)


class _Handlers(grpc.GenericRpcHandler):
    """Finds the handler of a call, once its metadata has been looked at.

    grpc holds metadata to its limit only when the client has confirmed that it knows of it, which a hostile one never
    does, and lets every byte through in values.

    Args:
        most: bytes that the metadata of a call may have.
        alone: no interceptor of grpc's shows other metadata here than the call has.
    """

    def __init__(self, pipeline: Pipeline, most: int, *, alone: bool) -> None:
        self._handlers = {bound.method.path: method_handler(pipeline, bound) for bound in pipeline.methods}
        self._arrived = pipeline.gate.arrived
        self._turned_away = pipeline.turned_away
        self._most = most
        self._alone = alone

    def service(self, details: Any) -> Any:
        metadata = details.invocation_metadata
        self._arrived(metadata if self._alone else None)  # asked for once more, grpc would make it once more
        if (unfit := unwelcome(metadata, self._most)) is not None:
            return self._refused(unfit)
        handler = self._handlers.get(details.method)
        if handler is None:
            self._turned_away(Code.UNIMPLEMENTED)
        return handler

    def _refused(self, error: RpcError) -> Any:
        self._turned_away(error.code)

        async def refuse(_: Any, context: Any) -> None:
            await context.abort(_STATUS[error.code.value], error.message, ((ORIGIN, "server"),))

        return grpc.stream_stream_rpc_method_handler(refuse)  # which takes calls of every arity, and reads nothing


def unusable(host: str, port: int, option: str = "--port") -> ConfigError:
    """What to tell whoever wants to listen there."""
    return ConfigError(
        f"port {port} on {host} is in use or may not be used. Choose another with {option}, or 0 for any free one."
        if port
        else f"cannot listen on {host}: it is no address of this machine. Choose another with --host."
    )


def _credentials(tls: TlsFiles) -> grpc.ServerCredentials:
    """Credentials that follow the files; a connection keeps those that it began with."""
    given = tls.current

    def fetch() -> grpc.ServerCertificateConfiguration | None:
        """Asked on a thread of grpc's before every handshake; None is to go on with the ones that it has."""
        nonlocal given
        if (current := tls.current) is given:
            return None
        given = current
        return _configuration(current)

    return grpc.dynamic_ssl_server_credentials(
        _configuration(given),
        fetch,  # type: ignore[arg-type]  # it may return None, as its documentation says
        bool(given.ca),
    )


def _configuration(material: Material) -> grpc.ServerCertificateConfiguration:
    return grpc.ssl_server_certificate_configuration([(material.key, material.certificate)], material.ca or None)


async def listen(
    pipeline: Pipeline,
    settings: ServerSettings,
    *,
    interceptors: Iterable[Any] = (),
    shared_for: float | None = None,
    tls: TlsFiles | None = None,
) -> tuple[grpc.aio.Server, int]:
    """Start a grpc.aio server for a pipeline; returns it and the port it is bound to.

    Args:
        settings: where to listen, and the limits of messages and connections.
        interceptors: a user's own grpc.aio server interceptors.
        shared_for: other processes listen on the port too; seconds after which a client is told to connect anew,
            wherever that leads. Without it the port is this process's alone.
        tls: certificates to serve with; None is plain text.

    Raises:
        ConfigError: the address cannot be had.
    """
    guard_loop()
    host, port, limits = settings.host, settings.port, settings.limits
    ageing: list[tuple[str, int]] = []
    oldest = settings.max_connection_age
    ages = [age for age in (oldest, shared_for) if age is not None]
    if ages:
        ageing.append(("grpc.max_connection_age_ms", int(min(ages) * 1000)))
    if oldest is not None:  # who has to leave before that does not lose its calls for it
        grace = oldest - min(ages) + settings.max_connection_age_grace
        ageing.append(("grpc.max_connection_age_grace_ms", int(grace * 1000)))
    server = grpc.aio.server(
        handlers=(_Handlers(pipeline, limits.metadata, alone=not interceptors),),
        interceptors=tuple(interceptors),
        options=(
            ("grpc.so_reuseport", int(shared_for is not None)),
            ("grpc.max_receive_message_length", settings.max_message),
            ("grpc.max_send_message_length", -1),  # the pipeline looks at the size of replies
            ("grpc.max_metadata_size", limits.metadata),  # from here on grpc refuses some, and none above the next
            ("grpc.absolute_max_metadata_size", limits.metadata),
            ("grpc.max_concurrent_streams", limits.streams),
            ("grpc.max_allowed_incoming_connections", limits.connections),
            ("grpc.server_handshake_timeout_ms", int(limits.handshake * 1000)),
            ("grpc.http2.settings_timeout", int(limits.handshake * 1000)),
            ("grpc.keepalive_time_ms", int(settings.keepalive.interval * 1000)),
            ("grpc.keepalive_timeout_ms", int(settings.keepalive.timeout * 1000)),
            ("grpc.http2.ping_timeout_ms", int(settings.keepalive.timeout * 1000)),  # a minute at least without it
            ("grpc.keepalive_permit_without_calls", 1),
            ("grpc.http2.min_ping_interval_without_data_ms", LEAST_PING_INTERVAL),
            *ageing,
            *(
                ()
                if pipeline.limiter is None
                else (
                    ("grpc.server.max_pending_requests", PENDING),
                    ("grpc.server.max_pending_requests_hard_limit", MOST_PENDING),
                )
            ),
        ),
    )
    host = host.strip("[]")
    address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    try:
        bound = server.add_insecure_port(address) if tls is None else server.add_secure_port(address, _credentials(tls))
    except RuntimeError:
        bound = 0
    if not bound:
        raise unusable(host, port)
    await server.start()
    return server, bound
