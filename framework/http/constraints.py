"""What the rules of `buf/validate/validate.proto` mean in JSON Schema, and examples that keep to them.

Rules that JSON Schema has no words for are left out, such as those of times and those of 64-bit numbers, which are text
in JSON; a rule in CEL is shown by its message.

Rules: https://protovalidate.com/schemas/standard-rules/
"""

from __future__ import annotations

import base64
import math
import re
from collections.abc import Callable, Iterable
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor, OneofDescriptor

from framework.http.rules import is_map
from framework.security.rules import field_rules, message_rules, oneof_rules

F = FieldDescriptor
Schema = dict[str, Any]

_ALWAYS, _IF_ZERO = 3, 1  # buf.validate.Ignore
_LONG = frozenset(("int64", "uint64", "sint64", "fixed64", "sfixed64"))
_FLOATS = frozenset(("float", "double"))
_NUMBERS = _LONG | _FLOATS | {"int32", "uint32", "sint32", "fixed32", "sfixed32"}

_FORMATS = {
    "email": "email",
    "hostname": "hostname",
    "ipv4": "ipv4",
    "ipv6": "ipv6",
    "uri": "uri",
    "uri_ref": "uri-reference",
    "uuid": "uuid",
}
_EXAMPLES = {
    "email": "ada@example.com",
    "hostname": "example.com",
    "ip": "192.0.2.1",
    "ipv4": "192.0.2.1",
    "ipv6": "2001:db8::1",
    "uri": "https://example.com/",
    "uri_ref": "/orders?page=2",
    "address": "example.com",
    "uuid": "6f1c2a52-5a2b-4b6e-9d4c-0f7f9a1b2c3d",
    "tuuid": "6f1c2a525a2b4b6e9d4c0f7f9a1b2c3d",
    "ip_with_prefixlen": "192.0.2.1/24",
    "ipv4_with_prefixlen": "192.0.2.1/24",
    "ipv6_with_prefixlen": "2001:db8::1/64",
    "ip_prefix": "192.0.2.0/24",
    "ipv4_prefix": "192.0.2.0/24",
    "ipv6_prefix": "2001:db8::/64",
    "host_and_port": "example.com:443",
    "ulid": "01ARZ3NDEKTSV4RRFFQ69G5FAV",
    "protobuf_fqn": "google.protobuf.Any",
    "protobuf_dot_fqn": ".google.protobuf.Any",
}
_OTHER_DIALECT = re.compile(r"\(\?(?!:)|\\[AzQEpPC]|\[\[:")
"""What a pattern of RE2 may have, and one of ECMA-262 has not, or has for something else."""


def bound(field: FieldDescriptor, schema: Schema) -> Schema:
    """The schema of a field, of a list or a map too, with what its rules add."""
    rules = _rules(field)
    if rules is None:
        return schema
    found = _bound(field, schema, rules)
    if not rules.required:
        return found
    if isinstance(found.get("type"), list):  # of a wrapper, which null leaves out
        found = {**found, "type": found["type"][0]}
    return {**not_empty(field), **found}


def not_empty(field: FieldDescriptor) -> Schema:
    """What makes the default no value of a required field. It is left out in JSON, and stands for nothing."""
    if field.has_presence:
        return {}
    if field.is_repeated:
        return {"minProperties": 1} if is_map(field) else {"minItems": 1}
    if field.enum_type is not None:
        return {"not": {"enum": [field.enum_type.values_by_number[0].name, 0]}}
    if field.type in (F.TYPE_STRING, F.TYPE_BYTES):
        return {"minLength": 1}
    return {"const": True} if field.type == F.TYPE_BOOL else {"not": {"enum": [0, "0"]}}


def needs_one(oneof: OneofDescriptor) -> bool:
    """Whether one of its fields has to be there."""
    rules = oneof_rules(oneof)
    return rules is not None and rules.required


def choices(message: Descriptor) -> Iterable[tuple[list[str], bool]]:
    """Fields of which there may be one, and whether there has to be one, as a rule of the message says."""
    rules = message_rules(message)
    return () if rules is None else [(list(one.fields), one.required) for one in rules.oneof]


