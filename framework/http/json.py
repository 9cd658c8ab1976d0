"""ProtoJSON to messages and back.

protobuf-py does it where it is installed: native code over messages made from descriptors, five to eighteen times
faster than `google.protobuf.json_format`, which does it otherwise and is what it is tested against. It is alpha and
pinned, so nothing outside this file knows it.

What is put right here: a float is printed as short as its 32 bits allow, not with the digits of a double; the largest
float as everybody else prints it (3.4028235e+38) can be read; setting two fields of a oneof is a mistake; text that is
nested too deep is refused, where the native parser would overrun its stack.

The mapping: https://protobuf.dev/programming-guides/json/
"""

from __future__ import annotations

import gc
import json
import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

from google.protobuf import (
    any_pb2,
    descriptor_pb2,
    duration_pb2,
    empty_pb2,
    field_mask_pb2,
    json_format,
    struct_pb2,
    timestamp_pb2,
    wrappers_pb2,
)
from google.protobuf.descriptor import Descriptor, FileDescriptor
from google.protobuf.message import DecodeError, EncodeError
from google.rpc import error_details_pb2

from framework.http.depth import DEEPEST, too_deep
from framework.http.floats import clamped, shortest
from framework.http.oneofs import checker

try:
    from protobuf.wkt import FileDescriptorSet
except ImportError:  # the extra `gateway` is not installed
    FileDescriptorSet = None  # type: ignore[assignment, misc]  # tested for below

ALWAYS = tuple(
    module.DESCRIPTOR
    for module in (
        any_pb2,
        duration_pb2,
        empty_pb2,
        field_mask_pb2,
        struct_pb2,
        timestamp_pb2,
        wrappers_pb2,
        error_details_pb2,
    )
)
"""Files whose messages an Any may hold, whether or not a service imports them."""


