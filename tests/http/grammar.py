"""Requests made up from rules: paths with captures, query parameters of every type, bodies of every shape.

A request is plain, or has exactly one thing in it that is odd, and says which: so a difference between two servers is
laid at the door of that, and of nothing else.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any
from urllib.parse import quote

from google.protobuf.descriptor import FieldDescriptor

from framework.http.rules import STAR, STARS, Rule, is_map

F = FieldDescriptor
WORDS = (
    "x",
    "abc",
    "a b",
    "ü",
    "日本",
    "a.b",
    "1",
    "-5",
    "true",
    "RED",
    "a~b",
    "a_b",
    "=",
    "a&b",
    "a+b",
    "100%",
    "\U0001f600",
)
TEXTS = (*WORDS, "a/b", 'say "x"', "back\\slash", "", "?q#f", "tab\tnew\nline", "\x7f", "<b>")
_INTS: dict[int, tuple[int, ...]] = {
    **dict.fromkeys((F.TYPE_INT32, F.TYPE_SINT32, F.TYPE_SFIXED32), (0, 1, -1, 77, 2**31 - 1, -(2**31))),
    **dict.fromkeys((F.TYPE_INT64, F.TYPE_SINT64, F.TYPE_SFIXED64), (0, 1, -1, 2**53 + 1, 2**63 - 1, -(2**63))),
    **dict.fromkeys((F.TYPE_UINT32, F.TYPE_FIXED32), (0, 1, 2**32 - 1)),
    **dict.fromkeys((F.TYPE_UINT64, F.TYPE_FIXED64), (0, 1, 2**53 + 1, 2**64 - 1)),
}
_FLOATS = (0.0, 1.5, -2.25, 1e10, -1e-5, 0.1)
_BYTES = (b"", b"a", b"ab", b"abc", b"\xff\xfe", b"\x00\xfb\xef")
_TIMES = ("2024-01-01T00:00:00Z", "1970-01-01T00:00:00.5Z", "2000-02-29T23:59:59.123456Z", "9999-12-31T23:59:59Z")
_SPANS = ("0s", "1s", "1.5s", "-3.25s", "100000.000001s")
_MASKS = ("i32", "st,inner.text", "customName", "fooBarBaz")
_WRAPPED = "google.protobuf."


@dataclass(frozen=True)
class Request:
    """One request, as it is sent.

    Attributes:
        rule: the rule that it was made from, as text.
        odd: what is odd about it; empty when nothing is.
    """

    http: str
    target: str
    body: bytes | None
    rule: str
    odd: str = ""

    def __str__(self) -> str:
        shown = "" if self.body is None else f" {self.body!r}"
        return f"{self.http} {self.target}{shown}" + (f"  ({self.odd})" if self.odd else "")


def text_value(field: FieldDescriptor, rng: Random, words: Sequence[str] = TEXTS) -> str | None:
    """A value of a field as a path or a query has it; None for what is no single piece of text."""
    held = field.message_type
    if held is not None:
        name = held.full_name
        if name.endswith(".Timestamp"):
            return rng.choice(_TIMES)
        if name.endswith(".Duration"):
            return rng.choice(_SPANS)
        if name.endswith(".FieldMask"):
            return rng.choice(_MASKS)
        if (
            name.startswith(_WRAPPED)
            and name.endswith("Value")
            and name not in (f"{_WRAPPED}Value", f"{_WRAPPED}ListValue")
        ):
            return text_value(held.fields_by_name["value"], rng, words)
        return None
    value = _scalar(field, rng, words)
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value)


def json_value(field: FieldDescriptor, rng: Random, depth: int) -> Any:
    """A value of a field as JSON has it, of one element when it is repeated."""
    held = field.message_type
    if held is None:
        value = _scalar(field, rng, TEXTS)
        big = field.cpp_type in (F.CPPTYPE_INT64, F.CPPTYPE_UINT64)
        return str(value) if big and rng.random() < 0.8 else value
    name = held.full_name
    match name.removeprefix(_WRAPPED):
        case "Struct":
            return {"a": rng.choice((None, 1.5, "x", True, {"b": []}, [1, [2]]))}
        case "Value":
            return rng.choice((None, 1.5, "x", False, {"b": {}}, [1, "2"]))
        case "ListValue":
            return rng.choice(([], [1, None, "x"], [[[]]]))
        case "Any":
            return {"@type": f"type.googleapis.com/{_WRAPPED}Duration", "value": "1.5s"}
        case "Timestamp" | "Duration" | "FieldMask":
            return text_value(field, rng)
        case short if name.startswith(_WRAPPED) and short.endswith("Value"):
            return json_value(held.fields_by_name["value"], rng, depth)
    return message(held, rng, depth - 1)


def message(descriptor: Any, rng: Random, depth: int = 2) -> dict[str, Any]:
    """A message as JSON, with some of its fields; of a oneof at most one."""
    if depth < 0:
        return {}
    found: dict[str, Any] = {}
    oneofs: set[str] = set()
    fields = list(descriptor.fields)
    for field in rng.sample(fields, min(len(fields), rng.randint(0, 5))):
        oneof = field.containing_oneof
        if oneof is not None and len(oneof.fields) > 1:
            if oneof.name in oneofs:
                continue
            oneofs.add(oneof.name)
        name = rng.choice((field.json_name, field.name))
        if is_map(field):
            key, value = (field.message_type.fields_by_name[part] for part in ("key", "value"))
            found[name] = {str(text_value(key, rng)): json_value(value, rng, depth) for _ in range(rng.randint(0, 2))}
        elif field.is_repeated:
            found[name] = [json_value(field, rng, depth) for _ in range(rng.randint(0, 3))]
        else:
            found[name] = json_value(field, rng, depth)
    return found


def _scalar(field: FieldDescriptor, rng: Random, words: Sequence[str]) -> Any:
    if field.type in _INTS:
        return rng.choice(_INTS[field.type])
    if field.type in (F.TYPE_DOUBLE, F.TYPE_FLOAT):
        return rng.choice(_FLOATS)
    if field.type == F.TYPE_BOOL:
        return rng.random() < 0.5
    if field.type == F.TYPE_BYTES:
        encode = rng.choice((base64.b64encode, base64.urlsafe_b64encode))
        return encode(rng.choice(_BYTES)).decode()
    if field.enum_type is not None:
        if field.enum_type.full_name.endswith("NullValue"):
            return "NULL_VALUE"
        value = rng.choice(list(field.enum_type.values))
        return value.name
    return rng.choice(words)


class Grammar:
    """Makes up requests.

    Args:
        rules: what they are made from.
        rng: where the choices come from.
    """

    def __init__(self, rules: Sequence[Rule], rng: Random) -> None:
        self._rules = rules
        self._rng = rng

    def request(self) -> Request:
        """The next request."""
        rng = self._rng
        rule = rng.choice(self._rules)
        descriptor: Any = rule.method.request.DESCRIPTOR
        path = self._path(rule)
        query = [] if rule.body == "*" else self._query(rule, descriptor)
        body = self._body(rule, descriptor)
        odd = ""
        if rng.random() < 0.4:
            odd = rng.choice(list(ODDITIES))
            changed = ODDITIES[odd](rng, rule, path, query, body)
            if changed is None:
                odd = ""
            else:
                path, query, body = changed
        target = path + ("?" + "&".join(f"{name}={value}" for name, value in query) if query else "")
        return Request(rule.http, target, body, f"{rule.http} {rule.template.text}", odd)

    def _path(self, rule: Rule) -> str:
        rng, template = self._rng, rule.template
        kinds: dict[int, FieldDescriptor] = {}
        for variable, fields in zip(template.variables, rule.fields, strict=True):
            if variable.single:
                kinds[variable.start] = fields[-1]
        parts: list[str] = []
        for number, segment in enumerate(template.segments):
            if segment == STAR:
                kind = kinds.get(number)
                text = rng.choice(WORDS) if kind is None else text_value(kind, rng, WORDS)
                parts.append(self._segment(text or "YQ"))  # no segment is empty
            elif segment == STARS:
                parts += (self._segment(rng.choice(WORDS)) for _ in range(rng.randint(1, 3)))
            else:
                parts.append(segment)
        return "/" + "/".join(parts) + (f":{template.verb}" if template.verb else "")

    def _segment(self, text: str) -> str:
        """Encoded as needed, or more than that."""
        if self._rng.random() < 0.2:
            return "".join(f"%{byte:02X}" for byte in text.encode())
        return quote(text, safe="-._~=&+")

    def _query(self, rule: Rule, descriptor: Any) -> list[tuple[str, str]]:
        rng = self._rng
        found: list[tuple[str, str]] = []
        taken = {fields[0].name for fields in rule.fields} | {rule.body}
        oneofs: set[str] = set()
        for field in rng.sample(list(descriptor.fields), rng.randint(0, 5)):
            oneof = field.containing_oneof
            if field.name in taken or is_map(field) or (oneof is not None and oneof.name in oneofs):
                continue
            if oneof is not None:
                oneofs.add(oneof.name)
            name = rng.choice((field.name, field.json_name))
            if field.message_type is not None and field.message_type.name == "Inner" and not field.is_repeated:
                inner = rng.choice((("text", "text"), ("n", "n"), ("child.text", "text"), ("child.child.n", "n")))
                value = text_value(field.message_type.fields_by_name[inner[1]], rng)
                found.append((f"{name}.{inner[0]}", self._value(value or "")))
                continue
            for _ in range(rng.randint(1, 3) if field.is_repeated else 1):
                if (value := text_value(field, rng)) is not None:
                    found.append((name, self._value(value)))
        return found

    def _value(self, text: str) -> str:
        return quote(text, safe="-._~/:").replace("%20", self._rng.choice(("%20", "+")))

    def _body(self, rule: Rule, descriptor: Any) -> bytes | None:
        rng = self._rng
        if not rule.body:
            return b"" if rule.http == "POST" else None
        held = descriptor if rule.body == "*" else descriptor.fields_by_name[rule.body].message_type
        if rng.random() < 0.05 and not rule.method.client_streaming:
            return b""

        def one() -> Any:
            if held.full_name == "google.protobuf.Struct":
                return {"a": 1.5, "b": [None, {"c": "d"}]}
            made = message(held, rng)
            for fields in rule.fields:  # what the path sets is not for the body
                for name in (fields[0].name, fields[0].json_name):
                    made.pop(name, None)
            return made

        made = [one() for _ in range(rng.randint(0, 3))] if rule.method.client_streaming else one()
        if rule.method.name == "Repeat" and isinstance(made, dict):
            made["i32"] = rng.randint(0, 3)
        return json.dumps(made, ensure_ascii=rng.random() < 0.5).encode()


Parts = tuple[str, list[tuple[str, str]], bytes | None]
Oddity = Callable[[Random, Rule, str, list[tuple[str, str]], bytes | None], Parts | None]


def _more_query(name: str, value: str) -> Oddity:
    def change(rng: Random, rule: Rule, path: str, query: list[tuple[str, str]], body: bytes | None) -> Parts | None:
        return None if rule.body == "*" else (path, [*query, (name, value)], body)

    return change


def _twice(rng: Random, rule: Rule, path: str, query: list[tuple[str, str]], body: bytes | None) -> Parts | None:
    return None if rule.body == "*" else (path, [*query, ("u32", "1"), ("u32", "2")], body)


def _whole_query(rng: Random, rule: Rule, path: str, query: list[tuple[str, str]], body: bytes | None) -> Parts | None:
    return (path, [("u32", "1")], body) if rule.body == "*" else None


def _other_body(*texts: str) -> Oddity:
    """One of these, with INT and TEXT for the names of such fields."""

    def change(rng: Random, rule: Rule, path: str, query: list[tuple[str, str]], body: bytes | None) -> Parts | None:
        if not rule.body or rule.method.client_streaming or rule.body == "struct":
            return None
        number, text = ("u32", "ost") if rule.body == "*" else ("n", "text")
        made = rng.choice(texts).replace("INT", number).replace("TEXT", text)
        return path, query, made.encode("latin-1")

    return change


def _path_and(suffix: str) -> Oddity:
    def change(rng: Random, rule: Rule, path: str, query: list[tuple[str, str]], body: bytes | None) -> Parts | None:
        return path + suffix, query, body

    return change


def _unwanted(rng: Random, rule: Rule, path: str, query: list[tuple[str, str]], body: bytes | None) -> Parts | None:
    return (path, query, b'{"i32":1}') if not rule.body and rule.http == "POST" else None


def _slash(rng: Random, rule: Rule, path: str, query: list[tuple[str, str]], body: bytes | None) -> Parts | None:
    at = [number for number, segment in enumerate(rule.template.segments) if segment in (STAR, STARS)]
    if not at or rule.fields[0][-1].type != F.TYPE_STRING:
        return None
    parts = path[1:].split("/")
    tail = parts[at[0]].partition(":")
    parts[at[0]] = f"a%2Fb%3Fc%20d%2B{tail[1]}{tail[2]}"
    return "/" + "/".join(parts), query, body


ODDITIES: dict[str, Oddity] = {
    "unknown parameter": _more_query("nope", "1"),
    "unknown nested parameter": _more_query("inner.nope", "1"),
    "parameter of a map": _more_query("mi", "1"),
    "key of a map": _more_query("mcolor[a]", "RED"),
    "parameter of a message": _more_query("rinner", "1"),
    "number that is none": _more_query("u64", "x"),
    "number out of range": _more_query("u64", "18446744073709551616"),
    "number with an exponent": _more_query("s32", "1e3"),
    "enum by number": _more_query("rcolor", "1"),
    "unknown enum name": _more_query("rcolor", "PINK"),
    "unknown enum number": _more_query("rcolor", "99"),
    "bool by number": _more_query("rbo", "1"),
    "bool in capitals": _more_query("rbo", "TRUE"),
    "not a number": _more_query("rfl", "NaN"),
    "time that is none": _more_query("rts", "yesterday"),
    "bytes that are none": _more_query("rby", "!!"),
    "any value": _more_query("rvalue", "%7B%22a%22:1%7D"),
    "malformed escape in a parameter": _more_query("rby", "%zz"),
    "system parameter": _more_query("$alt", "json"),
    "parameter set twice": _twice,
    "parameter beside a whole body": _whole_query,
    "no JSON": _other_body("{", "[}", "nope", '{"a":}', '{"INT":1}}', "{'INT':1}"),
    "JSON of another kind": _other_body("[]", "1", '"x"', "true"),
    "null body": _other_body("null"),
    "unknown field": _other_body('{"nope": 1}'),
    "value of another type": _other_body('{"TEXT": 5}', '{"INT": {}}', '{"INT": "x"}', '{"TEXT": ["a"]}'),
    "number out of range in the body": _other_body('{"INT": 4294967296}', '{"INT": -2147483649}'),
    "body not in UTF-8": _other_body('{"TEXT": "\xff"}'),
    "field twice": _other_body('{"TEXT":"a","TEXT":"b"}'),
    "number as text": _other_body('{"INT": "5"}'),
    "null field": _other_body('{"INT": null, "TEXT": null}'),
    "whole number with a fraction of zero": _other_body('{"INT": 5.0}', '{"INT": 1e2}'),
    "fraction for a whole number": _other_body('{"INT": 5.5}'),
    "body that is not read": _unwanted,
    "trailing slash": _path_and("/"),
    "one segment more": _path_and("/more/and/more"),
    "unknown verb": _path_and(":nope"),
    "malformed escape in the path": _path_and("%zz"),
    "path not in UTF-8": _path_and("%FF"),
    "encoded slash": _slash,
}
"""What may be odd about a request: each changes its path, query and body, or cannot and says None."""
