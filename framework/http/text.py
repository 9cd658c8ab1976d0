"""One piece of text, of a path or a query, as the value of a field."""

from __future__ import annotations

import base64
import binascii
import json
import math
import re
from collections.abc import Callable
from typing import Any

from google.protobuf import message_factory
from google.protobuf.descriptor import EnumDescriptor, FieldDescriptor

from framework.http.floats import FLOAT_LIMIT, FLOAT_MAX
from framework.http.json import Json, JsonError

Convert = Callable[[str], Any]
"""The value that a text stands for. Raises ValueError, which says what it should have been."""

_INTEGER = re.compile(r"[+-]?[0-9]{1,20}")
_NUMBER = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")
_NOT_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}
_BOOLS = {"true": True, "false": False, "1": True, "0": False}
_STANDARD = str.maketrans("-_", "+/")

F = FieldDescriptor
_LIMITS = {
    **dict.fromkeys((F.TYPE_INT32, F.TYPE_SINT32, F.TYPE_SFIXED32), (-(2**31), 2**31 - 1)),
    **dict.fromkeys((F.TYPE_INT64, F.TYPE_SINT64, F.TYPE_SFIXED64), (-(2**63), 2**63 - 1)),
    **dict.fromkeys((F.TYPE_UINT32, F.TYPE_FIXED32), (0, 2**32 - 1)),
    **dict.fromkeys((F.TYPE_UINT64, F.TYPE_FIXED64), (0, 2**64 - 1)),
}
_AS_JSON = frozenset(f"google.protobuf.{name}" for name in ("Struct", "Value", "ListValue", "Any"))


def converter(field: FieldDescriptor, codecs: Json) -> Convert | None:
    """How a text becomes one value of a field; None for a message that is more than one piece of text."""
    limits = _LIMITS.get(field.type)
    if limits is not None:
        return _integer(*limits)
    if field.type == F.TYPE_STRING:
        return str
    if field.type == F.TYPE_BOOL:
        return _bool
    if field.enum_type is not None:
        return _enum(field.enum_type)
    if field.type == F.TYPE_BYTES:
        return _bytes
    if field.type == F.TYPE_DOUBLE:
        return _double
    if field.type == F.TYPE_FLOAT:
        return _float
    return None if field.message_type is None else _message(field, codecs)


def _message(field: FieldDescriptor, codecs: Json) -> Convert | None:
    descriptor: Any = field.message_type
    kind = message_factory.GetMessageClass(descriptor)
    name = descriptor.full_name
    if name == "google.protobuf.FieldMask":
        return lambda text: kind(paths=[_snake(path) for path in text.split(",") if path])
    if name in ("google.protobuf.Timestamp", "google.protobuf.Duration"):
        return _json(kind, codecs, json.dumps)
    if name in _AS_JSON:
        return _json(kind, codecs, str)
    if name.startswith("google.protobuf.") and name.endswith("Value"):
        inner = converter(descriptor.fields_by_name["value"], codecs)
        return None if inner is None else lambda text: kind(value=inner(text))
    return None


def _json(kind: Any, codecs: Json, quote: Callable[[str], str]) -> Convert:
    parse = codecs.codec(kind).parse

    def convert(text: str) -> Any:
        try:
            return parse(quote(text).encode())
        except JsonError:
            raise ValueError(f"{_shown(text)} is no {kind.DESCRIPTOR.full_name}") from None

    return convert


def _integer(low: int, high: int) -> Convert:
    def convert(text: str) -> int:
        if not _INTEGER.fullmatch(text):
            raise ValueError(f"{_shown(text)} is no whole number")
        number = int(text)
        if not low <= number <= high:
            raise ValueError(f"{_shown(text)} is not from {low} to {high}")
        return number

    return convert


def _double(text: str) -> float:
    if text in _NOT_FINITE:
        return _NOT_FINITE[text]
    number = float(text) if _NUMBER.fullmatch(text) else None
    if number is None:
        raise ValueError(f"{_shown(text)} is no number")
    if math.isinf(number):
        raise ValueError(f"{_shown(text)} is too large")
    return number


def _float(text: str) -> float:
    number = _double(text)
    if math.isfinite(number) and abs(number) > FLOAT_MAX:
        if abs(number) >= FLOAT_LIMIT:
            raise ValueError(f"{_shown(text)} is too large")
        return math.copysign(FLOAT_MAX, number)
    return number


def _bool(text: str) -> bool:
    found = _BOOLS.get(text)
    if found is None:
        raise ValueError(f"{_shown(text)} is neither true nor false")
    return found


def _bytes(text: str) -> bytes:
    try:
        sent = text.translate(_STANDARD)
        padding = "" if sent.endswith("=") else "=" * (-len(sent) % 4)  # in full, or not at all
        return base64.b64decode(sent + padding, validate=True)
    except (binascii.Error, ValueError):
        raise ValueError(f"{_shown(text)} is no base64") from None


def _enum(descriptor: EnumDescriptor) -> Convert:
    values = {value.name: value.number for value in descriptor.values}
    known = frozenset(values.values())

    def convert(text: str) -> int:
        found = values.get(text)
        if found is None:
            if not _INTEGER.fullmatch(text):
                raise ValueError(f"{_shown(text)} is no {descriptor.full_name}; there are {', '.join(values)}")
            found = int(text)
            if not -(2**31) <= found < 2**31 or (descriptor.is_closed and found not in known):
                raise ValueError(f"{_shown(text)} is no {descriptor.full_name}")
        return found

    return convert


def _snake(path: str) -> str:
    return re.sub(r"[A-Z]", lambda found: f"_{found[0].lower()}", path)


def _shown(text: str) -> str:
    return repr(text if len(text) <= 60 else f"{text[:57]}...")