class JsonError(Exception):
    """Text that is no JSON of a message, or a message that has no JSON.

    Attributes:
        message: what is wrong.
        field: full name of the field it is in, or the unknown name itself; empty when it is in none.
    """

    def __init__(self, message: str, field: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.field = field


@dataclass(frozen=True, slots=True)
class JsonOptions:
    """How messages are written, and what is accepted.

    Attributes:
        defaults: write fields that have their default value too.
        proto_names: write `user_id`, not `userId`; both are read.
        enum_numbers: write enums as numbers; both are read.
        ignore_unknown: skip fields and enum names that do not exist instead of refusing them.
    """

    defaults: bool = False
    proto_names: bool = False
    enum_numbers: bool = False
    ignore_unknown: bool = False


@dataclass(frozen=True, slots=True)
class Codec:
    """ProtoJSON of one message class. All raise JsonError; the text of an empty message is `{}`, not nothing.

    Attributes:
        kind: the message class.
        parse: a message from UTF-8.
        write: UTF-8 from a message, on one line.
        pack: the bytes of the message that `parse` makes.
        unpack: what `write` makes of the message that has these bytes.
    """

    kind: Any
    parse: Callable[[bytes], Any]
    write: Callable[[Any], bytes]
    pack: Callable[[bytes], bytes]
    unpack: Callable[[bytes], bytes]


class Json:
    """ProtoJSON of all messages of some files.

    Args:
        files: descriptors of the files; what they import comes with them, and may be in an Any.
        options: see JsonOptions.
        native: False does without protobuf-py.
    """

    def __init__(
        self, files: Iterable[FileDescriptor], options: JsonOptions = JsonOptions(), *, native: bool = True
    ) -> None:
        self.options = options
        self._codecs: dict[Descriptor, Codec] = {}
        self._files = _with_imports(files)
        self._floats = _Floats()
        self._registry: Any = None
        if native and FileDescriptorSet is not None:
            files_of = descriptor_pb2.FileDescriptorSet(file=[_named(file) for file in self._files.values()])
            self._registry = FileDescriptorSet.from_binary(files_of.SerializeToString()).to_registry()

    @property
    def native(self) -> bool:
        """protobuf-py does the work."""
        return self._registry is not None

    def codec(self, kind: Any) -> Codec:
        """The codec of a message class; the same one every time."""
        descriptor: Descriptor = kind.DESCRIPTOR
        found = self._codecs.get(descriptor)
        if found is None:
            plain = self._plain(kind)
            found = plain if self._registry is None else self._native(kind, plain)
            if any(one.full_name in LOOSE for one in _reachable(descriptor)):
                found = replace(found, parse=_finite(found.parse), pack=_finite(found.pack))
            self._codecs[descriptor] = found
        return found

    def _plain(self, kind: Any) -> Codec:
        options = self.options
        pool = kind.DESCRIPTOR.file.pool
        message_of = _message_of(kind)

        def parse(raw: bytes) -> Any:
            try:
                text = raw.decode()
                message = json_format.Parse(
                    text, kind(), ignore_unknown_fields=options.ignore_unknown, descriptor_pool=pool
                )
            except (json_format.ParseError, UnicodeDecodeError, RecursionError) as error:
                raise JsonError(_short(str(error))) from None
            if missing := message.FindInitializationErrors():
                raise JsonError(f"{', '.join(missing)} must be there", missing[0])
            return message

        def write(message: Any) -> bytes:
            try:
                shown = json_format.MessageToDict(
                    message,
                    always_print_fields_with_no_presence=options.defaults,
                    preserving_proto_field_name=options.proto_names,
                    use_integers_for_enums=options.enum_numbers,
                    descriptor_pool=pool,
                )
            except (json_format.Error, TypeError, ValueError, DecodeError, EncodeError, RecursionError) as error:
                raise JsonError(f"this {kind.DESCRIPTOR.full_name} has no JSON: {_short(str(error))}") from None
            return json.dumps(shown, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()

        def pack(raw: bytes) -> bytes:
            binary: bytes = parse(raw).SerializeToString()
            return binary

        return Codec(kind, parse, write, pack, lambda binary: write(message_of(binary)))

    def _native(self, kind: Any, plain: Codec) -> Codec:
        options, registry, descriptor = self.options, self._registry, kind.DESCRIPTOR
        desc = registry.message(descriptor.full_name)
        native = desc.type
        from_json, from_binary = native.from_json, native.from_binary
        message_of, serialize = _message_of(kind), kind.SerializeToString
        ignore = options.ignore_unknown
        style = {
            "registry": registry,
            "always_emit_implicit": options.defaults,
            "print_enums_as_ints": options.enum_numbers,
            "use_proto_field_name": options.proto_names,
        }
        oneofs = checker(descriptor)
        shorten = self._floats.shortener(desc) if self._floats.reachable(descriptor) else None

        @_uncollected
        def pack(raw: bytes) -> bytes:
            if too_deep(raw):
                raise JsonError(f"more than {DEEPEST} objects and lists are inside each other")
            try:
                binary: bytes = from_json(raw, ignore_unknown_fields=ignore, registry=registry).to_binary()
            except (ValueError, TypeError, ArithmeticError, RecursionError) as error:
                if not isinstance(error, OverflowError) or "float value out of range" not in str(error):
                    raise _explained(error) from None
                binary = again(raw)
            if oneofs is not None and (conflict := oneofs(raw)):
                raise JsonError(conflict)
            return binary

        def again(raw: bytes) -> bytes:
            """With what is as large as a float can be, and printed in decimals, taken for just that."""
            try:
                text = json.dumps(clamped(json.loads(raw), descriptor))
                binary: bytes = from_json(text, ignore_unknown_fields=ignore, registry=registry).to_binary()
            except (ValueError, TypeError, ArithmeticError, RecursionError) as error:
                raise _explained(error) from None
            return binary

        def write(message: Any) -> bytes:
            try:
                binary = serialize(message)
            except EncodeError:
                return plain.write(message)
            return unpack(binary)

        @_uncollected
        def unpack(binary: bytes) -> bytes:
            try:
                shown = from_binary(binary)
                if shorten is not None:
                    shorten(shown)
                text: str = shown.to_json(**style)
            except (ValueError, TypeError, ArithmeticError, RecursionError):
                return plain.unpack(binary)  # more lenient, and it tells where
            return text.encode()

        return Codec(kind, lambda raw: message_of(pack(raw)), write, pack, unpack)


MANY = 64 << 10
"""Bytes from which on so many objects may be made of a text that the collector of cycles would look for them often."""


def _uncollected(convert: Callable[[bytes], bytes]) -> Callable[[bytes], bytes]:
    """The same without a search for cycles meanwhile, which takes longer than the rest, and there are none."""

    def converted(raw: bytes) -> bytes:
        if len(raw) < MANY or not gc.isenabled():
            return convert(raw)
        gc.disable()
        try:
            return convert(raw)
        finally:
            gc.enable()

    return converted


def _message_of(kind: Any) -> Callable[[bytes], Any]:
    """Messages of a class from their bytes, which raises JsonError for others."""
    from_string = kind.FromString

    def message_of(binary: bytes) -> Any:
        try:
            return from_string(binary)
        except DecodeError as error:
            raise JsonError(_short(str(error))) from None

    return message_of


# protobuf-py


def _with_imports(files: Iterable[FileDescriptor]) -> dict[str, FileDescriptor]:
    """Files and what they import by name, each after its imports; the first of a name counts."""
    found: dict[str, FileDescriptor] = {}

    def add(file: FileDescriptor) -> None:
        if file.name not in found:
            for dependency in file.dependencies:
                add(dependency)
            found[file.name] = file

    for file in (*files, *ALWAYS):
        add(file)
    return found


def _named(file: FileDescriptor) -> descriptor_pb2.FileDescriptorProto:
    """A file with the JSON names of all its fields; generated modules leave the usual ones out."""
    proto = descriptor_pb2.FileDescriptorProto.FromString(file.serialized_pb)

    def name(messages: Iterable[descriptor_pb2.DescriptorProto]) -> None:
        for message in messages:
            for field in message.field:
                if not field.json_name:
                    field.json_name = _json_name(field.name)
            name(message.nested_type)

    name(proto.message_type)
    return proto


def _json_name(name: str) -> str:
    head, *rest = name.split("_")
    return head + "".join(part[:1].upper() + part[1:] for part in rest)


_FIELD = re.compile(r" for field ([\w.]+)$")
_UNKNOWN = re.compile(r"cannot decode ([\w.]+) from JSON: key: '(.*)' is unknown", re.DOTALL)
_CLASS = re.compile(r"<class '(\w+)'>|\b(dict|NoneType)\b")
_KINDS = {"dict": "object", "list": "array", "str": "string", "int": "number", "float": "number", "bool": "boolean"}


def _explained(error: Exception) -> JsonError:
    if isinstance(error, json.JSONDecodeError):
        return JsonError(f"this is no JSON: {error.msg}, line {error.lineno} column {error.colno}")
    text = str(error)
    if unknown := _UNKNOWN.fullmatch(text):
        return JsonError(f'{unknown[1]} has no field "{_short(unknown[2])}"', _short(unknown[2]))
    field = _FIELD.search(text)
    if field is not None:
        text = text[: field.start()]
    text = _CLASS.sub(lambda found: _KINDS.get(found[1] or found[2], "null"), text)
    return JsonError(_short(text), "" if field is None else field[1])


def _short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= 200 else f"{text[:197]}..."


def _reachable(descriptor: Descriptor) -> Iterable[Descriptor]:
    """A message and all that it may hold."""
    seen: dict[str, Descriptor] = {}
    waiting = [descriptor]
    while waiting:
        one = waiting.pop()
        if one.full_name not in seen:
            seen[one.full_name] = one
            waiting.extend(field.message_type for field in one.fields if field.message_type is not None)
    return seen.values()


LOOSE = ("google.protobuf.Value", "google.protobuf.Any")
"""Messages that may hold any number that can be written."""

_HUGE = re.compile(rb"\d[eE]\+?\d{3}|\d{200}")


def _finite(parse: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    """The same without numbers that are none: a Value would hold 1e999 as infinity, which has no JSON."""

    def number(text: str) -> float:
        found = float(text)
        if math.isinf(found):
            raise JsonError(f"{_short(text)} is too large")
        return found

    def parse_finite(raw: bytes) -> Any:
        message = parse(raw)  # it is JSON, and not too deep
        if _HUGE.search(raw):
            json.loads(raw, parse_float=number, parse_int=number)
        return message

    return parse_finite


# Floats


class _Floats:
    """Which messages hold 32-bit floats, and how those are rounded to what is printed."""

    def __init__(self) -> None:
        self._reachable: dict[str, bool] = {}
        self._shorteners: dict[str, Callable[[Any], None]] = {}

    def reachable(self, descriptor: Descriptor) -> bool:
        """A float field is in this message, or in one that it may hold."""
        found = self._reachable.get(descriptor.full_name)
        if found is None:
            found = any(field.type == field.TYPE_FLOAT for one in _reachable(descriptor) for field in one.fields)
            self._reachable[descriptor.full_name] = found
        return found

    def shortener(self, desc: Any) -> Callable[[Any], None]:
        """A function that rounds the floats in a message of protobuf-py."""
        found = self._shorteners.get(desc.type_name)
        if found is not None:
            return found
        steps: list[Callable[[Any], None]] = []

        def shorten(message: Any) -> None:
            for step in steps:
                step(message)

        self._shorteners[desc.type_name] = shorten  # before its fields, which may hold the same message
        for field in desc.fields:
            if (step := self._step(field)) is not None:
                steps.append(step)
        return shorten

    def _step(self, field: Any) -> Callable[[Any], None] | None:
        value = field.value
        kind = type(value).__name__
        held = {
            "DescFieldValueScalar": "scalar",
            "DescFieldValueMessage": "message",
            "DescFieldValueList": "element",
            "DescFieldValueMap": "value",
        }.get(kind)
        if held is None:
            return None
        held = getattr(value, held)
        inner = self.shortener(held) if hasattr(held, "type_name") and hasattr(held, "fields") else None
        if inner is None and getattr(held, "name", "") != "FLOAT":
            return None
        if kind == "DescFieldValueList":
            return _in_list(field, inner)
        if kind == "DescFieldValueMap":
            return _in_map(field, inner)
        return _in_field(field, inner)


def _in_field(field: Any, inner: Callable[[Any], None] | None) -> Callable[[Any], None]:
    def step(message: Any) -> None:
        if field in message:
            if inner is None:
                message[field] = shortest(message[field])
            else:
                inner(message[field])

    return step


def _in_list(field: Any, inner: Callable[[Any], None] | None) -> Callable[[Any], None]:
    def step(message: Any) -> None:
        values = message[field]
        if inner is None:
            values[:] = map(shortest, values)
        else:
            for value in values:
                inner(value)

    return step


def _in_map(field: Any, inner: Callable[[Any], None] | None) -> Callable[[Any], None]:
    def step(message: Any) -> None:
        values = message[field]
        for key, value in values.items():
            if inner is None:
                values[key] = shortest(value)
            else:
                inner(value)

    return step
