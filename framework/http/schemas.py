"""Messages as JSON Schema, in the form that ProtoJSON gives them, and examples of them.

What a schema says is what is written; readers of ProtoJSON take more (both names of a field, numbers as text, null).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from google.api import field_behavior_pb2
from google.protobuf import descriptor_pb2
from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor, OneofDescriptor

from framework.http import constraints
from framework.http.json import JsonOptions
from framework.http.rules import is_map

F = FieldDescriptor
Schema = dict[str, Any]

DEEPEST = 5
"""How many messages inside one another an example shows."""

_NOT_FINITE = {"type": "string", "enum": ["NaN", "Infinity", "-Infinity"]}
_INT32: Schema = {"type": "integer", "format": "int32", "minimum": -(2**31), "maximum": 2**31 - 1}
_UINT32: Schema = {"type": "integer", "format": "uint32", "minimum": 0, "maximum": 2**32 - 1}
_INT64: Schema = {"type": "string", "format": "int64"}
_UINT64: Schema = {"type": "string", "format": "uint64"}
_SCALARS: Mapping[int, Schema] = {
    **dict.fromkeys((F.TYPE_INT32, F.TYPE_SINT32, F.TYPE_SFIXED32), _INT32),
    **dict.fromkeys((F.TYPE_UINT32, F.TYPE_FIXED32), _UINT32),
    **dict.fromkeys((F.TYPE_INT64, F.TYPE_SINT64, F.TYPE_SFIXED64), _INT64),
    **dict.fromkeys((F.TYPE_UINT64, F.TYPE_FIXED64), _UINT64),
    F.TYPE_FLOAT: {
        "anyOf": [
            {"type": "number", "format": "float", "minimum": -3.4028234663852886e38, "maximum": 3.4028234663852886e38},
            _NOT_FINITE,
        ]
    },
    F.TYPE_DOUBLE: {"anyOf": [{"type": "number", "format": "double"}, _NOT_FINITE]},
    F.TYPE_BOOL: {"type": "boolean"},
    F.TYPE_STRING: {"type": "string"},
    F.TYPE_BYTES: {"type": "string", "format": "byte", "contentEncoding": "base64"},
}
_WELL_KNOWN: Mapping[str, Schema] = {
    "google.protobuf.Timestamp": {"type": "string", "format": "date-time"},
    "google.protobuf.Duration": {
        "type": "string",
        "format": "google-duration",
        "pattern": r"^-?(?:0|[1-9][0-9]{0,11})(?:\.[0-9]{1,9})?s$",
    },
    "google.protobuf.FieldMask": {"type": "string", "format": "google-fieldmask"},
    "google.protobuf.Struct": {"type": "object", "additionalProperties": True},
    "google.protobuf.Value": {},
    "google.protobuf.ListValue": {"type": "array", "items": {}},
    "google.protobuf.Any": {
        "type": "object",
        "properties": {"@type": {"type": "string", "description": "`type.googleapis.com/` and the name of a message."}},
        "required": ["@type"],
        "additionalProperties": True,
    },
}
_WELL_KNOWN_EXAMPLES: Mapping[str, Any] = {
    "google.protobuf.Timestamp": "2030-01-02T03:04:05Z",
    "google.protobuf.Duration": "1.500s",
    "google.protobuf.FieldMask": "",
    "google.protobuf.Struct": {"key": "value"},
    "google.protobuf.Value": "value",
    "google.protobuf.ListValue": ["value"],
    "google.protobuf.Any": {"@type": "type.googleapis.com/google.protobuf.Duration", "value": "1s"},
}
_NAMED_EXAMPLES: tuple[tuple[str, str], ...] = (
    ("email", "ada@example.com"),
    ("phone", "+1 555 0100"),
    ("url", "https://example.com/"),
    ("uri", "https://example.com/"),
    ("currency", "EUR"),
    ("country", "NL"),
    ("language", "en"),
    ("first_name", "Ada"),
    ("given_name", "Ada"),
    ("last_name", "Lovelace"),
    ("family_name", "Lovelace"),
    ("city", "Delft"),
)
"""By the end of a name, the text that a field holds in examples."""


def is_wrapper(name: str) -> bool:
    """A message of google/protobuf/wrappers.proto, written as what it wraps."""
    return name.startswith("google.protobuf.") and name.endswith("Value") and name not in _WELL_KNOWN


def behaviors(field: FieldDescriptor) -> frozenset[str]:
    """The `google.api.field_behavior` of a field, as names."""
    raw = field.GetOptions().SerializeToString()
    if not raw:
        return frozenset()
    extension: Any = field_behavior_pb2.field_behavior
    found = descriptor_pb2.FieldOptions.FromString(raw).Extensions[extension]
    return frozenset(field_behavior_pb2.FieldBehavior.Name(number) for number in found)


def is_demanded(field: FieldDescriptor) -> bool:
    """Whether it is said of a field that it has to be there."""
    return "REQUIRED" in behaviors(field) or constraints.is_demanded(field)


def is_needed(field: FieldDescriptor) -> bool:
    """Whether a field has to be there, and can be told to be missing: a number or a bool is 0 or false when it is left
    out, and only rules say that it must not be."""
    if field.is_required or constraints.is_demanded(field):
        return True
    tells = field.has_presence or field.is_repeated or field.type in (F.TYPE_STRING, F.TYPE_BYTES, F.TYPE_ENUM)
    return tells and "REQUIRED" in behaviors(field)


def oneofs(descriptor: Descriptor) -> Iterator[OneofDescriptor]:
    """The oneofs that leave a choice: not those that stand for `optional`."""
    for one in descriptor.oneofs:
        if len(one.fields) > 1:
            yield one


class Schemas:
    """JSON Schema of messages and enums; what has a name becomes a component.

    Args:
        comments: descriptions, by full name.
        options: how messages are written.

    Attributes:
        components: what has been referred to by now, by full name.
    """

    def __init__(self, comments: Mapping[str, str], options: JsonOptions) -> None:
        self.comments = comments
        self.options = options
        self.components: dict[str, Schema] = {}
        self._messages: dict[str, Descriptor] = {}

    def name(self, field: FieldDescriptor) -> str:
        """A field's name in JSON."""
        return field.name if self.options.proto_names else field.json_name

    def described(self, full_name: str, schema: Schema) -> Schema:
        """A schema with the comment on something."""
        text = self.comments.get(full_name)
        return {**schema, "description": text} if text else schema

    def message(self, descriptor: Descriptor) -> Schema:
        """A message: inline for what JSON has a form of its own for, else a reference."""
        name = descriptor.full_name
        if name in _WELL_KNOWN:
            return dict(_WELL_KNOWN[name])
        if is_wrapper(name):
            return _nullable(self.value(descriptor.fields_by_name["value"]))
        if name not in self.components:
            self.components[name] = {}  # before its fields, which may hold the same message
            self._messages[name] = descriptor
            self.components[name] = self.object(descriptor)
        return {"$ref": f"#/components/schemas/{name}"}

    def object(self, descriptor: Descriptor, without: Iterable[str] = ()) -> Schema:
        """A message in full, without some of its fields."""
        left_out = frozenset(without)
        fields = [field for field in descriptor.fields if field.name not in left_out]
        schema: Schema = {"type": "object"}
        if fields:
            schema["properties"] = {self.name(field): self.field(field) for field in fields}
        if required := [self.name(field) for field in fields if is_needed(field)]:
            schema["required"] = required
        demanded = {
            one.name
            for one in oneofs(descriptor)
            if constraints.needs_one(one) and not any(field.name in left_out for field in one.fields)
        }
        choices = {
            one.name: names
            for one in oneofs(descriptor)
            if len(names := [self.name(field) for field in one.fields if field.name not in left_out]) > 1
        }
        if choices:
            schema["allOf"] = [_one_of(names, needed=name in demanded) for name, names in choices.items()]
            schema["x-oneofs"] = choices
        for names, needed in constraints.choices(descriptor):
            if left_out.isdisjoint(names):
                shown = [self.name(descriptor.fields_by_name[name]) for name in names]
                schema.setdefault("allOf", []).append(_one_of(shown, needed=needed))
        if descriptor.GetOptions().deprecated:
            schema["deprecated"] = True
        return self.described(descriptor.full_name, schema)

    def enum(self, descriptor: EnumDescriptor) -> Schema:
        """An enum, by names or numbers."""
        name = descriptor.full_name
        if name == "google.protobuf.NullValue":
            return {"type": "null"}
        if name not in self.components:
            numbers = self.options.enum_numbers
            schema: Schema = {
                "type": "integer" if numbers else "string",
                "enum": list(dict.fromkeys(value.number if numbers else value.name for value in descriptor.values)),
            }
            texts = [self.comments.get(f"{name}.{value.name}", "") for value in descriptor.values]
            if any(texts):
                schema["x-enum-descriptions"] = texts
            if descriptor.GetOptions().deprecated:
                schema["deprecated"] = True
            self.components[name] = self.described(name, schema)
        return {"$ref": f"#/components/schemas/{name}"}

    def field(self, field: FieldDescriptor) -> Schema:
        """A field with all that is said about it."""
        schema = self.plain(field)
        if field.GetOptions().deprecated:
            schema["deprecated"] = True
        said = behaviors(field)
        if "REQUIRED" in said and is_needed(field):
            schema = {**constraints.not_empty(field), **schema}
        if "OUTPUT_ONLY" in said:
            schema["readOnly"] = True
        if "INPUT_ONLY" in said:
            schema["writeOnly"] = True
        if "IMMUTABLE" in said:
            schema["x-immutable"] = True
        schema = self.described(field.full_name, schema)
        if rules := [f"Rule: {rule}." for rule in constraints.told(field)]:
            schema["description"] = "\n\n".join((*filter(None, (schema.get("description"),)), *rules))
        return schema

    def plain(self, field: FieldDescriptor) -> Schema:
        """The form of a field: one value, a list, or a map, within its rules."""
        return constraints.bound(field, self._form(field))

    def _form(self, field: FieldDescriptor) -> Schema:
        if is_map(field):
            entry: Any = field.message_type
            key, value = entry.fields_by_name["key"], entry.fields_by_name["value"]
            schema: Schema = {"type": "object", "additionalProperties": self.value(value)}
            if key.type == F.TYPE_BOOL:
                schema["propertyNames"] = {"enum": ["true", "false"]}
            elif key.type != F.TYPE_STRING:
                schema["propertyNames"] = {"format": self.key_format(key)}
            return schema
        if field.is_repeated:
            return {"type": "array", "items": self.value(field)}
        return self.value(field)

    @staticmethod
    def key_format(key: FieldDescriptor) -> str:
        """The format of the keys of a map that are numbers."""
        found: str = _SCALARS[key.type]["format"]
        return found

    def value(self, field: FieldDescriptor) -> Schema:
        """One value of a field."""
        if field.message_type is not None:
            return self.message(field.message_type)
        if field.enum_type is not None:
            return self.enum(field.enum_type)
        return dict(_SCALARS[field.type])

    def close(self, roots: Iterable[Descriptor]) -> None:
        """Say of messages that are sent, and of all inside them, that they have no other fields than theirs."""
        waiting = list(roots)
        seen: set[str] = set()
        while waiting:
            one = waiting.pop()
            if one.full_name in seen:
                continue
            seen.add(one.full_name)
            if one.full_name in self._messages:
                self.components[one.full_name]["additionalProperties"] = False
            waiting.extend(field.message_type for field in one.fields if field.message_type is not None)

    # Examples

    def example(self, descriptor: Descriptor, *, sent: bool, outer: tuple[str, ...] = ()) -> Any:
        """A message with something in its fields; `sent` leaves out what only the server sets."""
        name = descriptor.full_name
        if name in _WELL_KNOWN_EXAMPLES:
            return _WELL_KNOWN_EXAMPLES[name]
        if is_wrapper(name):
            return self.one_example(descriptor.fields_by_name["value"], sent=sent, outer=outer)
        shown: dict[str, Any] = {}
        chosen = {one.fields[0].name for one in oneofs(descriptor)}
        choices = {field.name for one in oneofs(descriptor) for field in one.fields}
        for names, _ in constraints.choices(descriptor):
            choices |= {*names} - {names[0]}
        inside = (*outer, name)
        for field in descriptor.fields:
            hidden = ("OUTPUT_ONLY" if sent else "INPUT_ONLY") in behaviors(field) or field.GetOptions().deprecated
            if hidden or (field.name in choices and field.name not in chosen) or self._too_deep(field, inside):
                continue
            shown[self.name(field)] = self.field_example(field, sent=sent, outer=inside)
        return shown

    @staticmethod
    def _too_deep(field: FieldDescriptor, outer: tuple[str, ...]) -> bool:
        held = field.message_type
        if held is not None and is_map(field):
            held = held.fields_by_name["value"].message_type
        return held is not None and (held.full_name in outer or len(outer) >= DEEPEST)

    def field_example(self, field: FieldDescriptor, *, sent: bool, outer: tuple[str, ...] = ()) -> Any:
        """What a field holds in an example, within its rules."""
        return constraints.suited(field, self._example(field, sent, outer))

    def _example(self, field: FieldDescriptor, sent: bool, outer: tuple[str, ...]) -> Any:
        if is_map(field):
            entry: Any = field.message_type
            key = self.one_example(entry.fields_by_name["key"], sent=sent, outer=outer)
            value = self.one_example(entry.fields_by_name["value"], sent=sent, outer=outer)
            return {str(key).lower() if isinstance(key, bool) else str(key): value}
        one = self.one_example(field, sent=sent, outer=outer)
        return [one] if field.is_repeated else one

    def one_example(self, field: FieldDescriptor, *, sent: bool, outer: tuple[str, ...] = ()) -> Any:
        """One value of a field in an example."""
        if field.message_type is not None:
            return self.example(field.message_type, sent=sent, outer=outer)
        if field.enum_type is not None:
            if field.enum_type.full_name == "google.protobuf.NullValue":
                return None
            value = field.enum_type.values[min(1, len(field.enum_type.values) - 1)]
            return value.number if self.options.enum_numbers else value.name
        schema = _SCALARS[field.type]
        if field.type == F.TYPE_BYTES:
            return "aGVsbG8="
        if field.type == F.TYPE_STRING:
            return _text_example(field)
        if field.type == F.TYPE_BOOL:
            return True
        number = 10 if "size" in field.name or "limit" in field.name else 1
        if schema.get("type") == "string":
            return str(number)
        return number if schema.get("type") == "integer" else number + 0.5


def _text_example(field: FieldDescriptor) -> str:
    name = field.name
    if name == "key":
        return "key"
    for end, text in _NAMED_EXAMPLES:
        if name == end or name.endswith(f"_{end}"):
            return text
    if name in ("id", "name"):
        holder: Any = field.containing_type
        return f"{holder.name.removesuffix('Request').lower()}-1" if name == "id" else f"the {holder.name}".lower()
    if name.endswith("_id"):
        return f"{name.removesuffix('_id').replace('_', '-')}-1"
    return "" if name.endswith("page_token") else name.replace("_", " ")


def _nullable(schema: Schema) -> Schema:
    if "type" in schema:
        return {**schema, "type": [schema["type"], "null"]}
    return {"anyOf": [*schema["anyOf"], {"type": "null"}]}


def _one_of(names: list[str], *, needed: bool) -> Schema:
    """At most one of these fields, or exactly one."""
    each: list[Schema] = [{"required": [name]} for name in names]
    return {"oneOf": each if needed else [*each, {"not": {"anyOf": each}}]}