def is_demanded(field: FieldDescriptor) -> bool:
    """Whether rules refuse a message that does not have this field."""
    rules = _rules(field)
    if rules is None:
        return False
    return rules.required or not (field.has_presence or rules.ignore or _admits_nothing(field, rules))


def told(field: FieldDescriptor) -> Iterable[str]:
    """What rules say in words: those that are expressions."""
    rules = _rules(field)
    return () if rules is None else tuple(rule.message for rule in rules.cel if rule.message)


def suited(field: FieldDescriptor, example: Any) -> Any:
    """An example of a field that keeps to the rules as far as can be told; it is changed where it does not."""
    rules = _rules(field)
    return example if rules is None else _suited(field, example, rules)


def _rules(field: FieldDescriptor) -> Any:
    rules = field_rules(field)
    return None if rules is None or rules.ignore == _ALWAYS else rules


def _of(rules: Any) -> tuple[str, Any]:
    kind = rules.WhichOneof("type") or ""
    return kind, getattr(rules, kind) if kind else None


def _said(rules: Any, *names: str) -> Any:
    """The value of the first of these that is set."""
    return next((getattr(rules, name) for name in names if rules.HasField(name)), None)


# Schemas


def _bound(field: FieldDescriptor, schema: Schema, rules: Any) -> Schema:
    kind, of = _of(rules)
    if kind == "repeated":
        return _list(field, schema, of)
    if kind == "map":
        return _map(field, schema, of)
    found = schema
    if kind in _NUMBERS:
        found = _number(kind, schema, of)
    elif kind == "string":
        found = _string(schema, of)
    elif kind == "bytes":
        found = _bytes(schema, of)
    elif kind == "enum":
        found = _chosen(schema, of, lambda number: _name(field, number))
    elif kind == "bool" and of.HasField("const"):
        found = {**schema, "const": of.const}
    if found is not schema and rules.ignore == _IF_ZERO and not _admits_zero(kind, of):
        return {"anyOf": [found, {**schema, "const": _zero(field, kind)}]}
    return found


def _list(field: FieldDescriptor, schema: Schema, of: Any) -> Schema:
    schema = dict(schema)
    if of.min_items:
        schema["minItems"] = of.min_items
    if of.HasField("max_items"):
        schema["maxItems"] = of.max_items
    if of.unique:
        schema["uniqueItems"] = True
    if of.HasField("items") and of.items.ignore != _ALWAYS:
        schema["items"] = _bound(field, schema["items"], of.items)
    return schema


def _map(field: FieldDescriptor, schema: Schema, of: Any) -> Schema:
    schema = dict(schema)
    if of.min_pairs:
        schema["minProperties"] = of.min_pairs
    if of.HasField("max_pairs"):
        schema["maxProperties"] = of.max_pairs
    entry: Any = field.message_type
    if of.HasField("keys") and of.keys.WhichOneof("type") == "string":
        schema["propertyNames"] = _bound(entry.fields_by_name["key"], schema.get("propertyNames", {}), of.keys)
    if of.HasField("values") and of.values.ignore != _ALWAYS:
        value = entry.fields_by_name["value"]
        schema["additionalProperties"] = _bound(value, schema["additionalProperties"], of.values)
    return schema


def _is_null(schema: Schema) -> bool:
    return {"type": "null"} in schema.get("anyOf", ())


