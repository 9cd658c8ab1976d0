"""Replies as a rule wants them, and streams of them in the format that the client asked for."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Callable
from typing import Any

from google.protobuf import message_factory
from google.protobuf.descriptor import FieldDescriptor

from framework.http.binding import HTTP_BODY
from framework.http.conduct import Gone
from framework.http.exchange import Exchange
from framework.http.framing import TYPES, Format
from framework.http.json import Json
from framework.http.relay import is_relayed
from framework.http.rules import Rule, find_field, is_map
from framework.http.status import Headers, text

JSON = b"application/json"
Write = Callable[[Any], bytes]


class Writer:
    """Writes the replies of one rule.

    Attributes:
        write: the body that a reply is.
        raw: replies are HttpBody, so that the body is no JSON.
    """

    def __init__(self, rule: Rule, codecs: Json) -> None:
        kind: Any = rule.method.reply
        field = find_field(kind.DESCRIPTOR, rule.response_body) if rule.response_body else None
        shown = kind.DESCRIPTOR if field is None else field.message_type
        single = field is None or not field.is_repeated
        self.raw = bool(single and shown is not None and shown.full_name == HTTP_BODY)
        self._field = field if self.raw else None
        self.write: Write
        if self.raw:
            self.write = lambda reply: self.body(reply).data
        elif field is None:
            codec = codecs.codec(kind)
            self.write = codec.unpack if is_relayed(rule.method) else codec.write
        elif field.message_type is not None and single:
            self.write = _message(field, codecs)
        else:
            self.write = _part(kind, field, codecs)

    def body(self, reply: Any) -> Any:
        """The HttpBody of a reply."""
        return reply if self._field is None else getattr(reply, self._field.name)

    def content_type(self, reply: Any) -> bytes:
        """Of the body of a reply."""
        if not self.raw:
            return JSON
        said: str = self.body(reply).content_type
        return said.encode("latin-1", "replace") if said and said.isprintable() else b"application/octet-stream"


def _message(field: FieldDescriptor, codecs: Json) -> Write:
    name = field.name
    write = codecs.codec(message_factory.GetMessageClass(field.message_type)).write  # type: ignore[arg-type]  # has one
    return lambda reply: write(getattr(reply, name)) if reply.HasField(name) else b"null"


def _part(kind: Any, field: FieldDescriptor, codecs: Json) -> Write:
    """One field cut out of a message that has nothing else."""
    name = field.name
    key = name if codecs.options.proto_names else field.json_name
    prefix = f'{{"{key}":'.encode()
    whole = codecs.codec(kind).write
    empty = b"{}" if is_map(field) else b"[]" if field.is_repeated else b""

    def write(reply: Any) -> bytes:
        only = kind()
        if field.is_repeated:
            getattr(only, name).MergeFrom(getattr(reply, name))
        else:
            setattr(only, name, getattr(reply, name))
        written = whole(only)
        if written.startswith(prefix) and not codecs.options.defaults:
            return written[len(prefix) : -1]
        if codecs.options.defaults:
            return text(json.loads(written)[key])
        return empty or text(_default(field, codecs))

    return write


def _default(field: FieldDescriptor, codecs: Json) -> Any:
    if field.enum_type is not None and not codecs.options.enum_numbers:
        return field.enum_type.values_by_number[field.default_value].name
    if field.cpp_type in (field.CPPTYPE_INT64, field.CPPTYPE_UINT64):
        return str(field.default_value)
    return "" if field.type == field.TYPE_BYTES else field.default_value


class Output:
    """A stream of replies going out.

    Args:
        exchange: what is answered.
        form: how messages are set apart; None sends them as they are.
        first_id: of the first event on an event stream.
    """

    def __init__(self, exchange: Exchange, form: Format | None, first_id: int = 1) -> None:
        self._exchange = exchange
        self._form = form
        self._id = first_id
        self._count = 0
        self._lock = asyncio.Lock()
        self._timer: asyncio.TimerHandle | None = None
        self._beat: asyncio.Task[None] | None = None
        self._last = 0.0
        self.headers: Callable[[], Headers] = list

    def watch(self) -> None:
        """From now on the client is to hear something from time to time, if there is no message."""
        loop = asyncio.get_running_loop()
        self._last = loop.time()
        self._timer = loop.call_later(self._exchange.settings.heartbeat, self._silent)

    def _silent(self) -> None:
        loop = asyncio.get_running_loop()
        due = self._last + self._exchange.settings.heartbeat
        if loop.time() >= due and not self._lock.locked() and (self._beat is None or self._beat.done()):
            self._beat = loop.create_task(self._say())
            self._last = loop.time()
            due = self._last + self._exchange.settings.heartbeat
        self._timer = loop.call_at(due, self._silent)

    async def _say(self) -> None:
        with contextlib.suppress(Gone):  # whoever serves the call notices it as well
            async with self._lock:
                await self._start(self.headers())
                if self._form == "sse":
                    await self._exchange.write(b":\n\n")

    async def _start(self, headers: Headers) -> None:
        exchange = self._exchange
        if exchange.started:
            return
        opening = b""
        if self._form == "array":
            opening = b"["
        elif self._form == "sse" and exchange.settings.retry is not None:
            opening = b"retry: %d\n\n" % round(exchange.settings.retry * 1000)
        if self._form is not None:
            headers.append((b"content-type", TYPES[self._form]))
            headers.append((b"cache-control", b"no-cache"))
        await exchange.start(200, headers, pack=self._form is not None)
        if opening:
            await exchange.write(opening)

    async def message(self, written: bytes, headers: Headers | None = None) -> None:
        """Send a message; the first begins the response. Waits while the client does not read."""
        async with self._lock:
            if not self._exchange.started:
                await self._start(self.headers() if headers is None else headers)
            await self._exchange.write(self._framed(written))
            self._count += 1
            self._last = asyncio.get_running_loop().time()

    def _framed(self, written: bytes) -> bytes:
        if self._form == "ndjson":
            return written + b"\n"
        if self._form == "array":
            return b",\n" + written if self._count else written
        if self._form == "sse":
            number = self._id
            self._id += 1
            return b"id: %d\ndata: %s\n\n" % (number, written)
        return written

    async def finish(self, last: bytes = b"") -> None:
        """All messages are sent; `last` is what ends them, where no format says it."""
        self.close()
        async with self._lock:
            await self._start(self.headers())
            if self._form is not None:
                last = {"array": b"]\n", "sse": b"event: end\ndata: {}\n\n"}.get(self._form, b"")
            await self._exchange.finish(last)

    async def fail(self, status: dict[str, Any]) -> None:
        """The call has failed after it had begun; the last thing sent says so."""
        self.close()
        async with self._lock:
            if self._form == "sse":
                last = b"event: error\ndata: %s\n\n" % text(status)
            elif self._form is None:
                last = b""
            else:
                last = self._framed(text({"error": status})) + (b"]\n" if self._form == "array" else b"")
            await self._exchange.finish(last)

    def close(self) -> None:
        """Say nothing more by itself."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
