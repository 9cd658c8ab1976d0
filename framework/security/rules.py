"""The rules that a proto declares of its messages with `buf/validate/validate.proto`.

    string customer_id = 2 [(buf.validate.field).string.min_len = 1];

`validation` enforces them, and the OpenAPI document shows the simple ones.
"""

from __future__ import annotations

from typing import Any

from google.protobuf import descriptor_pb2
from google.protobuf.descriptor import Descriptor, FieldDescriptor, OneofDescriptor
from google.protobuf.message import Message

from framework import validate_pb2

FIELD: Any
MESSAGE: Any
ONEOF: Any
FIELD, MESSAGE, ONEOF = (validate_pb2.DESCRIPTOR.extensions_by_name[name] for name in ("field", "message", "oneof"))


def field_rules(field: FieldDescriptor) -> Any:
    """The `buf.validate.FieldRules` of a field, or None."""
    return _declared(field, descriptor_pb2.FieldOptions, FIELD)


def oneof_rules(oneof: OneofDescriptor) -> Any:
    """The `buf.validate.OneofRules` of a oneof, or None."""
    return _declared(oneof, descriptor_pb2.OneofOptions, ONEOF)


def message_rules(message: Descriptor) -> Any:
    """The `buf.validate.MessageRules` of a message, or None."""
    return _declared(message, descriptor_pb2.MessageOptions, MESSAGE)


def has_rules(message: Descriptor) -> bool:
    """Whether a message, or one that it may hold, has rules."""
    seen: set[str] = set()
    waiting = [message]
    while waiting:
        one = waiting.pop()
        if one.full_name in seen:
            continue
        seen.add(one.full_name)
        if message_rules(one) is not None or any(oneof_rules(oneof) is not None for oneof in one.oneofs):
            return True
        for field in one.fields:
            if field_rules(field) is not None:
                return True
            if field.message_type is not None:
                waiting.append(field.message_type)
    return False


def _declared(described: Any, kind: type[Message], extension: Any) -> Any:
    if not described.has_options:
        return None
    # Over the wire once: the descriptor may be of a pool that does not know the rules.
    options = kind.FromString(described.GetOptions().SerializeToString())
    return options.Extensions[extension] if options.HasExtension(extension) else None
