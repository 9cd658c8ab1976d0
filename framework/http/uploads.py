"""Bodies that are no JSON: forms with files, and bytes for a field of bytes.

    | body                                            | one request            | a stream of requests                 |
    |-------------------------------------------------|------------------------|--------------------------------------|
    | `multipart/form-data`                           | each part is a field   | each part is a message with that     |
    |                                                 |                        | field, a file as many as it comes in |
    | any other type, where `body` is a field of bytes| the field              | as many messages as it comes in      |

A part is named as a query parameter would be. For a field of bytes it is bytes, for a message JSON, for everything else
text; a `google.api.HttpBody` gets the type as well.

Source: RFC 7578
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Any

from google.protobuf import message_factory
from google.protobuf.descriptor import Descriptor, FieldDescriptor

from framework.errors import InvalidArgument
from framework.http.binding import HTTP_BODY, Binder, Preset, Target, Violation, invalid, target_of
from framework.http.exchange import Exchange
from framework.http.json import Json, JsonError
from framework.http.rules import find_field
from framework.http.settings import HttpSettings
from framework.http.status import HttpError
from framework.http.unknown import explained

try:
    import multipart
except ImportError:  # the extra `gateway` is not installed
    multipart = None

FORM = "multipart/form-data"
MOST_PARTS = 1000
"""Parts that a form may have."""


@dataclass(slots=True)
class Part:
    """A part of a form, with as much of its data as came at once.

    Attributes:
        begins, ends: this is its first, or its last, data.
    """

    name: str
    content_type: str
    is_file: bool
    data: bytes = b""
    begins: bool = False
    ends: bool = False


class Uploads:
    """Reads the bodies of one rule that are no JSON.

    Args:
        binder: of the rule.
        codecs: ProtoJSON.
        settings: of the application.
    """

    def __init__(self, binder: Binder, codecs: Json, settings: HttpSettings) -> None:
        self._binder = binder
        self._codecs = codecs
        self._limit = settings.max_message
        self._kind: Any = binder.rule.method.request
        body = binder.rule.body
        self._field = None if body in ("", "*") else find_field(self._kind.DESCRIPTOR, body)
        self._bytes = self._field is not None and is_bytes(self._field)
        held = self._kind.DESCRIPTOR if body == "*" else None if self._field is None else self._field.message_type
        self._holder: Descriptor | None = held
        self._targets: dict[str, Target] = {}

    def _is_form(self, content_type: str) -> bool:
        return multipart is not None and content_type.lower().startswith(FORM) and self._holder is not None

    def check(self, content_type: bytes) -> None:
        """Raises HttpError unless a body of this type is read here."""
        if not self._bytes and not self._is_form(content_type.decode("latin-1")):
            raise unsupported(content_type)

    def message(self, preset: Preset, body: bytes, content_type: str) -> Any:
        """The request of a body. Raises InvalidArgument, with a violation for each part that does not fit."""
        message = self._kind()
        if not self._is_form(content_type):
            assert self._field is not None
            setattr(message, self._field.name, body)
            return self._binder.fill(message, preset)
        form = _Form(content_type)
        parts: list[Part] = []
        for part in (*form.feed(body), *form.end()):
            if part.begins:
                parts.append(part)
            else:
                parts[-1].data += part.data
        violations: list[Violation] = []
        seen: set[str] = set()
        for part in parts:
            try:
                self._put(message, part, seen)
            except Violation as violation:
                violations.append(violation)
        if violations:
            raise invalid(violations)
        return self._binder.fill(message, preset)

    async def messages(self, preset: Preset, exchange: Exchange, parts: AsyncIterator[bytes]) -> AsyncIterator[Any]:
        """The requests of a body, as it comes in. Raises as `message` does, and HttpError when one is too large."""
        content_type = exchange.headers.get(b"content-type", b"").decode("latin-1")
        if not self._is_form(content_type):
            assert self._field is not None
            async for data in parts:
                yield self._binder.fill(self._kind(**{self._field.name: data}), preset)
            return
        form = _Form(content_type)
        waiting: Part | None = None
        async for data in parts:
            for part in form.feed(data):
                if part.is_file and self._takes_bytes(part):
                    if part.data:
                        yield self._only(part, preset)
                    continue
                if waiting is None:
                    waiting = part
                else:
                    waiting.data += part.data
                if len(waiting.data) > self._limit:
                    raise exchange.too_large()
                if part.ends:
                    yield self._only(waiting, preset)
                    waiting = None
        for _ in form.end():
            pass

    def _takes_bytes(self, part: Part) -> bool:
        try:
            return is_bytes(self._target(part.name).steps[-1])
        except Violation as violation:
            raise invalid([violation]) from None

    def _only(self, part: Part, preset: Preset) -> Any:
        message = self._kind()
        try:
            self._put(message, part, set())
        except Violation as violation:
            raise invalid([violation]) from None
        return self._binder.fill(message, preset)

    def _target(self, name: str) -> Target:
        found = self._targets.get(name)
        if found is None:
            assert self._holder is not None
            found = target_of(self._holder, name, self._codecs, whole=True)
            if len(self._targets) < MOST_PARTS and len(name) < 100:
                self._targets[name] = found
        return found

    def _put(self, message: Any, part: Part, seen: set[str]) -> None:
        """Set the field of a part. Raises Violation."""
        target = self._target(part.name)
        if not target.steps[-1].is_repeated or target.keys:
            if target.name in seen:
                raise Violation(target.name, "this is set twice")
            seen.add(target.name)
        try:
            value = self._value(target, part)
        except JsonError as error:
            raise Violation(target.name, explained(error, self._kind.DESCRIPTOR)) from None
        except ValueError as error:
            raise Violation(target.name, str(error)) from None
        if self._field is not None:
            message = getattr(message, self._field.name)
        target.set(message, value)

    def _value(self, target: Target, part: Part) -> Any:
        field = target.steps[-1]
        if len(target.steps) - 1 in target.keys:
            field = field.message_type.fields_by_name["value"]  # type: ignore[union-attr]  # a map
        held = field.message_type
        if is_bytes(field, repeated=True):
            return part.data
        if held is not None and held.full_name == HTTP_BODY:
            kind: Any = message_factory.GetMessageClass(held)
            return kind(content_type=part.content_type, data=part.data)
        if target.convert is None:
            assert held is not None
            return self._codecs.codec(message_factory.GetMessageClass(held)).parse(part.data)
        try:
            return target.convert(part.data.decode())
        except UnicodeDecodeError:
            raise ValueError("this is no UTF-8") from None


class _Form:
    """The parts of one body. Raises InvalidArgument for what is no form."""

    def __init__(self, content_type: str) -> None:
        _, options = multipart.parse_options_header(content_type)
        boundary = options.get("boundary", "")
        if not boundary or not boundary.isascii():
            raise InvalidArgument("the content type of a form names no boundary")
        self._part: Part | None = None
        self._parser = multipart.PushMultipartParser(boundary, max_segment_count=MOST_PARTS, strict=True)

    def feed(self, data: bytes) -> Iterator[Part]:
        """What is there of parts, in the order in which it came."""
        try:
            for event in self._parser.parse(data):
                if isinstance(event, multipart.MultipartSegment):
                    is_file = event.filename is not None
                    self._part = Part(event.name, event.content_type or "", is_file, begins=True)
                    continue
                assert self._part is not None
                part = self._part
                yield Part(
                    part.name,
                    part.content_type,
                    part.is_file,
                    bytes(event or b""),
                    begins=part.begins,
                    ends=event is None,
                )
                part.begins = False
        except multipart.MultipartError as error:
            raise InvalidArgument(f"this is no {FORM}: {error}") from None

    def end(self) -> Iterator[Part]:
        """There is no more."""
        yield from self.feed(b"")


def is_bytes(field: FieldDescriptor, *, repeated: bool = False) -> bool:
    """The field is bytes."""
    return field.type == field.TYPE_BYTES and (repeated or not field.is_repeated)


def unsupported(content_type: bytes) -> HttpError:
    """What is answered to a body of a type that is not read here."""
    shown = content_type[:80].decode("latin-1")
    error = InvalidArgument(f"content-type {shown!r} is not read here; send application/json in UTF-8")
    return HttpError(415, error, [(b"accept", b"application/json")])