def _number(kind: str, schema: Schema, of: Any) -> Schema:
    low, above = _said(of, "gte", "gt"), of.HasField("gt")
    high, below = _said(of, "lte", "lt"), of.HasField("lt")
    if kind in _LONG:
        least = None if low is None else low + above
        if high is None and least in (0, 1):
            schema = {**schema, "pattern": "^[1-9][0-9]*$" if least else "^[0-9]+$"}
        return _chosen(schema, of, str)
    least = {} if low is None else {"exclusiveMinimum" if above else "minimum": _plain(low)}
    most = {} if high is None else {"exclusiveMaximum" if below else "maximum": _plain(high)}
    around = low is not None and high is not None and low > high  # not between the two, but outside
    number, others = schema, []
    if kind in _FLOATS and not _is_null(schema):
        number = schema["anyOf"][0]
        if not (of.finite or of.HasField("const") or getattr(of, "in")):
            others += ["NaN"] if low is high is None else []
            others += ["Infinity"] if high is None or around else []
            others += ["-Infinity"] if low is None or around else []
    number = {**number, "anyOf": [least, most]} if around else {**number, **least, **most}
    number = _chosen(number, of, _plain)
    return {"anyOf": [number, {"type": "string", "enum": others}]} if others else number


def _string(schema: Schema, of: Any) -> Schema:
    schema = dict(schema)
    if least := _said(of, "len", "min_len"):
        schema["minLength"] = least
    most = [getattr(of, name) for name in ("len", "max_len", "len_bytes", "max_bytes") if of.HasField(name)]
    if most:
        schema["maxLength"] = min(most)
    patterns = [of.pattern] if of.pattern and not _OTHER_DIALECT.search(of.pattern) else []
    for name, before, after in (("prefix", "^", ""), ("suffix", "", "$"), ("contains", "", "")):
        if text := getattr(of, name):
            patterns.append(f"{before}{_escaped(text)}{after}")
    if of.not_contains:
        schema["not"] = {"pattern": _escaped(of.not_contains)}
    known = of.WhichOneof("well_known")
    if known == "tuuid":
        patterns.append("^[0-9a-fA-F]{32}$")
    elif known == "ip":
        schema["anyOf"] = [{"format": "ipv4"}, {"format": "ipv6"}]
    elif known in _FORMATS and getattr(of, known):
        schema["format"] = _FORMATS[known]
    if len(patterns) == 1 and "pattern" not in schema:
        schema["pattern"] = patterns[0]
    elif patterns:
        schema["allOf"] = [{"pattern": pattern} for pattern in patterns]
    return _chosen(schema, of, str)


def _bytes(schema: Schema, of: Any) -> Schema:
    """Lengths, which are those of base64: with its padding at most, and without at least."""
    schema = dict(schema)
    if least := _said(of, "len", "min_len"):
        schema["minLength"] = math.ceil(least * 4 / 3)
    if (most := _said(of, "len", "max_len")) is not None:
        schema["maxLength"] = 4 * math.ceil(most / 3)
    return schema


def _chosen(schema: Schema, of: Any, shown: Callable[[Any], Any]) -> Schema:
    """Which values there may be, and which not."""
    if of.HasField("const"):
        schema = {**schema, "const": shown(of.const)}
    if inside := getattr(of, "in"):
        schema = {**schema, "enum": [shown(value) for value in inside]}
    if of.not_in:
        refused: Schema = {"enum": [shown(value) for value in of.not_in]}
        schema = {**schema, "not": {"anyOf": [schema["not"], refused]} if "not" in schema else refused}
    return schema


def _name(field: FieldDescriptor, number: int) -> str | int:
    enum: Any = field.enum_type
    found = enum.values_by_number.get(number)
    return number if found is None else str(found.name)


def _plain(number: float) -> float:
    """Written without a fraction that is zero."""
    return int(number) if number == int(number) else number


def _escaped(text: str) -> str:
    """A pattern of ECMA-262 for a text: it knows no escapes of what needs none."""
    return re.sub(r"[\\^$.*+?()\[\]{}|/]", r"\\\g<0>", text)


# Nothing, which is what a field that is left out holds


def _admits_nothing(field: FieldDescriptor, rules: Any) -> bool:
    kind, of = _of(rules)
    if kind == "repeated":
        return not of.min_items
    if kind == "map":
        return not of.min_pairs
    return of is None or _admits_zero(kind, of)


