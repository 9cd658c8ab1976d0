"""Calls of REST: one route, whichever arity its method has.

A stream of replies is lines, an array or events, by `Accept`. A stream of requests is JSON texts in the body, one
after another or in an array. Once a reply is on its way, a failure is the last record of the body.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from typing import Any

from framework.call import Call, Handler
from framework.errors import Cancelled, Internal, RpcError
from framework.http.binding import Binder, Preset, Violation, invalid
from framework.http.conduct import Conduct, Gone
from framework.http.exchange import Exchange
from framework.http.framing import Format, Malformed, Splitter, TooLong, format_of
from framework.http.headers import Incoming, outgoing, timeout_of
from framework.http.json import Json, JsonError
from framework.http.replies import Output, Writer
from framework.http.rules import Rule
from framework.http.settings import HttpSettings
from framework.http.status import HTTP_STATUS, Details, Headers, HttpError, retry_after, text
from framework.http.success import precondition_failed, unchanged
from framework.http.uploads import Uploads

_JSON_TYPES = frozenset(("application/json", "text/json", ""))
_LINE_TYPES = frozenset(("application/x-ndjson", "application/ndjson", "application/jsonl", "application/x-jsonlines"))
_checked: dict[tuple[bytes, bool], bool] = {}


def is_json(content_type: bytes, *, lines: bool) -> bool:
    """Whether a body of this type is read as JSON; `lines` when it may hold many texts."""
    key = (content_type, lines)
    found = _checked.get(key)
    if found is None:
        name, _, parameters = content_type.decode("latin-1").lower().partition(";")
        name = name.strip()
        known = name in _JSON_TYPES or (name.startswith("application/") and name.endswith("+json"))
        known = known or (lines and name in _LINE_TYPES)
        charset = next(
            (p.strip()[8:].strip('"') for p in parameters.split(";") if p.strip().startswith("charset=")), ""
        )
        found = known and charset in ("", "utf-8", "utf8", "us-ascii")
        if len(_checked) < 256 and len(content_type) <= 100:
            _checked[key] = found
    return found


class RestRoute:
    """One rule, ready to serve.

    Args:
        rule: the rule.
        handler: what calls its method.
        codecs: ProtoJSON.
        settings: of the application.
        incoming: what passes of request headers.
        details: shows the details of errors.
    """

    def __init__(
        self, rule: Rule, handler: Handler, codecs: Json, settings: HttpSettings, incoming: Incoming, details: Details
    ) -> None:
        self.rule = rule
        self.handler = handler
        self.settings = settings
        self.incoming = incoming
        self.details = details
        self.binder = Binder(rule, codecs, settings.unknown_query)
        self.uploads = Uploads(self.binder, codecs, settings)
        self.writer = Writer(rule, codecs)
        self._plain = frozenset(settings.reply_headers)

    async def serve(self, exchange: Exchange, values: tuple[str, ...]) -> None:
        """Answer a request for this route.

        Raises:
            HttpError, RpcError: nothing has been answered yet; this is to be.
            Gone: nobody waits for an answer.
        """
        method = self.rule.method
        if exchange.http == "HEAD" and method.server_streaming:  # its end may be far, and nobody would see it
            await Output(exchange, self._format(exchange)).finish()
            return
        preset = self.binder.preset(values, exchange.query)
        timeout = timeout_of(exchange.headers, self.settings.max_timeout)
        content_type = exchange.headers.get(b"content-type", b"")
        requests: Requests | None = None
        request: Any
        if method.client_streaming:
            uploads = None if self.binder.raw or is_json(content_type, lines=True) else self.uploads
            if uploads is not None:
                uploads.check(content_type)
            exchange.content_encoding()  # refused before the call is made
            request = requests = Requests(self.binder, preset, exchange, uploads)
        else:
            body = await exchange.body()
            if body and not self.binder.raw and not is_json(content_type, lines=False):
                self.uploads.check(content_type)
                request = self.uploads.message(preset, body, content_type.decode("latin-1"))
            else:
                request = self.binder.message(preset, body, content_type.decode("latin-1"))
            if self.rule.success is not None:
                self.rule.success.demand(request, exchange.headers)
        call = exchange.call(method, request, self.incoming.metadata(exchange.scope), timeout)
        conduct = Conduct(call, exchange.inbox)
        try:
            if method.server_streaming:
                await self._stream(exchange, call, conduct)
            else:
                await self._one(exchange, call, await conduct.run(self.handler, call))
        except RpcError as error:
            if requests is not None and requests.failure is not None and not exchange.started:
                raise requests.failure from error
            error.metadata = error.metadata or call.trailer
            if not exchange.started and precondition_failed(error, exchange.http, exchange.headers):
                raise HttpError(412, error) from error
            raise

    async def _one(self, exchange: Exchange, call: Call, reply: Any) -> None:
        if call.received is not None:
            call.header, call.trailer = await call.received()
        try:
            body = self.writer.write(reply)
        except JsonError as error:
            raise Internal(error.message) from None
        headers: Headers = [(b"content-type", self.writer.content_type(reply))]
        if call.header or call.trailer:
            headers += self.reply_headers(call)
        status, pack = 200, not self.writer.raw or headers[0][1].startswith(b"text/")
        if self.rule.success is not None:
            status = self.rule.success.status
            there = {name for name, _ in headers}  # what the handler says itself counts
            said = self.rule.success.headers(reply, body, exchange.scope.get("root_path", ""))
            headers += [pair for pair in said if pair[0] not in there]
        if b"if-none-match" in exchange.headers and unchanged(exchange.http, exchange.headers, headers):
            status = 304
        if status in (204, 304):
            body, pack = b"", False
            del headers[0]
        await exchange.respond(status, headers, body, pack=pack)

    def reply_headers(self, call: Call, *, trailers: bool = True) -> Headers:
        """The headers for the metadata of a reply."""
        headers = outgoing(call.header, "grpc-metadata-", self._plain)
        return headers + outgoing(call.trailer, "grpc-trailer-") if trailers else headers

    def _format(self, exchange: Exchange) -> Format | None:
        return None if self.writer.raw else format_of(exchange.headers.get(b"accept"))

    async def _stream(self, exchange: Exchange, call: Call, conduct: Conduct) -> None:
        form = self._format(exchange)
        first = 1
        if form == "sse" and (last := exchange.headers.get(b"last-event-id", b"")).isdigit() and len(last) < 19:
            first = int(last) + 1
        output = Output(exchange, form, first)
        output.headers = lambda: self.reply_headers(call, trailers=False)
        output.watch()
        try:
            await conduct.run(self._replies, call, output)
            await output.finish()
        except (RpcError, HttpError) as error:
            if not exchange.started:
                raise
            failure = error.error if isinstance(error, HttpError) else error
            await output.fail(self.details.status(failure.code, failure.message, failure.details))
        finally:
            output.close()

    async def _replies(self, call: Call, output: Output) -> None:
        write, raw = self.writer.write, self.writer.raw
        stream = await self.handler(call)
        begun = False
        async with stream:
            async for reply in stream:
                try:
                    written = write(reply)
                except JsonError as error:
                    raise Internal(error.message) from None
                if begun or not raw:
                    await output.message(written)
                else:
                    begun = True
                    headers = [(b"content-type", self.writer.content_type(reply))]
                    await output.message(written, headers + self.reply_headers(call, trailers=False))


class Requests:
    """The requests in a body, read as the call asks for them.

    Attributes:
        failure: what the body turned out to be, to be answered instead of what the call made of it.
    """

    def __init__(self, binder: Binder, preset: Preset, exchange: Exchange, uploads: Uploads | None) -> None:
        self.failure: HttpError | None = None
        self._upload = not binder.rule.method.server_streaming
        if uploads is not None:
            self._messages = uploads.messages(preset, exchange, exchange.parts(timed=self._upload))
        elif binder.raw:
            self._messages = self._raw(binder, preset, exchange)
        else:
            self._messages = self._json(binder, preset, exchange)

    def __aiter__(self) -> Requests:
        return self

    async def __anext__(self) -> Any:
        try:
            return await anext(self._messages)
        except Gone:
            raise Cancelled("the client has gone") from None
        except HttpError as error:
            self.failure = error
            raise error.error from None

    async def _json(self, binder: Binder, preset: Preset, exchange: Exchange) -> AsyncIterator[Any]:
        splitter = Splitter(exchange.settings.max_message)
        try:
            async for part in exchange.parts(timed=self._upload):
                for body in splitter.feed(part):
                    yield binder.message(preset, body)
            for body in splitter.end():
                yield binder.message(preset, body)
        except Malformed as error:
            raise invalid([Violation("", str(error))]) from None
        except TooLong:
            raise exchange.too_large() from None

    async def _raw(self, binder: Binder, preset: Preset, exchange: Exchange) -> AsyncIterator[Any]:
        content_type = exchange.headers.get(b"content-type", b"").decode("latin-1")
        async for part in exchange.parts(timed=self._upload):
            yield binder.message(preset, part, content_type)


async def fail(
    exchange: Exchange,
    details: Details,
    error: RpcError,
    status: int | None = None,
    headers: Iterable[tuple[bytes, bytes]] = (),
) -> None:
    """Answer a request with an error, as `google.rpc.Status`."""
    exchange.failed(error)
    shown = text(details.status(error.code, error.message, error.details))
    sent: Headers = [(b"content-type", b"application/json"), *headers]
    sent += retry_after(error)
    if error.metadata:
        sent += outgoing(error.metadata, "grpc-trailer-", ("www-authenticate", "retry-after"))
    if error.request_id:
        sent.append((b"x-request-id", error.request_id.encode("latin-1", "replace")))
    await exchange.respond(HTTP_STATUS[error.code] if status is None else status, sent, shown)
