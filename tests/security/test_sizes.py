"""How much a message may hold is looked at first, and told as the library would."""

from __future__ import annotations

import time
from functools import cache
from typing import Any

import pytest
from google.protobuf import message_factory

from framework import InvalidArgument
from framework.security.sizes import Breach, measure
from framework.security.validation import SMALL, checker
from tests.gateway.lab import pool
from tests.security.test_validation import violations

RULES = """
syntax = "proto3";
package lab;
import "buf/validate/validate.proto";

message Sized {
  string text = 1 [(buf.validate.field).string.max_len = 3];
  string utf8 = 2 [(buf.validate.field).string.max_bytes = 3];
  bytes raw = 3 [(buf.validate.field).bytes.max_len = 3];
  repeated string list = 4 [(buf.validate.field).repeated.max_items = 3];
  map<string, int32> map = 5 [(buf.validate.field).map.max_pairs = 3];
  string free = 6 [(buf.validate.field) = {ignore: IGNORE_ALWAYS string: {max_len: 1}}];
  Sized one = 7;
  repeated Sized each = 8;
  map<bool, Sized> by_bool = 9;
  map<string, Sized> by_text = 10;
  string any_length = 11;
}

message Slow {
  repeated Sized each = 1 [
    (buf.validate.field).repeated.max_items = 100,
    (buf.validate.field).cel = {id: "once" message: "once" expression: "this.map(one, one.text).unique()"}
  ];
}

message Plain {
  string text = 1 [(buf.validate.field).string.min_len = 1];
  Plain inner = 2;
}
"""


@cache
def kind(name: str) -> Any:
    """A message class."""
    return message_factory.GetMessageClass(pool(RULES).FindMessageTypeByName(f"lab.{name}"))


@pytest.mark.parametrize(
    "given",
    [
        {"text": "ééé"},
        {"text": "éééé"},
        {"utf8": "éé"},
        {"raw": b"1234"},
        {"list": ["", "", "", ""]},
        {"map": {"a": 1, "b": 2, "c": 3, "d": 4}},
        {"free": "long enough"},
        {"one": {"text": "1234"}},
        {"each": [{}, {"one": {"text": "1234"}}]},
        {"by_bool": {True: {"text": "1234"}}},
        {"by_text": {"a b": {"each": [{"raw": b"1234"}]}}},
    ],
    ids=str,
)
def test_as_the_library_tells_it(given: dict[str, Any]) -> None:
    """What is found in a message, and what the library finds in it, is the same."""
    message = kind("Sized")(**given)
    measured = measure(kind("Sized").DESCRIPTOR)
    assert measured is not None
    breach = measured(message)
    try:
        checker(kind("Sized"))(message)
        expected = []
    except InvalidArgument as error:
        expected = violations(error)
    found = [] if breach is None else [(breach.field, breach.description, breach.rule.upper().replace(".", "_"))]
    assert expected == found


def test_before_expressions() -> None:
    """An expression that compares each with each is not asked about more than there may be."""
    wrong = kind("Slow")(each=[{}] * 20_000)
    check = checker(kind("Slow"))
    start = time.thread_time()
    with pytest.raises(InvalidArgument) as caught:
        check(wrong)
    assert time.thread_time() - start < 0.5
    assert violations(caught.value) == [("each", "must contain no more than 100 item(s)", "REPEATED_MAX_ITEMS")]


def test_a_small_message_is_told_everything() -> None:
    """Of a message that takes no time the caller is told all that is wrong; of another, first that it has too much."""
    check = checker(kind("Sized"))
    for more, expected in ((0, 2), (SMALL, 1)):
        with pytest.raises(InvalidArgument) as caught:
            check(kind("Sized")(text="1234", raw=b"1234", any_length="x" * more))
        assert len(violations(caught.value)) == expected


def test_nothing_to_measure() -> None:
    """Messages without such rules are not looked at."""
    assert measure(kind("Plain").DESCRIPTOR) is None
    measured = measure(kind("Sized").DESCRIPTOR)
    assert measured is not None
    assert measured(kind("Sized")(text="1234")) == Breach("text", "must be at most 3 characters", "string.max_len")
