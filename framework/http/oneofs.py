"""JSON that sets two fields of a oneof is refused; protobuf-py would take the last."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from typing import Any

from google.protobuf.descriptor import Descriptor, OneofDescriptor

_ESCAPED = re.compile(rb"\\u00[3-7]")
"""A letter or a digit that is written as an escape, of a name perhaps; nobody does that without need."""


def checker(descriptor: Descriptor) -> Callable[[bytes], str] | None:
    """What tells of a JSON text, which is one of this message, which oneof is set twice, or an empty string.

    None for a message without any. A look at the bytes is enough for nearly every text.
    """
    names = [
        [f'"{name}"'.encode() for field in oneof.fields for name in {field.name, field.json_name}]
        for one in _reachable(descriptor)
        for oneof in real_oneofs(one)
    ]
    if not names:
        return None

    def check(raw: bytes) -> str:
        if not any(sum(name in raw for name in group) > 1 for group in names) and not _ESCAPED.search(raw):
            return ""
        return next(_conflicts(json.loads(raw), descriptor), "")

    return check


def real_oneofs(descriptor: Descriptor) -> list[OneofDescriptor]:
    """The oneofs of a message, without those that stand for `optional`."""
    return [oneof for oneof in descriptor.oneofs if len(oneof.fields) > 1]


def _reachable(descriptor: Descriptor) -> list[Descriptor]:
    """A message and those that it may hold; those of google.protobuf have JSON of their own."""
    found: dict[str, Descriptor] = {}
    waiting = [descriptor]
    while waiting:
        one = waiting.pop()
        if one.full_name not in found and not one.full_name.startswith("google.protobuf."):
            found[one.full_name] = one
            waiting.extend(field.message_type for field in one.fields if field.message_type is not None)
    return list(found.values())


def _conflicts(data: Any, descriptor: Descriptor | None) -> Iterator[str]:
    if not isinstance(data, dict) or descriptor is None or descriptor.full_name.startswith("google.protobuf."):
        return
    seen: dict[str, str] = {}
    names = {name: field for field in descriptor.fields for name in (field.name, field.json_name)}
    for key, value in data.items():
        field = names.get(key)
        if field is None:
            continue
        oneof = field.containing_oneof
        null = value is None and not _null_is_a_value(field)
        if oneof is not None and not null and seen.setdefault(oneof.full_name, field.name) != field.name:
            yield f"only one of {oneof.name} can be set, and {seen[oneof.full_name]} and {field.name} are"
        held = field.message_type
        if held is None:
            continue
        if field.is_repeated and held.GetOptions().map_entry:
            for entry in value.values() if isinstance(value, dict) else ():
                yield from _conflicts(entry, held.fields_by_name["value"].message_type)
        elif isinstance(value, list):
            for entry in value:
                yield from _conflicts(entry, held)
        else:
            yield from _conflicts(value, held)


def _null_is_a_value(field: Any) -> bool:
    held = field.message_type or field.enum_type
    return held is not None and held.full_name in ("google.protobuf.Value", "google.protobuf.NullValue")