def _admits_zero(kind: str, of: Any) -> bool:
    if kind == "string":
        zero: Any = ""
    elif kind == "bytes":
        zero = b""
    elif kind in _NUMBERS or kind in ("enum", "bool"):
        zero = 0
    else:
        return True
    if of.HasField("const") and of.const != zero:
        return False
    if kind == "bool":
        return True
    inside = getattr(of, "in")
    if (inside and zero not in inside) or zero in of.not_in:
        return False
    if kind == "enum":
        return True
    if kind in _NUMBERS:
        low, high = _said(of, "gte", "gt"), _said(of, "lte", "lt")
        over = low is None or low < 0 or (low == 0 and not of.HasField("gt"))
        under = high is None or high > 0 or (high == 0 and not of.HasField("lt"))
        return over or under if low is not None and high is not None and low > high else over and under
    lengths = ("len", "min_len", "len_bytes", "min_bytes") if kind == "string" else ("len", "min_len")
    parts = any(getattr(of, name) for name in ("prefix", "suffix", "contains"))
    known = of.WhichOneof("well_known") not in (None, "uri_ref", "well_known_regex")
    return not (any(getattr(of, name) for name in lengths) or parts or known or _refuses(of.pattern, ""))


def _refuses(pattern: str, text: str) -> bool:
    try:
        return bool(pattern) and re.search(pattern, text) is None
    except re.error:  # RE2 has some that this has not
        return False


def _zero(field: FieldDescriptor, kind: str) -> Any:
    if kind in ("string", "bytes"):
        return ""
    if kind in _LONG:
        return "0"
    return _name(field, 0) if kind == "enum" else 0


# Examples


def _suited(field: FieldDescriptor, example: Any, rules: Any) -> Any:
    kind, of = _of(rules)
    if kind == "repeated":
        if of.HasField("items"):
            example = [_suited(field, one, of.items) for one in example]
        return example * of.min_items if of.min_items > 1 and not of.unique else example
    if kind == "map":
        entry: Any = field.message_type
        key, value = entry.fields_by_name["key"], entry.fields_by_name["value"]
        return {str(_suited(key, k, of.keys)): _suited(value, v, of.values) for k, v in example.items()}
    if kind in ("string", "bytes", "enum") or kind in _NUMBERS:
        said = [*([of.const] if of.HasField("const") else ()), *of.example, *getattr(of, "in")]
        if said:
            return _shown(field, kind, said[0])
    if kind == "string":
        return _text(example, of)
    if kind in _NUMBERS:
        return _within(kind, example, of)
    if kind == "enum" and of.not_in:
        enum: Any = field.enum_type
        return next((str(one.name) for one in enum.values if one.number not in of.not_in), example)
    if kind == "bytes":
        data = base64.b64decode(example)[: _said(of, "len", "max_len")].ljust(_said(of, "len", "min_len") or 0, b"\0")
        return base64.b64encode(data).decode()
    return example


def _shown(field: FieldDescriptor, kind: str, value: Any) -> Any:
    if kind == "enum":
        return _name(field, value)
    if kind == "bytes":
        return base64.b64encode(value).decode()
    return str(value) if kind in _LONG else value


def _text(example: str, of: Any) -> str:
    known = of.WhichOneof("well_known")
    if known in _EXAMPLES:
        return _EXAMPLES[known]
    most = _said(of, "len", "max_len", "len_bytes", "max_bytes")
    room = None if most is None else max(most - len(of.prefix) - len(of.contains) - len(of.suffix), 0)
    text = f"{of.prefix}{example[:room]}{of.contains}{of.suffix}"
    text = text.ljust(_said(of, "len", "min_len", "len_bytes", "min_bytes") or 0, "x")
    return f"{text}x" if text in of.not_in else text


def _within(kind: str, example: Any, of: Any) -> Any:
    number = float(example) if kind in _FLOATS else int(example)
    step = 0.5 if kind in _FLOATS else 1
    low, high = _said(of, "gte", "gt"), _said(of, "lte", "lt")
    if high is not None and number >= high:
        number = high - step if of.HasField("lt") else high
    if low is not None and number <= low:
        number = low + step if of.HasField("gt") else low
    while number in of.not_in:
        number += step
    return str(number) if kind in _LONG else _plain(number)
