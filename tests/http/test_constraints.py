"""Schemas of fields that have rules: what they let through is what protovalidate does, and examples are let through."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

import pytest
from google.protobuf import message_factory
from google.protobuf.descriptor import Descriptor
from jsonschema import Draft202012Validator  # type: ignore[import-untyped]  # it has no types

from framework.errors import InvalidArgument
from framework.http.json import Json, JsonError, JsonOptions
from framework.http.schemas import Schemas
from framework.security.validation import checker
from tests.http.lab import compile_text

FORMATS = Draft202012Validator.FORMAT_CHECKER

TEXTS = ["", "a", "ab", "abc", "abcd", "üü", "xay", "a.c", "ada@example.com", "::1", "10.0.0.1", "a" * 32, "A-b/c"]
TEXTS += ["6f1c2a52-5a2b-4b6e-9d4c-0f7f9a1b2c3d", "https://example.com/x"]
WHOLES = [-11, -10, -1, 0, 1, 2, 5, 9, 10, 11]
LONGS = [str(number) for number in WHOLES]
PARTS = [*map(float, WHOLES), 0.5, "NaN", "Infinity"]
COLORS = ["NONE", "RED", "BLUE"]
BYTES = ["", "YWJj", "YWJjZA=="]  # JSON Schema cannot tell one byte from three
LISTS = [[], ["a"], ["a", "a"], ["ab", "c"], ["ab", "cd", "ef"]]
MAPS: list[Any] = [{}, {"a": 1}, {"ab": 1}, {"ab": 5, "cd": 6}, {"ab": 1, "cd": 2, "ef": 3}]

FIELDS: list[tuple[str, str, list[Any]]] = [
    *(
        ("string", rule, TEXTS)
        for rule in (
            *("string.const = 'ab'", "string.len = 2", "string.min_len = 2", "string.max_len = 2"),
            *("string = {min_len: 2 max_len: 3}", "string = {pattern: '^a' example: 'a'}"),
            *("string = {pattern: 'b.?$' example: 'ab'}",),
            *("string.prefix = 'a.'", "string.suffix = 'c'", "string.contains = 'b'", "string.not_contains = 'b'"),
            *("string = {prefix: 'a' suffix: 'c'}", "string = {in: ['a', 'abc']}", "string = {not_in: ['a', 'abc']}"),
            *("string.uuid = true", "string.tuuid = true", "string.ip = true", "string.ipv4 = true"),
            *("string.ipv6 = true", "string = {not_contains: 'b' not_in: ['a']}", "string = {email: true max_len: 20}"),
            *("required = true", "ignore = IGNORE_ALWAYS, (buf.validate.field).string.min_len = 2"),
            "ignore = IGNORE_IF_ZERO_VALUE, (buf.validate.field).string.min_len = 2",
        )
    ),
    *(("optional string", rule, TEXTS) for rule in ("string.min_len = 2", "required = true")),
    *(
        (kind, f"{kind}{rule}", WHOLES if kind == "int32" else LONGS if kind == "sint64" else PARTS)
        for kind in ("int32", "sint64", "double", "float")
        for rule in (
            *(".const = 5", ".gt = 0", ".gte = 0", ".gte = 1", " = {in: [1, 5]}", " = {not_in: [1, 5]}"),
            *((".lt = 5", ".lte = 5", " = {gt: 1 lt: 10}", " = {gte: 1 lte: 10}") if kind != "sint64" else ()),
            *((" = {gte: 10 lt: 1}", " = {gt: 9 lte: 0}", ".finite = true") if kind == "double" else ()),
        )
    ),
    *((kind, "required = true", values) for kind, values in (("int32", WHOLES), ("sint64", LONGS), ("Color", COLORS))),
    ("int32", "ignore = IGNORE_IF_ZERO_VALUE, (buf.validate.field).int32.gte = 5", WHOLES),
    ("bool", "bool.const = true", [True, False]),
    ("bool", "required = true", [True, False]),
    *(("Color", rule, COLORS) for rule in ("enum.const = 1", "enum = {in: [0, 2]}", "enum = {not_in: [0, 1]}")),
    *(("bytes", rule, BYTES) for rule in ("bytes.len = 3", "bytes.min_len = 4", "bytes.max_len = 3")),
    *(
        ("repeated string", rule, LISTS)
        for rule in (
            *("repeated.min_items = 2", "repeated.max_items = 1", "repeated.unique = true", "required = true"),
            "repeated = {min_items: 1 items: {string: {min_len: 2}}}",
        )
    ),
    *(
        ("map<string, int32>", rule, MAPS)
        for rule in (
            *("map.min_pairs = 1", "map.max_pairs = 2", "map.keys.string.min_len = 2", "map.values.int32.gt = 1"),
            "required = true",
        )
    ),
    *(
        ("google.protobuf.StringValue", rule, [*TEXTS, None])
        for rule in ("string.min_len = 2", "string = {pattern: '^a' example: 'a'}", "required = true")
    ),
    ("google.protobuf.Int32Value", "int32 = {gte: 1 lt: 10}", [*WHOLES, None]),
    ("google.protobuf.Timestamp", "timestamp.gt = {seconds: 5}, (buf.validate.field).required = true", []),
]
"""Types, rules, and values to try."""

MESSAGES: list[tuple[str, list[Any]]] = [
    (
        "oneof which { option (buf.validate.oneof).required = true; string a = 1; string b = 2; }",
        [{}, {"a": "x"}, {"b": "x"}],
    ),
    (
        "option (buf.validate.message).oneof = {fields: ['a', 'b']}; string a = 1; string b = 2;",
        [{}, {"a": "x"}, {"a": "x", "b": "y"}],
    ),
    (
        "option (buf.validate.message).oneof = {fields: ['a', 'b'] required: true}; string a = 1; string b = 2;",
        [{}, {"b": "x"}, {"a": "x", "b": "y"}],
    ),
]

CASES: list[tuple[str, list[Any]]] = [
    *(
        (f"{kind} f = 1 [(buf.validate.field).{rule}];", [{}, *({"f": value} for value in values)])
        for kind, rule, values in FIELDS
    ),
    *MESSAGES,
]

PROTO = """
syntax = "proto3";
package bound;
import "buf/validate/validate.proto";
import "google/api/annotations.proto";
import "google/protobuf/timestamp.proto";
import "google/protobuf/wrappers.proto";
enum Color { NONE = 0; RED = 1; BLUE = 2; }
"""


@cache
def pool() -> Any:
    return compile_text(PROTO + "\n".join(f"message M{number} {{ {body} }}" for number, (body, _) in enumerate(CASES)))


def schema_of(descriptor: Descriptor) -> dict[str, Any]:
    """The schema of a message, whole."""
    schemas = Schemas({}, JsonOptions())
    top = schemas.message(descriptor)
    schemas.close([descriptor])
    return {**top, "components": {"schemas": schemas.components}}


@pytest.mark.parametrize("number", range(len(CASES)), ids=[body for body, _ in CASES])
def test_the_schema_lets_through_what_the_rules_do(number: int) -> None:
    """For each value that is tried, and for none."""
    descriptor = pool().FindMessageTypeByName(f"bound.M{number}")
    kind = message_factory.GetMessageClass(descriptor)
    validator = Draft202012Validator(schema_of(descriptor), format_checker=FORMATS)
    parse, check = Json([descriptor.file]).codec(kind).parse, checker(kind)

    def kept(value: Any) -> bool:
        try:
            check(parse(json.dumps(value).encode()))
        except (InvalidArgument, JsonError):
            return False
        return True

    verdicts = {json.dumps(value): (validator.is_valid(value), kept(value)) for value in CASES[number][1]}
    assert {value: schema for value, (schema, _) in verdicts.items()} == {
        value: rules for value, (_, rules) in verdicts.items()
    }
    assert kept(Schemas({}, JsonOptions()).example(descriptor, sent=True)), "the example breaks the rules"
